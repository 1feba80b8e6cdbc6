"""Fine-tuning heads, freezing, and the recurrent baselines."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from midibert_ray.model.folder import ModelFileError, load_checkpoint
from midibert_ray.model.heads import MidiBertForNotes, MidiBertForSequences, NoteHead, SequenceHead, freeze
from midibert_ray.model.midibert import MidiBertConfig
from midibert_ray.model.recurrent import BiLstmNotes, BiLstmSequences
from midibert_ray.music.vocabulary import CP

CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_length": 64,
    "num_classes": 4,
}
MODELS = [MidiBertForNotes, MidiBertForSequences]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random_tokens(representation: str = "cp", b: int = 3, t: int = 40) -> Tensor:
    if representation == "remi":
        return torch.randint(0, 167, (b, t))
    return torch.stack([torch.randint(0, n, (b, t)) for n in CP.pad], dim=-1)


def padded(representation: str = "cp") -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, the same with other padding, and the mask."""
    mask = torch.arange(40) < torch.tensor([40, 17, 1])[:, None]
    tokens, other = random_tokens(representation), random_tokens(representation)
    return tokens, torch.where(mask if representation == "remi" else mask[..., None], tokens, other), mask


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_paper_s_sizes() -> None:
    """Backbone plus head are the authors' totals less the 24,424,704 parameters that never learn."""
    with torch.device("meta"):
        notes = {name: count(NoteHead(768, c)) for name, c in (("melody", 4), ("velocity", 7))}
        sequences = {name: count(SequenceHead(768, c)) for name, c in (("composer", 8), ("emotion", 4))}
    unlearned, backbone = 24_424_704, 86_675_456
    assert backbone + notes["melody"] == 111_298_052 - unlearned
    assert backbone + notes["velocity"] == 111_298_823 - unlearned
    assert backbone + sequences["composer"] == 111_987_720 - unlearned
    assert backbone + sequences["emotion"] == 111_986_692 - unlearned


@pytest.mark.parametrize("representation", ["cp", "remi"])
def test_shapes_and_padding(representation: str) -> None:
    tokens, other, mask = padded(representation)
    config = MidiBertConfig(**CONFIG, representation=representation)
    notes, sequences = MidiBertForNotes(config).eval(), MidiBertForSequences(config).eval()
    assert notes(tokens, mask).logits.shape == (3, 40, 4)
    assert sequences(tokens, mask).logits.shape == (3, 4)
    assert torch.equal(notes(tokens, mask).logits[mask], notes(other, mask).logits[mask])
    torch.testing.assert_close(sequences(tokens, mask).logits, sequences(other, mask).logits, rtol=0, atol=1e-6)


