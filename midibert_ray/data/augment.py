"""Augmentation of segments, on the device: CP tokens that another performance of the same music could have.

Nothing is drawn from a generator: every draw is a hash of a row's key (`masking.row_keys`) and a purpose, so that a
segment is changed alike by any number of workers and after a resume. Notes keep their order, but where a line of them
moves past the others; where some move or are left out, labels follow by the index that is given back.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from midibert_ray.data.hashing import below, position_bits, row_bits
from midibert_ray.data.segments import SegmentBatch
from midibert_ray.music.vocabulary import BAR_CONTINUE, BAR_NEW, CP, DURATIONS, PITCHES, POSITIONS

_TRANSPOSE, _SHIFT, _SCALE, _THIN, _OCTAVE, _DEAL = 16, 17, 18, 19, 20, 21
_UNIT = 1 << 31
_SEMITONES = 12


@dataclass(frozen=True, kw_only=True)
class Augmented:
    """A batch with its notes changed."""

    tokens: Tensor
    """int64 [b, t, 4], padded on the right."""
    length: Tensor
    """int64 [b], notes of each row."""
    source: Tensor
    """int64 [b, t]: the position in the row that a note had before; padding points at padding."""


def augment(
    tokens: Tensor,
    length: Tensor,
    keys: Tensor,
    *,
    transpose: int = 0,
    shift: int = 0,
    scale: bool = False,
    thin: float = 0,
    octave: float = 0,
    line: Tensor | None = None,
) -> Augmented:
    """Change the notes of each row, by draws of its own.

    Args:
        tokens: int64 [b, t, 4], CP, padded on the right.
        length: int64 [b], notes of each row.
        keys: int64 [b] from `masking.row_keys`.
        transpose: semitones, drawn from -transpose..transpose; for a row whose notes would leave the range of pitches
            from fewer, so that none is lost.
        shift: sixteenths by which bar lines move, drawn from 0..shift (at most 15); of bars of sixteen sixteenths.
        scale: onsets and durations doubled, halved or left, a third each. A row that cannot be halved or doubled
            without a loss (an onset between two sixteenths, a duration shorter or longer than all) is left.
        thin: share of notes that are left out, each by a draw of its own; the first stays.
        octave: share of the rows in which the notes of `line` move an octave up or down, the others stay. A row that
            would lose a note so is left. Notes of one onset then come by pitch and duration again, and of those that
            are alike in both any may be the first: tokens must be in this order, as `Protocol.order="pitch"` has them.
        line: bool [b, t], the notes that move an octave.
    """
    t = tokens.shape[1]
    source = torch.arange(t, device=tokens.device).expand(tokens.shape[:2])
    if octave and line is not None:
        tokens, source = _octave(tokens, length, keys, octave, line)
    if thin:
        tokens, length, kept = _thinned(tokens, length, keys, thin)
        source = source.gather(1, kept)
    real = torch.arange(t, device=tokens.device) < length[:, None]
    onset, position, pitch, duration = onsets(tokens, real), *tokens.unbind(-1)[1:]
    if transpose:
        pitch = _transposed(pitch, real, keys, transpose)
    if scale:
        onset, duration = _scaled(onset, duration, real, keys)
    if shift:
        onset = onset + below(row_bits(keys, _SHIFT), shift + 1)[:, None]
    if scale or shift:
        position = onset % POSITIONS
    bar = onset // POSITIONS
    new = torch.ones_like(bar, dtype=torch.bool)
    new[:, 1:] = bar[:, 1:] != bar[:, :-1]
    # A segment may begin within a bar, whose first note is then in the one before.
    new[:, 0] = tokens[:, 0, 0] == BAR_NEW
    changed = _padded((torch.where(new, BAR_NEW, BAR_CONTINUE), position, pitch, duration), real)
    return Augmented(tokens=changed, length=length, source=source)


def augment_segments(
    batch: SegmentBatch, keys: Tensor, *, line: NDArray[np.bool_] | None = None, **settings: Any
) -> SegmentBatch:
    """A batch with its notes changed by `augment`, and with them all that belongs to a note; keys: int64 [k]."""
    tokens, moved = torch.from_numpy(batch.tokens).long(), None if line is None else torch.from_numpy(line)
    after = augment(tokens, torch.from_numpy(batch.length), keys, line=moved, **settings)
    source, real = after.source.numpy(), np.arange(batch.tokens.shape[1]) < after.length.numpy()[:, None]

    def follow(values: NDArray[Any], padding: int) -> NDArray[Any]:
        return np.where(real, np.take_along_axis(values, source, axis=1), padding).astype(values.dtype)

    return replace(
        batch,
        tokens=after.tokens.numpy().astype(batch.tokens.dtype),
        length=after.length.numpy(),
        note=follow(batch.note, -1),
        velocity=follow(batch.velocity, 0),
        part=follow(batch.part, 0),
    )


def onsets(tokens: Tensor, real: Tensor) -> Tensor:
    """Sixteenths from the first bar of the segment, int64 [b, t]; bars without notes do not count."""
    bars = ((tokens[..., 0] == BAR_NEW) & real).long()
    bars[:, 0] = 0
    return bars.cumsum(1) * POSITIONS + tokens[..., 1]


def _transposed(pitch: Tensor, real: Tensor, keys: Tensor, most: int) -> Tensor:
    low = pitch.masked_fill(~real, PITCHES - 1).amin(1).clamp_max(most)
    high = (PITCHES - 1 - pitch.masked_fill(~real, 0).amax(1)).clamp_max(most)
    return pitch + (below(row_bits(keys, _TRANSPOSE), low + high + 1) - low)[:, None]


def _octave(tokens: Tensor, length: Tensor, keys: Tensor, share: float, line: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with a line an octave higher or lower, in order, and where each note was, int64 [b, t]."""
    t = tokens.shape[1]
    at = torch.arange(t, device=tokens.device)
    real, draw = at < length[:, None], below(row_bits(keys, _OCTAVE), _UNIT)
    step = torch.where(draw < share / 2 * _UNIT, _SEMITONES, torch.where(draw < share * _UNIT, -_SEMITONES, 0))
    position, pitch, duration = tokens[..., 1:].unbind(-1)
    pitch = pitch + step[:, None] * (line & real)
    moves = ((pitch >= 0) & (pitch < PITCHES) | ~real).all(1) & (step != 0)
    # What is alike is dealt out anew, so that the order does not tell which of two notes has moved.
    place = (onsets(tokens, real) * PITCHES + pitch) * DURATIONS + duration
    place = (place << 31) + below(position_bits(keys, t, _DEAL), _UNIT)
    source = torch.where(moves[:, None] & real, place, at + (~real << 62)).argsort(dim=1)
    moved = torch.stack(
        (tokens[..., 0], position, torch.where(moves[:, None], pitch, tokens[..., 2]), duration), dim=-1
    )
    moved = moved.gather(1, source[..., None].expand_as(tokens)).clone()
    moved[..., 0] = tokens[..., 0]  # a bar begins where it did
    return moved, source


