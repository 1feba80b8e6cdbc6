"""Segments that share rows: the same numbers, and only the rows that it takes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from midibert_ray.model.heads import MidiBertForSequences
from midibert_ray.model.midibert import MidiBertForMaskedLM, mlm_loss
from midibert_ray.model.packing import STEP, Packing, plan
from tests.model.test_midibert import KINDS, random_tokens, tiny

CPU = torch.device("cpu")
LENGTHS = np.array([20, 150, 7, 192, 64, 30, 1])


def packed(lengths: np.ndarray, length: int = 192) -> Packing:
    found = plan(lengths, length=length, hidden_size=32, device=CPU)
    assert found is not None
    return found


def real(lengths: np.ndarray = LENGTHS, length: int = 192) -> Tensor:
    return torch.arange(length) < torch.from_numpy(lengths)[:, None]


@given(st.lists(st.integers(1, 200), min_size=1, max_size=20))
def test_every_time_step_has_one_place(sizes: list[int]) -> None:
    lengths = np.array(sizes)
    found = plan(lengths, length=200, hidden_size=32, device=CPU)
    if found is None:
        return
    rows, width = found.source.shape
    assert rows <= len(lengths) and width <= 200
    assert int((found.segment > 0).sum()) == lengths.sum()
    steps = torch.arange(len(lengths) * 200).view(len(lengths), 200, 1)
    inside = real(lengths, 200)
    assert torch.equal(found.unpack(found.pack(steps)), steps * inside[..., None])
    chosen = found.pack(steps)[..., 0][found.segment > 0]
    assert sorted(chosen.tolist()) == steps[inside][:, 0].tolist()


def test_widths_and_rows_are_as_small_as_they_can_be() -> None:
    assert packed(np.array([60] * 8)).source.shape == (8, STEP)
    assert packed(np.array([192, 96, 96, 100, 92])).source.shape == (3, 192)
    assert plan(np.array([192, 190]), length=192, hidden_size=32, device=CPU) is None


@pytest.mark.parametrize(("representation", "attention"), KINDS)
@pytest.mark.parametrize("precise", [True, False])
def test_losses_and_gradients_are_the_same(representation: str, attention: str, precise: bool) -> None:
    torch.manual_seed(0)
    shape = {"max_length": 192, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = MidiBertForMaskedLM(tiny(representation, attention, **shape)).train()
    model = model.double() if precise else model
    tokens, inside = random_tokens(representation, len(LENGTHS), 192), real()
    where = inside & (torch.rand(inside.shape) < 0.3)

    def run(packing: Packing | None) -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        logits = model(tokens, inside, where, packing).logits
        loss = mlm_loss(logits, tokens[where])["loss"]
        loss.backward()
        return torch.cat(logits, dim=-1).detach(), [p.grad.clone() for p in model.parameters()]

    (expected, wanted), (actual, got) = run(None), run(packed(LENGTHS))
    exact = 1e-10 if precise and attention == "relative_key_query" else 2e-5  # rope takes its angles in fp32
    torch.testing.assert_close(actual, expected, rtol=0, atol=exact)
    torch.testing.assert_close(got, wanted, rtol=0, atol=exact)


@pytest.mark.parametrize("attention", ["relative_key_query", "rope"])
def test_hidden_states_come_back_in_their_places(attention: str) -> None:
    torch.manual_seed(0)
    model = MidiBertForSequences(tiny(attention=attention, max_length=192, num_classes=5)).eval()
    tokens, inside = random_tokens("cp", len(LENGTHS), 192), real()
    expected = model.midibert(tokens, inside, output_hidden_states=True)
    actual = model.midibert(tokens, packing=packed(LENGTHS), output_hidden_states=True)
    for one, other in zip(expected.hidden_states, actual.hidden_states, strict=True):
        torch.testing.assert_close(other[inside], one[inside], rtol=0, atol=2e-5)
        assert not other[~inside].any()
    logits = model(tokens, inside, packing=packed(LENGTHS)).logits
    torch.testing.assert_close(logits, model(tokens, inside).logits, rtol=0, atol=2e-5)