def test_an_all_ones_mask_is_no_mask() -> None:
    tokens, model = random_tokens(), MidiBertForSequences(MidiBertConfig(**CONFIG)).eval()
    torch.testing.assert_close(model(tokens, torch.ones(3, 40)).logits, model(tokens).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("model_class", MODELS)
def test_the_head_needs_its_number_of_outputs(model_class: type) -> None:
    with pytest.raises(ValueError, match=f"num_classes=None; {model_class.__name__}"):
        model_class(MidiBertConfig(**CONFIG | {"num_classes": None}))


def test_saved_heads_load_through_auto_classes(tmp_path: Path) -> None:
    tokens = random_tokens()
    autos = (AutoModelForTokenClassification, AutoModelForSequenceClassification)
    for model_class, auto in zip(MODELS, autos, strict=True):
        model = model_class(MidiBertConfig(**CONFIG)).eval()
        model.save_pretrained(tmp_path / auto.__name__)
        again = auto.from_pretrained(tmp_path / auto.__name__)
        assert type(again) is model_class
        assert torch.equal(again(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("representation", ["cp", "remi"])
def test_linear_heads(representation: str, tmp_path: Path) -> None:
    tokens, other, mask = padded(representation)
    config = MidiBertConfig(**CONFIG, representation=representation, head="linear")
    notes, sequences = MidiBertForNotes(config).eval(), MidiBertForSequences(config).eval()
    assert count(notes.head) == count(sequences.head) == 32 * 4 + 4
    hidden = sequences.midibert(tokens, mask).last_hidden_state
    means = torch.stack([row[real].mean(0) for row, real in zip(hidden, mask, strict=True)])
    torch.testing.assert_close(sequences(tokens, mask).logits, sequences.head.output(means))
    torch.testing.assert_close(sequences(tokens, mask).logits, sequences(other, mask).logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(sequences(tokens, torch.ones(3, 40)).logits, sequences(tokens).logits, rtol=0, atol=1e-6)
    assert sequences(tokens, torch.zeros(3, 40)).logits.isfinite().all(), "rows of padding alone"
    torch.testing.assert_close(
        notes(tokens, mask).logits, notes.head.output(notes.midibert(tokens, mask).last_hidden_state)
    )
    for model in (notes, sequences):
        model.save_pretrained(tmp_path / type(model).__name__)
        again = load_checkpoint(tmp_path / type(model).__name__)
        assert type(again.head) is type(model.head)
        assert torch.equal(again(tokens, mask).logits, model(tokens, mask).logits)


def test_a_folder_from_before_there_were_two_heads_has_the_paper_s(tmp_path: Path) -> None:
    model = MidiBertForNotes(MidiBertConfig(**CONFIG)).eval()
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written.pop("head") == "paper"
    (tmp_path / "config.json").write_text(json.dumps(written))
    again = load_checkpoint(tmp_path)
    assert isinstance(again.head, NoteHead)
    assert again.config.head == "paper"


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"head='deep' is not possible.*linear.*paper"):
        MidiBertConfig(**CONFIG, head="deep")


LEARNING = {
    "none": ("midibert.", "head."),
    "backbone": ("head.",),
    "attention": ("midibert.embeddings.", "head."),
    "1": ("midibert.layers.1.", "head."),
    "2": ("head.",),
}
"""What is frozen, or how many layers -> starts of the names of what learns."""


def frozen(model_class: type, what: str) -> MidiBertForNotes | MidiBertForSequences:
    model = model_class(MidiBertConfig(**CONFIG))
    freeze(model, "backbone")
    if what.isdigit():
        freeze(model, "none", int(what))
    else:
        freeze(model, what)
    return model


@pytest.mark.parametrize("what", LEARNING)
def test_no_graph_is_recorded_below_the_lowest_part_that_learns(what: str) -> None:
    """Of the hidden states behind the embeddings, the first layer and the second."""
    model = frozen(MidiBertForNotes, what)
    output = model.midibert(random_tokens(), output_hidden_states=True)
    recorded = [state.requires_grad for state in output.hidden_states]
    assert recorded == [state.grad_fn is not None for state in output.hidden_states]
    nothing = [False, False, False]
    expected = {"none": [True] * 3, "backbone": nothing, "attention": [True] * 3, "1": [False, False, True]}
    assert recorded == expected.get(what, nothing)


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize("what", LEARNING)
def test_frozen_parameters_do_not_change_a_bit(model_class: type, what: str) -> None:
    model = frozen(model_class, what)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    model(random_tokens()).logits.square().sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        learns = name.startswith(LEARNING[what])
        assert (parameter.grad is not None) == learns, name
        assert torch.equal(parameter, before[name]) != learns, name


def test_a_frozen_backbone_keeps_its_dropout_and_records_no_graph() -> None:
    model, tokens = MidiBertForNotes(MidiBertConfig(**CONFIG)).train(), random_tokens()
    freeze(model, "backbone")
    first, second = (model.midibert(tokens).last_hidden_state for _ in range(2))
    assert not torch.equal(first, second)
    assert first.grad_fn is None


def test_an_unknown_freeze_is_refused() -> None:
    with pytest.raises(ValueError, match=r"freeze='all'.*none, backbone, attention"):
        freeze(MidiBertForNotes(MidiBertConfig(**CONFIG)), "all")


@pytest.mark.parametrize("representation", ["cp", "remi"])
@pytest.mark.parametrize("model_class", [BiLstmNotes, BiLstmSequences])
def test_recurrent_baselines(model_class: type, representation: str) -> None:
    tokens, other, mask = padded(representation)
    model = model_class(num_classes=5, representation=representation).eval()
    out = model(tokens)
    assert out.shape == ((3, 40, 5) if model_class is BiLstmNotes else (3, 5))
    assert not torch.equal(out, model(other))
    a, b = model(tokens, mask), model(other, mask)
    if model_class is BiLstmNotes:
        a, b = a[mask], b[mask]
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    model(tokens).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_recurrent_sizes_are_the_authors() -> None:
    with torch.device("meta"):
        notes, sequences = BiLstmNotes(num_classes=4), BiLstmSequences(num_classes=8)
    assert (notes.lstm.hidden_size, notes.lstm.num_layers, notes.lstm.bidirectional) == (256, 3, True)
    assert (sequences.lstm.hidden_size, sequences.lstm.num_layers) == (128, 1)
    assert tuple(sequences.head.dense.weight.shape) == (256, 1024)


@pytest.mark.parametrize("representation", ["cp", "remi"])
@pytest.mark.parametrize("model_class", [BiLstmNotes, BiLstmSequences])
def test_recurrent_models_come_back_from_their_folder(model_class: type, representation: str, tmp_path: Path) -> None:
    model, tokens = model_class(num_classes=5, representation=representation).eval(), random_tokens(representation)
    model.save_pretrained(tmp_path / "new")
    again = model_class.from_pretrained(tmp_path / "new")
    assert not again.training
    assert torch.equal(again(tokens), model(tokens))
    other = BiLstmNotes if model_class is BiLstmSequences else BiLstmSequences
    with pytest.raises(ValueError, match=f"does not hold a {other.__name__}"):
        other.from_pretrained(tmp_path / "new")
    with pytest.raises(ModelFileError, match=f"written by '{model_class.__name__}'; supported: MidiBert"):
        load_checkpoint(tmp_path / "new")


def test_an_unknown_representation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"representation='octuple'.*cp"):
        BiLstmNotes(num_classes=4, representation="octuple")