def _scaled(onset: Tensor, duration: Tensor, real: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    choice = below(row_bits(keys, _SCALE), 3)
    length = duration + 1
    halves = ~(((onset % 2 == 1) | (length % 2 == 1)) & real).any(1) & (choice == 1)
    doubles = ~((length > DURATIONS // 2) & real).any(1) & (choice == 2)
    onset = torch.where(halves[:, None], onset // 2, torch.where(doubles[:, None], onset * 2, onset))
    length = torch.where(halves[:, None], length // 2, torch.where(doubles[:, None], length * 2, length))
    return onset, length - 1


def _thinned(tokens: Tensor, length: Tensor, keys: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    t = tokens.shape[1]
    at = torch.arange(t, device=tokens.device)
    real, kept = at < length[:, None], _kept(length, keys, t, share)
    # Kept notes first, in their order, then the rest.
    source = torch.where(kept, at, at + t).argsort(dim=1)
    # A bar whose first note is gone begins with the next that is kept.
    bars = ((tokens[..., 0] == BAR_NEW) & real).cumsum(1).gather(1, source)
    new = torch.ones_like(bars, dtype=torch.bool)
    new[:, 1:] = bars[:, 1:] != bars[:, :-1]
    new[:, 0] = tokens[:, 0, 0] == BAR_NEW
    moved = tokens.gather(1, source[..., None].expand_as(tokens)).clone()
    moved[..., 0] = torch.where(new, BAR_NEW, BAR_CONTINUE)
    count = kept.sum(1)
    return _padded(moved.unbind(-1), at < count[:, None]), count, source


def _padded(columns: Iterable[Tensor], real: Tensor) -> Tensor:
    """Token types int64 [b, t] side by side, PAD where not `real` (bool [b, t]); nothing is copied to the device."""
    return torch.stack([torch.where(real, column, pad) for column, pad in zip(columns, CP.pad, strict=True)], dim=-1)


def _kept(length: Tensor, keys: Tensor, segment: int, share: float) -> Tensor:
    at = torch.arange(segment, device=length.device)
    spared = below(position_bits(keys, segment, _THIN), _UNIT) >= share * _UNIT
    return (at < length[:, None]) & (spared | (at == 0))


def thinned_length(length: Tensor, keys: Tensor, segment: int, share: float) -> Tensor:
    """Notes that `augment` with `thin=share` leaves of rows of `length` int64 [b] notes: int64 [b]."""
    return _kept(length, keys, segment, share).sum(1) if share else length
