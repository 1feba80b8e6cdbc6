"""The encoder and its masked-token heads: sizes, padding, exchange with transformers, learning."""

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from midibert_ray.model.midibert import MidiBertConfig, MidiBertForMaskedLM, MidiBertModel, mlm_loss
from midibert_ray.music.vocabulary import CP, REMI

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
KINDS = [("cp", "relative_key_query"), ("cp", "rope"), ("remi", "relative_key_query"), ("remi", "rope")]


def tiny(representation: str = "cp", attention: str = "relative_key_query", **other: object) -> MidiBertConfig:
    return MidiBertConfig(**TINY | {"representation": representation, "attention": attention, "max_length": 64} | other)


def random_tokens(representation: str, b: int = 3, t: int = 64) -> Tensor:
    """Real ids only."""
    if representation == "remi":
        return torch.randint(0, REMI.pad[0], (b, t))
    return torch.stack([torch.randint(0, n, (b, t)) for n in CP.pad], dim=-1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_the_paper_s_sizes() -> None:
    with torch.device("meta"):
        model = MidiBertForMaskedLM(MidiBertConfig())
    assert sum(p.numel() for p in model.midibert.parameters()) == 86_675_456
    assert sum(p.numel() for p in model.heads.parameters()) == 135_344


@pytest.mark.parametrize(("representation", "attention"), KINDS)
@pytest.mark.parametrize("t", [64, 17])
def test_shapes_and_hidden_states(representation: str, attention: str, t: int) -> None:
    model = MidiBertModel(tiny(representation, attention)).eval()
    tokens = random_tokens(representation, t=t)
    out = model(tokens, torch.ones(3, t, dtype=torch.int64), output_hidden_states=True)
    assert out.last_hidden_state.shape == (3, t, 32)
    assert [s.shape for s in out.hidden_states] == [(3, t, 32)] * 3
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    assert model(tokens).hidden_states is None
    torch.testing.assert_close(model(tokens).last_hidden_state, out.last_hidden_state)


@pytest.mark.parametrize(("representation", "attention"), KINDS)
def test_masked_positions_get_the_logits_that_all_positions_would(representation: str, attention: str) -> None:
    model = MidiBertForMaskedLM(tiny(representation, attention)).eval()
    tokens, where = random_tokens(representation), torch.rand(3, 64) < 0.15
    logits = model(tokens, None, where).logits
    hidden = model.midibert(tokens).last_hidden_state
    sizes = model.config.vocabulary.sizes
    assert [x.shape for x in logits] == [(int(where.sum()), n) for n in sizes]
    for x, head in zip(logits, model.heads, strict=True):
        torch.testing.assert_close(x, head(hidden)[where], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("representation", "attention"), KINDS)
def test_the_content_of_padding_does_not_matter(representation: str, attention: str) -> None:
    model = MidiBertModel(tiny(representation, attention)).eval()
    tokens, length = random_tokens(representation), torch.tensor([64, 30, 1])
    mask = torch.arange(64) < length[:, None]
    other = torch.where(mask if representation == "remi" else mask[..., None], tokens, random_tokens(representation))
    assert not torch.equal(tokens, other)
    assert torch.equal(model(tokens, mask).last_hidden_state[mask], model(other, mask).last_hidden_state[mask])


@pytest.mark.parametrize(("representation", "attention"), KINDS)
def test_a_row_of_padding_alone_gives_finite_states(representation: str, attention: str) -> None:
    model = MidiBertModel(tiny(representation, attention))
    mask = torch.ones(3, 64, dtype=torch.bool)
    mask[1] = False
    assert model(random_tokens(representation), mask).last_hidden_state.isfinite().all()


@pytest.mark.parametrize(("representation", "attention"), KINDS)
def test_every_parameter_learns(representation: str, attention: str) -> None:
    model = MidiBertForMaskedLM(tiny(representation, attention))
    tokens, where = random_tokens(representation), torch.rand(3, 64) < 0.3
    mlm_loss(model(tokens, None, where).logits, tokens[where])["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("representation", "attention"), KINDS)
def test_overfits_one_batch(representation: str, attention: str) -> None:
    model = MidiBertForMaskedLM(tiny(representation, attention)).eval()
    tokens, where = random_tokens(representation, 2, 16), torch.zeros(2, 16, dtype=torch.bool)
    where[:, ::5] = True
    corrupted = tokens.clone()
    corrupted[where] = torch.tensor(model.config.vocabulary.mask if representation == "cp" else REMI.mask[0])
    steps, rate = (60, 6e-3) if attention == "rope" else (100, 3e-3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        loss = mlm_loss(model(corrupted, None, where).logits, tokens[where])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 3 and losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_gives_equal_logits(dtype: torch.dtype, tmp_path: object) -> None:
    model = MidiBertForMaskedLM(tiny()).to(dtype).eval()
    model.save_pretrained(tmp_path)
    tokens, where = random_tokens("cp"), torch.rand(3, 64) < 0.15
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert isinstance(again, MidiBertForMaskedLM) and again.dtype == dtype
    for a, b in zip(model(tokens, None, where).logits, again(tokens, None, where).logits, strict=True):
        assert torch.equal(a, b)
    encoder = AutoModel.from_pretrained(tmp_path)
    assert isinstance(encoder, MidiBertModel)
    assert torch.equal(encoder(tokens).last_hidden_state, model.midibert(tokens).last_hidden_state)
    assert AutoConfig.from_pretrained(tmp_path).hidden_size == model.config.hidden_size


def test_initial_weights_are_the_authors() -> None:
    model = MidiBertForMaskedLM(MidiBertConfig(**TINY | {"hidden_size": 128}))
    encoder = model.midibert
    assert encoder.embeddings.tables[2].weight.std().item() == pytest.approx(1.0, abs=0.05)
    for weight in (
        encoder.layers[0].feed_forward.weight,
        encoder.layers[0].attention.distance_embedding.weight,
    ):
        assert weight.std().item() == pytest.approx(0.02, abs=2e-3)
    assert not encoder.layers[0].feed_forward.bias.any()
    assert (encoder.norm.weight == 1).all()


@pytest.mark.parametrize("attention", ["relative_key_query", "rope"])
def test_bfloat16_and_gradient_checkpointing(attention: str) -> None:
    model = MidiBertForMaskedLM(tiny(attention=attention, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    tokens, where = random_tokens("cp"), torch.rand(3, 64) < 0.3
    loss = mlm_loss(model(tokens, None, where).logits, tokens[where])["loss"]
    loss.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.gradient_checkpointing_enable()
    mlm_loss(model(tokens, None, where).logits, tokens[where])["loss"].backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], expected)
    half = mlm_loss(model.bfloat16()(tokens, None, where).logits, tokens[where])["loss"]
    assert half.item() == pytest.approx(loss.item(), abs=0.05)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("representation", "octuple"),
        ("attention", "absolute"),
        ("num_attention_heads", 5),
        ("num_hidden_layers", 0),
        ("hidden_dropout_prob", 1.0),
        ("num_classes", 0),
    ],
)
def test_an_impossible_config_names_the_field_and_the_value(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{field}={value!r}.*allowed"):
        MidiBertConfig(**TINY | {field: value})


def test_rope_needs_even_heads() -> None:
    with pytest.raises(ValueError, match=r"num_attention_heads=4.*even"):
        MidiBertConfig(hidden_size=12, num_attention_heads=4, attention="rope")


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(ValueError, match=r"65 time steps exceed max_length=64"):
        MidiBertModel(tiny())(random_tokens("cp", t=65))
    with pytest.raises(ValueError, match=r"\[3, 64\] do not fit.*\(cp\)"):
        MidiBertModel(tiny())(random_tokens("remi"))
    with pytest.raises(ValueError, match=r"\(remi\)"):
        MidiBertModel(tiny("remi"))(random_tokens("cp"))


class TestLoss:
    def test_is_the_paper_s_weighted_cross_entropy(self) -> None:
        logits, targets = _logits(50)
        expected = 0.0
        for n, x, target in zip((4, 18, 88, 66), logits, targets.unbind(-1), strict=True):
            probabilities = x.exp() / x.exp().sum(-1, keepdim=True)
            expected += n * -probabilities[torch.arange(50), target].log().mean() / 176
        scores = mlm_loss(logits, targets)
        torch.testing.assert_close(scores["loss"], expected)
        assert scores["count"] == 50

    def test_sums_make_exact_means_in_any_layout(self) -> None:
        logits, targets = _logits(50)
        whole = mlm_loss(logits, targets, "mean")
        parts = [
            mlm_loss(tuple(x[i:j] for x in logits), targets[i:j], "sum") for i, j in ((0, 7), (7, 7), (7, 41), (41, 50))
        ]
        added = {name: sum(part[name] for part in parts) for name in whole}
        assert added["count"] == 50
        for name in ("loss", "Bar/loss", "Position/loss", "Pitch/loss", "Duration/loss"):
            torch.testing.assert_close(added[name] / 50, whole[name])
        for family in ("Bar", "Position", "Pitch", "Duration"):
            assert added[f"{family}/correct"] == whole[f"{family}/correct"]

    def test_remi_is_the_plain_cross_entropy(self) -> None:
        x, target = torch.randn(20, 169), torch.randint(0, 169, (20,))
        scores = mlm_loss((x,), target)
        torch.testing.assert_close(scores["loss"], torch.nn.functional.cross_entropy(x, target))
        assert set(scores) == {"loss", "count", "Token/loss", "Token/correct"}

    def test_of_nothing_is_zero(self) -> None:
        logits, targets = _logits(0)
        assert mlm_loss(logits, targets)["loss"] == 0

    def test_refuses_another_reduction(self) -> None:
        with pytest.raises(ValueError, match=r"reduction='none'.*'sum', 'mean'"):
            mlm_loss(*_logits(3), "none")


def _logits(m: int) -> tuple[tuple[Tensor, ...], Tensor]:
    targets = torch.stack([torch.randint(0, n, (m,)) for n in CP.sizes], dim=-1)
    return tuple(torch.randn(m, n) for n in CP.sizes), targets
