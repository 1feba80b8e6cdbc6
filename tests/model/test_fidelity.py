"""Our model and its masked-token loss beside the paper's model in slow numpy, at sizes that nobody trained."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from midibert_ray.data.hashing import row_keys
from midibert_ray.data.masking import MaskedBatch, mask_batch
from midibert_ray.model.midibert import MidiBertForMaskedLM, mlm_loss
from midibert_ray.model.reference import load_reference
from midibert_ray.music.protocol import PAPER
from midibert_ray.music.vocabulary import CP, REMI
from tests import slow_model
from tests.reference import Sizes, reference_weights, tempered, write

UNUSUAL = Sizes(hidden=96, heads=4, layers=3, feed_forward=160, length=128, embedding=256)
SEGMENT = Sizes(hidden=48, heads=4, layers=2, feed_forward=80, length=512, embedding=16)
LENGTHS = torch.tensor([512, 512, 60, 9])

NEAR = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def padded_tokens(representation: str, lengths: Tensor, t: int) -> Tensor:
    """Random notes, and PAD behind them."""
    real = torch.arange(t) < lengths[:, None]
    if representation == "remi":
        return torch.where(real, torch.randint(0, REMI.pad[0], real.shape), REMI.pad[0])
    notes = torch.stack([torch.randint(0, n, real.shape) for n in CP.pad], dim=-1)
    return torch.where(real[..., None], notes, torch.tensor(CP.pad))


@pytest.mark.parametrize("t", [100, pytest.param(128, marks=pytest.mark.slow)])
@pytest.mark.parametrize("representation", ["cp", "remi"])
@pytest.mark.parametrize("kind", ["encoder", "notes", "sequences"])
def test_outputs_are_those_of_the_formulas(kind: str, representation: str, t: int, tmp_path: Path) -> None:
    tensors = tempered(reference_weights(representation, kind, sizes=UNUSUAL))
    model, _ = load_reference(write(tmp_path / "x.ckpt", tensors))
    lengths = torch.tensor([t, 71, 1])
    tokens, mask = padded_tokens(representation, lengths, t), torch.arange(t) < lengths[:, None]
    if kind == "sequences":  # the authors attend to padding here
        mask = torch.ones_like(mask)
    with torch.no_grad():
        actual = model(tokens, mask)

    weights = slow_model.weights_of(tensors)
    expected = slow_model.encode(weights, tokens.numpy(), mask.numpy())
    actual = actual.last_hidden_state if kind == "encoder" else actual.logits
    if kind == "notes":
        expected = slow_model.note_logits(weights, expected)
    elif kind == "sequences":
        expected = slow_model.sequence_logits(weights, expected)
    assert actual.dtype == torch.float32 and np.std(expected) > 0.1
    np.testing.assert_allclose(actual.numpy(), expected, **NEAR)


@pytest.mark.slow
class TestPaperStep:
    """One masked batch under protocol paper, from tokens to the loss."""

    def test_cp(self, tmp_path: Path) -> None:
        tokens = padded_tokens("cp", LENGTHS, 512)
        batch = mask_batch(tokens, LENGTHS, protocol=PAPER, keys=row_keys(1, 2, 3, torch.arange(4)))
        inputs, where = batch.inputs.numpy(), batch.where.numpy()
        is_pad = (tokens.numpy() == CP.pad).all(-1)
        check_choice(where, (inputs == CP.mask).all(-1), (inputs == tokens.numpy()).all(-1), is_pad)
        attended = inputs[..., 0] != 2
        assert (attended & is_pad).any() and (~attended & ~is_pad).any(), "both quirks occur in this batch"
        np.testing.assert_array_equal(batch.attention_mask.numpy(), attended)

        scores, logits = both_sides("cp", batch, attended, tmp_path)
        targets, total = tokens.numpy()[where], 0.0
        for column, (name, size) in enumerate(slow_model.FAMILIES.items()):
            entropy = slow_model.cross_entropy(logits[column], targets[:, column])
            assert scores[f"{name}/loss"].item() == pytest.approx(entropy, abs=1e-5)
            assert scores[f"{name}/correct"] == (logits[column].argmax(-1) == targets[:, column]).sum()
            total += size * entropy
        assert scores["count"] == 4 * 77
        assert scores["loss"].item() == pytest.approx(total / 176, abs=1e-5)

    def test_remi(self, tmp_path: Path) -> None:
        tokens = padded_tokens("remi", LENGTHS, 512)
        batch = mask_batch(tokens, LENGTHS, protocol=PAPER, keys=row_keys(1, 2, 3, torch.arange(4)))
        inputs, where, is_pad = batch.inputs.numpy(), batch.where.numpy(), tokens.numpy() == 167
        check_choice(where, inputs == 168, inputs == tokens.numpy(), is_pad)
        attended = tokens.numpy() != 167
        assert (attended != (inputs != 167)).any(), "the masked input would give another attention mask"
        np.testing.assert_array_equal(batch.attention_mask.numpy(), attended)

        scores, (logits,) = both_sides("remi", batch, attended, tmp_path)
        entropy = slow_model.cross_entropy(logits, tokens.numpy()[where])
        assert scores["loss"].item() == pytest.approx(entropy, abs=1e-5)


def check_choice(
    where: NDArray[np.bool_], is_mask: NDArray[np.bool_], kept: NDArray[np.bool_], is_pad: NDArray[np.bool_]
) -> None:
    """77 of all 512 positions of a row, PAD among them: 62 MASK, 8 random ids, 7 as they were."""
    assert where.sum(1).tolist() == [77] * 4
    assert (where & is_mask).sum(1).tolist() == [62] * 4
    assert set((where & kept).sum(1).tolist()) <= {7, 8}  # a random id may happen to be the one that stood there
    assert kept[~where].all()
    assert (where & is_pad).any(1).tolist() == is_pad.any(1).tolist()


def both_sides(
    representation: str, batch: MaskedBatch, attended: NDArray[np.bool_], folder: Path
) -> tuple[dict[str, Tensor], list[slow_model.Array]]:
    """What `mlm_loss` says of our model, and the formulas' logits of each token type at the chosen positions."""
    tensors = tempered(reference_weights(representation, sizes=SEGMENT))
    encoder, _ = load_reference(write(folder / "x.ckpt", tensors))
    model = MidiBertForMaskedLM(encoder.config).eval()
    model.midibert.load_state_dict(encoder.state_dict())
    for head in model.heads:
        nn.init.normal_(head.weight, std=0.3)
        nn.init.normal_(head.bias)
    with torch.no_grad():
        logits = model(batch.inputs, batch.attention_mask, batch.where).logits
        scores = mlm_loss(logits, batch.targets[batch.where])

    weights = slow_model.weights_of(tensors)
    hidden = slow_model.encode(weights, batch.inputs.numpy(), attended)[batch.where.numpy()]
    heads = [slow_model.weights_of(dict(head.state_dict())) for head in model.heads]
    expected = [hidden @ head["weight"].T + head["bias"] for head in heads]
    for mine, theirs in zip(logits, expected, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, **NEAR)
    return scores, expected
