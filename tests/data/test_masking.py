"""Masking: exact counts, fair draws, and the same decisions whatever the layout."""

import numpy as np
import pytest
import torch
from torch import Tensor

from midibert_ray.data.hashing import row_keys
from midibert_ray.data.masking import MaskedBatch, mask_batch, masked_count, noise_batch
from midibert_ray.data.segments import Segments
from midibert_ray.data.store import TokenStore
from midibert_ray.music import splitmix64
from midibert_ray.music.protocol import CLEAN, PAPER, PROTOCOLS, Protocol
from midibert_ray.music.vocabulary import CP, REMI

T = 512
REPRESENTATIONS = ["cp", "remi"]


def batch(representation: str, length: Tensor, t: int = T) -> Tensor:
    """Random real ids, PAD from `length` on."""
    generator, b = torch.Generator().manual_seed(1), len(length)
    padding = torch.arange(t) >= length[:, None]
    if representation == "remi":
        tokens = torch.randint(0, REMI.pad[0], (b, t), generator=generator)
        return tokens.masked_fill(padding, REMI.pad[0])
    tokens = torch.stack([torch.randint(0, n, (b, t), generator=generator) for n in CP.pad], dim=-1)
    return torch.where(padding[..., None], torch.tensor(CP.pad), tokens)


def masked(representation: str, length: Tensor, protocol: Protocol, seed: int = 0, step: int = 0) -> MaskedBatch:
    keys = row_keys(seed, 0, step, torch.arange(len(length)))
    return mask_batch(batch(representation, length), length, protocol=protocol, keys=keys)


def columns(tokens: Tensor) -> Tensor:
    return tokens if tokens.dim() == 3 else tokens[..., None]


def is_mask(tokens: Tensor) -> Tensor:
    """bool [b, t]: every token type is MASK."""
    vocabulary = CP if tokens.dim() == 3 else REMI
    return (columns(tokens) == torch.tensor(vocabulary.mask)).all(-1)


def chi_square(counts: Tensor) -> float:
    """In units of standard deviations of the chi-square distribution, 0 = as expected."""
    expected = counts.sum() / len(counts)
    statistic, freedom = ((counts - expected) ** 2 / expected).sum().item(), len(counts) - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5


def test_hash_is_splitmix64() -> None:
    """The published first outputs of splitmix64 for the state 1234567."""
    from midibert_ray.data import hashing

    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    state = torch.tensor([1234567]) + torch.arange(1, 5) * hashing.STEP
    assert [x % 2**64 for x in hashing.mix(state).tolist()] == expected
    assert splitmix64.mix(state.numpy().astype(np.uint64)).tolist() == expected


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_paper_masks_77_of_512_and_exactly_62_8_7(representation: str) -> None:
    length = torch.tensor([512, 300, 1, 0] * 8)
    out = masked(representation, length, PAPER)
    assert (out.where.sum(1) == 77).all()
    assert torch.equal(out.targets, batch(representation, length))
    assert torch.equal(out.inputs[~out.where], out.targets[~out.where])
    masks, changed = is_mask(out.inputs) & out.where, (columns(out.inputs) != columns(out.targets)).any(-1)
    # A random row may be MASK or the original by chance: over all ids of CP that is one in 4 * 18 * 88 * 66.
    slack = 0 if representation == "cp" else 2
    assert ((masks.sum(1) - 62).abs() <= slack).all()
    assert (((changed & ~masks).sum(1) - 8).abs() <= slack).all()
    padding = torch.arange(T) >= length[:, None]
    assert (out.where & padding)[1].any()


