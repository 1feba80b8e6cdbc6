"""Augmentation: what changes, what stays, and the same draws whatever the layout."""

import numpy as np
import pytest
import torch
from torch import Tensor

from midibert_ray.data.augment import Augmented, augment, thinned_length
from midibert_ray.data.hashing import row_keys
from midibert_ray.data.segments import Segments
from midibert_ray.data.store import TokenStore
from midibert_ray.music.vocabulary import BAR_NEW, CP, POSITIONS

Batch = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def batch(sample_store: TokenStore) -> Batch:
    """Real segments: tokens int64 [b, 128, 4], their lengths, and keys."""
    segments = Segments([sample_store], length=128)
    raw = segments.gather(np.arange(len(segments)))
    return (
        torch.from_numpy(raw.tokens).long(),
        torch.from_numpy(raw.length),
        row_keys(7, 1, 2, torch.arange(len(raw.length))),
    )


def real(tokens: Tensor, length: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1]) < length[:, None]


def onsets(tokens: Tensor) -> Tensor:
    """Sixteenths from the first bar line of each row."""
    return (tokens[..., 0] == BAR_NEW).cumsum(1) * POSITIONS + tokens[..., 1]


def steps(values: Tensor, inside: Tensor) -> list[Tensor]:
    return [row[keep].diff() for row, keep in zip(values, inside, strict=True)]


def check(after: Augmented) -> None:
    """What every result has to be: ids of notes, onsets that never fall, PAD behind."""
    inside = real(after.tokens, after.length)
    for family, pad in enumerate(CP.pad):
        assert (after.tokens[..., family][inside] < pad).all()
        assert (after.tokens[..., family][~inside] == pad).all()
    assert all((step >= 0).all() for step in steps(onsets(after.tokens), inside))


def test_nothing_is_changed_by_default(batch: Batch) -> None:
    tokens, length, keys = batch
    after = augment(tokens, length, keys)
    assert torch.equal(after.tokens, tokens)
    assert torch.equal(after.source, torch.arange(128).expand(len(tokens), 128))


def test_transposition_moves_all_notes_of_a_row_alike_and_loses_none(batch: Batch) -> None:
    tokens, length, keys = batch
    after = augment(tokens, length, keys, transpose=6)
    check(after)
    moved = (after.tokens[..., 2] - tokens[..., 2]).masked_fill(~real(tokens, length), 0)
    drawn = torch.where(moved.amin(1) < 0, moved.amin(1), moved.amax(1))
    assert (moved[real(tokens, length)] == drawn[:, None].expand_as(moved)[real(tokens, length)]).all()
    assert len(set(drawn.tolist())) > 6
    assert drawn.abs().max() <= 6
    others = [0, 1, 3]
    assert torch.equal(after.tokens[..., others], tokens[..., others])


def test_a_row_at_the_edge_of_the_range_is_moved_less(batch: Batch) -> None:
    tokens, length, _ = batch
    tokens = tokens[:1].repeat(200, 1, 1)
    tokens[:, 0, 2], tokens[:, 1, 2] = 2, 85
    after = augment(tokens, length[:1].repeat(200), row_keys(0, 0, 0, torch.arange(200)), transpose=6)
    moved = after.tokens[:, 0, 2] - 2
    assert sorted(set(moved.tolist())) == [-2, -1, 0]


def test_shifted_bar_lines_leave_time_between_notes(batch: Batch) -> None:
    tokens, length, keys = batch
    after = augment(tokens, length, keys, shift=15)
    check(after)
    inside = real(tokens, length)
    shifts = (after.tokens[:, 0, 1] - tokens[:, 0, 1]) % POSITIONS
    assert len(set(shifts.tolist())) > 8
    expected = (onsets(tokens) + shifts[:, None]) % POSITIONS
    assert torch.equal(after.tokens[..., 1][inside], expected[inside])
    for before, now in zip(steps(onsets(tokens), inside), steps(onsets(after.tokens), inside), strict=True):
        # A bar that has no note any more has no token.
        assert ((now <= before) & ((before - now) % POSITIONS == 0)).all()
    assert torch.equal(after.tokens[..., 2:], tokens[..., 2:])


