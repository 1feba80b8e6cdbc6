"""Inputs that torch would take for something else are refused by name; our own loops do not look."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from midibert_ray.model.heads import MidiBertForNotes, MidiBertForSequences
from midibert_ray.model.midibert import MidiBertConfig, MidiBertForMaskedLM, MidiBertModel
from midibert_ray.model.recurrent import BiLstmNotes, BiLstmSequences
from midibert_ray.settings.presets import preset
from midibert_ray.training.build import new_model

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "max_length": 8}


def model(representation: str = "cp") -> MidiBertModel:
    return MidiBertModel(MidiBertConfig(representation=representation, **SIZES)).eval()


def tokens(*note: int) -> Tensor:
    """Two segments of four notes, one of which is given."""
    batch = torch.tensor([0, 3, 40, 7]).repeat(2, 4, 1)
    batch[1, 2] = torch.tensor(note or [0, 0, 0, 0])
    return batch


WRONG = {
    "pitch beyond its column": (tokens(0, 3, 100, 7), r"hold 100 in the column Pitch, whose ids go from 0 to 87"),
    "raw MIDI pitch": (tokens(0, 3, 88, 7), r"hold 88 in the column Pitch.*not those of MIDI"),
    "swapped columns": (
        tokens()[..., [3, 2, 1, 0]],
        r"hold 7 in the column Bar, whose ids go from 0 to 3; columns are",
    ),
    "negative": (tokens(0, 3, -1, 7), r"hold -1 in the column Pitch"),
    "float": (tokens().float(), r"dtype torch.float32 are no ids; the model takes int64"),
    "bool": (tokens().bool(), r"dtype torch.bool are no ids"),
    "a type that torch hardly knows": (tokens().to(torch.uint16), r"dtype torch.uint16 are no ids"),
    "a list": (tokens().tolist(), r"tokens of type list does not fit this model; it takes a tensor"),
    "an array": (tokens().numpy(), r"tokens of type ndarray does not fit"),
    "no time step": (tokens()[:, :0], r"shape \[2, 0, 4\] do not fit this model"),
    "no batch": (tokens()[0, :, 0], r"shape \[4\] do not fit this model; it takes \[batch, time, 4\] \(cp\)"),
    "three columns": (tokens()[..., :3], r"shape \[2, 4, 3\] do not fit this model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_tokens_that_are_no_ids_are_refused_by_name(case: str) -> None:
    given, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        model()(given)


@pytest.mark.parametrize("note", [(3, 17, 87, 65), (0, 0, 0, 0)])
def test_all_ids_of_a_column_are_taken(note: tuple[int, ...]) -> None:
    expected = model().eval()
    given = tokens(*note)
    assert expected(given).last_hidden_state.shape == (2, 4, 32)
    assert torch.equal(expected(given.to(torch.uint8)).last_hidden_state, expected(given).last_hidden_state)


def test_remi_has_one_column() -> None:
    remi = model("remi")
    remi(torch.tensor([[0, 168]]))
    with pytest.raises(ValueError, match=r"hold 169 in the column Token, whose ids go from 0 to 168"):
        remi(torch.tensor([[0, 169]]))
    with pytest.raises(ValueError, match=r"shape \[2, 4, 4\] do not fit this model; it takes \[batch, time\] \(remi\)"):
        remi(tokens())


MASKS = {
    "longer": (
        torch.ones(2, 5, dtype=torch.bool),
        r"of shape \[2, 5\] does not fit tokens of shape \[2, 4, 4\]; \[2, 4\] does",
    ),
    "shorter": (torch.ones(2, 3), r"of shape \[2, 3\] does not fit"),
    "for pairs": (torch.ones(2, 4, 4, dtype=torch.bool), r"of shape \[2, 4, 4\] does not fit"),
    "to be added": (torch.zeros(2, 4) - 10_000, r"of torch.float32 holds more than 0 and 1"),
    "counts": (torch.full((2, 4), 2), r"of torch.int64 holds more than 0 and 1"),
    "undefined": (torch.full((2, 4), torch.nan), r"of torch.float32 holds more than 0 and 1"),
    "a list": ([[1] * 4] * 2, r"of type list does not fit"),
}


@pytest.mark.parametrize("case", MASKS)
def test_a_mask_of_another_length_or_kind_is_refused(case: str) -> None:
    mask, words = MASKS[case]
    with pytest.raises(ValueError, match=f"attention_mask {words}"):
        model()(tokens(), mask)
    with pytest.raises(ValueError, match=f"where {words}"):
        model()(tokens(), where=mask)


def with_head(kind: type, representation: str = "cp") -> nn.Module:
    made: nn.Module
    if kind in (BiLstmNotes, BiLstmSequences):
        made = kind(num_classes=4, representation=representation)
    else:
        made = kind(MidiBertConfig(num_classes=4, representation=representation, **SIZES))
    return made.eval()


def logits(output: Any) -> Tensor:
    """Recurrent models give nothing else."""
    return output if isinstance(output, Tensor) else output.logits


WITH_HEADS = [MidiBertForNotes, MidiBertForSequences, BiLstmNotes, BiLstmSequences]


@pytest.mark.parametrize("kind", WITH_HEADS)
def test_models_with_heads_look_as_well(kind: type) -> None:
    made = with_head(kind)
    made(tokens())
    with pytest.raises(ValueError, match="hold 100 in the column Pitch"):
        made(tokens(0, 3, 100, 7))
    with pytest.raises(ValueError, match="attention_mask"):
        made(tokens(), torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("kind", WITH_HEADS)
@pytest.mark.parametrize("representation", ["cp", "remi"])
def test_ids_and_masks_of_any_integer_type_are_taken(kind: type, representation: str) -> None:
    made, given = with_head(kind, representation), tokens() if representation == "cp" else tokens()[..., 2]
    mask = torch.tensor([[True, True, False, False]] * 2)
    expected = logits(made(given, mask))
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert torch.equal(logits(made(given.to(dtype), mask.to(dtype))), expected)
    assert torch.equal(logits(made(given, mask.float())), expected)


def test_training_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("midibert_ray.model.midibert.require_inputs", looked)
    new_model(preset("debug"))(tokens(), None, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(AssertionError):
        MidiBertForMaskedLM(MidiBertConfig(**SIZES))(tokens(), None, torch.ones(2, 4, dtype=torch.bool))