def test_paper_attends_by_the_masked_bar_in_cp_and_by_the_original_in_remi() -> None:
    length = torch.tensor([512, 100] * 20)
    out = masked("cp", length, PAPER)
    assert torch.equal(out.attention_mask, out.inputs[..., 0] != 2)
    real = torch.arange(T) < length[:, None]
    assert (out.attention_mask & ~real).any() and (~out.attention_mask & real).any()
    out = masked("remi", length, PAPER)
    assert torch.equal(out.attention_mask, real)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_clean_never_touches_padding_nor_draws_special_ids(representation: str) -> None:
    length = torch.tensor([512, 300, 7, 3, 1, 0] * 20)
    out = masked(representation, length, CLEAN)
    real = torch.arange(T) < length[:, None]
    assert torch.equal(out.attention_mask, real)
    assert not (out.where & ~real).any()
    assert out.where.sum(1).tolist() == [77, 45, 1, 1, 1, 0] * 20
    visible = columns(out.inputs)[real & ~is_mask(out.inputs)]
    pad = torch.tensor((CP if representation == "cp" else REMI).pad)
    assert (visible < pad).all()


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_count_is_known_without_the_tokens(protocol: Protocol, representation: str) -> None:
    length = torch.tensor([512, 511, 300, 10, 3, 1, 0])
    count = masked_count(length, protocol=protocol, segment=T, fraction=0.15)
    assert count.dtype == torch.int64
    assert torch.equal(count, masked(representation, length, protocol).where.sum(1))


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_clean_rates_are_80_10_10(representation: str) -> None:
    out = masked(representation, torch.full((400,), 512), CLEAN)
    chosen = out.where.sum().item()
    masks = (is_mask(out.inputs) & out.where).sum().item()
    changed = ((columns(out.inputs) != columns(out.targets)).any(-1) & ~is_mask(out.inputs)).sum().item()
    deviation = (0.1 * 0.9 / chosen) ** 0.5
    assert masks / chosen == pytest.approx(0.8, abs=5 * deviation)
    assert changed / chosen == pytest.approx(0.1, abs=5 * deviation)
    per_row = (is_mask(out.inputs) & out.where).sum(1)
    assert len(per_row.unique()) > 5, "decided position by position, not by quota"


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_random_ids_are_uniform(protocol: Protocol, representation: str) -> None:
    vocabulary = CP if representation == "cp" else REMI
    length = torch.full((600,), 512)
    # The original is outside every table: whatever is neither it nor MASK was drawn.
    tokens = torch.full_like(batch(representation, length), -1)
    out = mask_batch(tokens, length, protocol=protocol, keys=row_keys(3, 0, 0, torch.arange(600)))
    drawn = columns(out.inputs)[(columns(out.inputs) >= 0).all(-1) & ~is_mask(out.inputs)]
    sizes = vocabulary.sizes if protocol is PAPER else vocabulary.pad
    for column, n in zip(drawn.unbind(-1), sizes, strict=True):
        counts = column.bincount(minlength=n).double()
        assert len(counts) == n
        if protocol is PAPER and representation == "remi":
            counts = counts[:-1]  # a drawn MASK cannot be told from a set one
        assert abs(chi_square(counts)) < 4
    if representation == "cp":
        joint = (drawn[:, 0] * sizes[1] + drawn[:, 1]).bincount(minlength=sizes[0] * sizes[1]).double()
        assert abs(chi_square(joint)) < 4, "token types are drawn independently"


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_every_position_is_chosen_equally_often(protocol: Protocol) -> None:
    where = masked("cp", torch.full((1500,), 512), protocol).where
    counts = where.sum(0).double()
    # Drawn without replacement: the variance is that of a proportion, not of a Poisson count.
    z = (counts - 1500 * 77 / 512) / (1500 * (77 / 512) * (1 - 77 / 512)) ** 0.5
    assert z.abs().max() < 4.5
    assert z.square().mean().item() == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize("change", ["seed", "epoch", "step", "row"])
def test_choices_of_other_seeds_epochs_steps_and_rows_are_independent(change: str) -> None:
    rows = torch.arange(300)
    base = {"seed": 5, "epoch": 2, "step": 9}
    other = base | {change: base[change] + 1} if change != "row" else base
    length = torch.full((300,), 512)
    first = mask_batch(batch("cp", length), length, protocol=PAPER, keys=row_keys(**base, rows=rows))
    second = mask_batch(
        batch("cp", length), length, protocol=PAPER, keys=row_keys(**other, rows=rows + (change == "row"))
    )
    overlap = (first.where & second.where).sum(1).double()
    expected, deviation = 77 * 77 / 512, (77 * 77 / 512 * (435 / 512) * (435 / 511)) ** 0.5
    assert overlap.mean().item() == pytest.approx(expected, abs=5 * deviation / 300**0.5)