def test_scaling_doubles_or_halves_without_a_loss(batch: Batch) -> None:
    tokens, length, keys = batch
    tokens = tokens.clone()
    inside = real(tokens, length)
    tokens[..., 3] = torch.where(inside, tokens[..., 3].clamp_max(31), tokens[..., 3])
    tokens[::2, :, 1] = torch.where(inside[::2], tokens[::2, :, 1] // 2 * 2, tokens[::2, :, 1])
    tokens[::2, :, 3] = torch.where(inside[::2], tokens[::2, :, 3] // 2 * 2 + 1, tokens[::2, :, 3])
    tokens[::2, :, 3] = torch.where(inside[::2], tokens[::2, :, 3].clamp_max(31), tokens[::2, :, 3])
    after = augment(tokens, length, keys, scale=True)
    check(after)
    factors = set()
    for row in range(len(tokens)):
        keep = inside[row]
        factor = ((after.tokens[row, 0, 3] + 1) / (tokens[row, 0, 3] + 1)).item()
        factors.add(factor)
        assert torch.equal(after.tokens[row, keep, 3] + 1, ((tokens[row, keep, 3] + 1) * factor).long())
        first = tokens[row, 0, 1]
        relative = (onsets(tokens)[row, keep] - onsets(tokens)[row, 0] + first) * factor
        assert torch.equal(after.tokens[row, keep, 1], relative.long() % POSITIONS)
    assert factors == {0.5, 1.0, 2.0}


def test_thinned_notes_keep_their_bars_and_labels_follow(batch: Batch) -> None:
    tokens, length, keys = batch
    after = augment(tokens, length, keys, thin=0.3)
    check(after)
    assert torch.equal(after.length, thinned_length(length, keys, 128, 0.3))
    assert 0.65 < after.length.sum() / length.sum() < 0.75
    bars = (tokens[..., 0] == BAR_NEW).cumsum(1)
    for row, count in enumerate(after.length.tolist()):
        source = after.source[row, :count]
        assert (source.diff() > 0).all()
        assert torch.equal(after.tokens[row, :count, 1:], tokens[row, source, 1:])
        assert torch.equal(after.tokens[row, 1:count, 0] == BAR_NEW, bars[row, source].diff() > 0)


def test_a_row_is_changed_alike_in_any_company(batch: Batch) -> None:
    tokens, length, keys = batch
    settings = {"transpose": 6, "shift": 15, "scale": True, "thin": 0.1, "octave": 1.0}
    line = tokens[..., 2] > 40
    whole = augment(tokens, length, keys, line=line, **settings)
    alone = augment(tokens[5:7], length[5:7], keys[5:7], line=line[5:7], **settings)
    assert torch.equal(whole.tokens[5:7], alone.tokens)
    assert torch.equal(whole.source[5:7], alone.source)


def test_a_line_moves_an_octave_against_the_rest_and_the_order_does_not_tell_it(batch: Batch) -> None:
    tokens, length, keys = batch
    keys = torch.cat([keys + draw for draw in range(8)])
    tokens, length = tokens.repeat(8, 1, 1), length.repeat(8)
    line = torch.arange(128).expand(len(tokens), 128) % 3 == 0
    after = augment(tokens, length, keys, octave=0.5, line=line)
    check(after)
    inside = real(tokens, length)
    assert torch.equal(after.tokens[..., 0], tokens[..., 0])
    assert torch.equal(after.source.sort(1).values, torch.arange(128).expand(len(tokens), 128))
    moves = after.tokens[..., 2] - tokens[..., 2].gather(1, after.source)
    for family in (1, 3):
        assert torch.equal(after.tokens[..., family], tokens[..., family].gather(1, after.source))
    steps = set()
    for row, keep in enumerate(inside):
        moved = moves[row, keep]
        step = int(moved[moved != 0][0]) if moved.any() else 0
        steps.add(step)
        assert torch.equal(moved, step * line[row, after.source[row, keep]].long())
        if not step:
            assert torch.equal(after.source[row], torch.arange(128))
            continue
        onset, pitch, duration = onsets(after.tokens)[row, keep], *after.tokens[row, keep, 2:].unbind(-1)
        assert (((onset * 128 + pitch) * 128 + duration).diff() >= 0).all()
    assert steps == {-12, 0, 12}
    share = (moves != 0).any(1).double().mean()
    assert 0.4 < share < 0.6


def test_notes_that_become_alike_come_in_any_order() -> None:
    # two notes of one onset, an octave apart; the upper comes down upon the lower, or the lower rises upon it
    tokens = torch.full((400, 2, 4), 0)
    tokens[:, 0, 0], tokens[:, 1, 0] = BAR_NEW, 1 - BAR_NEW
    tokens[:, :, 2] = torch.tensor([40, 52])
    line = torch.tensor([False, True]).expand(400, 2)
    keys = row_keys(7, 1, 2, torch.arange(400))
    after = augment(tokens, torch.full((400,), 2), keys, octave=1, line=line)
    alike = after.tokens[:, 0, 2] == after.tokens[:, 1, 2]
    first = after.source[alike, 0]
    assert 100 < alike.sum() < 300
    assert 0.35 < first.double().mean() < 0.65


def test_a_row_that_would_lose_a_note_keeps_its_octave(batch: Batch) -> None:
    tokens, length, keys = batch
    edge = tokens.clone()
    inside = real(tokens, length)
    edge[..., 2][inside] = torch.where(torch.arange(128).expand(len(tokens), 128)[inside] % 2 == 0, 5, 80)
    after = augment(edge, length, keys, octave=1, line=torch.ones_like(inside))
    assert torch.equal(after.tokens, edge)