def test_keys_do_not_collide() -> None:
    keys = [row_keys(s, e, k, torch.arange(64)) for s in range(4) for e in range(8) for k in range(16)]
    assert len(torch.cat(keys).unique()) == 64 * 4 * 8 * 16


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_the_layout_changes_nothing(protocol: Protocol, representation: str) -> None:
    length = torch.tensor([512, 40, 300, 0, 512, 7, 99, 512])
    tokens, rows = batch(representation, length), torch.arange(8)
    whole = mask_batch(tokens, length, protocol=protocol, keys=row_keys(1, 2, 3, rows))
    for part in (rows[:3], rows[3:], rows[::2], rows.flip(0)):
        keys = row_keys(1, 2, 3, part)
        piece = mask_batch(tokens[part], length[part], protocol=protocol, keys=keys)
        for name in ("inputs", "targets", "where", "attention_mask"):
            assert torch.equal(getattr(piece, name), getattr(whole, name)[part]), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_a_gpu_masks_alike(protocol: Protocol) -> None:
    length = torch.tensor([512, 40, 0])
    cpu = masked("cp", length, protocol)
    keys = row_keys(0, 0, 0, torch.arange(3, device="cuda"))
    gpu = mask_batch(batch("cp", length).cuda(), length.cuda(), protocol=protocol, keys=keys)
    assert torch.equal(gpu.inputs.cpu(), cpu.inputs)
    assert torch.equal(gpu.where.cpu(), cpu.where)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_each_repair_of_masking_changes_its_own_part(representation: str) -> None:
    length = torch.tensor([512, 200, 40, 1] * 50)
    real = torch.arange(T) < length[:, None]
    paper = masked(representation, length, PAPER)

    spared = masked(representation, length, PAPER.switch(masks_padding=False))
    assert (paper.where & ~real).any() and not (spared.where & ~real).any()
    assert torch.equal(spared.where[length == 512], paper.where[length == 512])

    drawn = masked(representation, length, PAPER.switch(mask_shares="drawn"))
    assert torch.equal(drawn.where, paper.where)
    assert {int(n) for n in is_mask(paper.inputs).sum(1)} <= {62, 63, 64}  # in REMI a random id may be MASK
    assert len({int(n) for n in is_mask(drawn.inputs).sum(1)}) > 5

    real_ids = masked(representation, length, PAPER.switch(random_ids="real"))
    assert torch.equal(real_ids.where, paper.where)
    assert set(is_mask(real_ids.inputs).sum(1).tolist()) == {62}
    limits = torch.tensor((CP if representation == "cp" else REMI).pad)
    special = (columns(real_ids.inputs) >= limits).any(-1) & ~is_mask(real_ids.inputs)
    assert not (special & real).any()

    attended = masked(representation, length, PAPER.switch(attends_masked_padding=False))
    assert torch.equal(attended.inputs, paper.inputs)
    assert torch.equal(attended.attention_mask, real)
    assert torch.equal(paper.attention_mask, real) is (representation == "remi")


def test_wrong_settings_are_named() -> None:
    length = torch.tensor([4])
    with pytest.raises(ValueError, match=r"fraction 1\.5"):
        masked_count(length, protocol=CLEAN, segment=8, fraction=1.5)


def test_noise_changes_the_chosen_notes_a_little_and_no_others(sample_store: TokenStore) -> None:
    segments = Segments([sample_store], length=T)
    raw = segments.gather(np.arange(len(segments)))
    tokens, length = torch.from_numpy(raw.tokens).long(), torch.from_numpy(raw.length)
    noisy = noise_batch(tokens, length, keys=row_keys(3, 0, 1, torch.arange(len(length))))
    assert torch.equal(noisy.where.sum(1), (length.double() * 0.3).round().long())
    assert torch.equal(noisy.attention_mask, torch.arange(T) < length[:, None])
    assert torch.equal(noisy.inputs[~noisy.where], tokens[~noisy.where])
    step = (noisy.inputs - tokens)[noisy.where]
    assert (step != 0).any(1).all()
    assert (step[:, 0] == 0).all()
    assert step.amin(0).tolist() == [0, -4, -12, -12]
    assert step.amax(0).tolist() == [0, 3, 11, 11]
    for family, pad in enumerate(CP.pad):
        assert (noisy.inputs[..., family][noisy.where] < pad).all()


def test_a_note_that_noise_would_leave_moves_by_a_semitone() -> None:
    tokens = torch.tensor([1, 0, CP.pad[2] - 1, 0]).repeat(4000, 1, 1)
    noisy = noise_batch(tokens, torch.ones(4000, dtype=torch.long), keys=row_keys(0, 0, 0, torch.arange(4000)))
    assert (noisy.inputs != tokens).any(-1).all()
