"""Notes <-> CP <-> REMI (paper §III-A).

A CP row is one note: (Bar, Position, Pitch, Duration). Bars without a note yield nothing, so the ids alone do
not tell how long a silence was; `Tokens.onset` does, and makes the way back to MIDI exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pretty_midi
from numpy.typing import NDArray

from midibert_ray.music.grid import PARTS, SUBBEATS_PER_BEAT, TICKS_PER_BEAT, GridNotes
from midibert_ray.music.metre import signatures
from midibert_ray.music.midi import Notes, Track, notes_to_pretty_midi
from midibert_ray.music.vocabulary import (
    BAR_CONTINUE,
    BAR_NEW,
    CP_PAD,
    FAMILIES,
    PITCH_LOW,
    POSITIONS,
    REMI_BAR,
    REMI_DURATION,
    REMI_PITCH,
    REMI_POSITION,
)

_SUBBEAT_TICKS = TICKS_PER_BEAT // SUBBEATS_PER_BEAT
_THIRTY_SECOND_TICKS = _SUBBEAT_TICKS // 2


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A piece as CP rows, and facts of its notes that the ids do not hold."""

    tokens: NDArray[np.uint8]
    """[n, 4] ids: Bar, Position, Pitch, Duration."""
    onset: NDArray[np.int32]
    """[n] sub-beats from the start of bar 0."""
    velocity: NDArray[np.uint8]
    """[n] MIDI 0..127."""
    part: NDArray[np.uint8]
    """[n] 1 melody, 2 bridge, 3 accompaniment, 0 unknown."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Notes of the file that are not here, by reason."""
    remarks: Mapping[str, int] = field(default_factory=dict)
    """Facts that a reader should know of the piece, counted; see `music.grid`."""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, kw_only=True)
class RemiTokens:
    """A piece as REMI ids."""

    ids: NDArray[np.uint8]
    """[m]"""
    pitch_at: NDArray[np.int64]
    """[n] where the Pitch token of a note stands: note-level labels belong there."""


def encode(grid: GridNotes) -> Tokens:
    """`GridNotes` -> CP rows. The first note of every non-empty bar has Bar New."""
    ids = np.empty((len(grid), 4), dtype=np.uint8)
    ids[:1, 0] = BAR_NEW
    ids[1:, 0] = np.where(grid.bar[1:] == grid.bar[:-1], BAR_CONTINUE, BAR_NEW)
    ids[:, 1] = grid.onset - grid.bar
    ids[:, 2] = grid.pitch - PITCH_LOW
    ids[:, 3] = grid.duration
    return Tokens(
        tokens=ids,
        onset=grid.onset,
        velocity=grid.velocity,
        part=grid.part,
        dropped=grid.dropped,
        remarks=grid.remarks,
    )


def decode(ids: NDArray[np.integer]) -> Tokens:
    """Ids -> a piece in 4/4: [n, 4] (CP) or [m] (REMI), without PAD and MASK.

    Ids do not tell of bars without notes, nor of the length of bars: bars follow one another at every whole note. Nor
    do they tell velocities, which are 80 here.

    Raises:
        ValueError: ids of another shape, or where none may stand.
    """
    cp = np.asarray(ids).astype(np.int64)
    if cp.ndim == 1:
        cp = _cp_from_remi(cp)
    if cp.ndim != 2 or cp.shape[1] != len(FAMILIES):
        raise ValueError(
            f"ids of shape {list(cp.shape)} are no piece; give [notes, {len(FAMILIES)}] (CP) or [m] (REMI)"
        )
    if (bad := (cp < 0) | (cp >= CP_PAD)).any():
        row, column = np.argwhere(bad)[0].tolist()
        raise ValueError(
            f"note {row} has the id {cp[row, column]} in the column {FAMILIES[column]}; notes have 0 to "
            f"{CP_PAD[column] - 1}, without PAD and MASK"
        )
    bar = np.maximum(np.cumsum(cp[:, 0] == BAR_NEW) - 1, 0)
    return Tokens(
        tokens=cp.astype(np.uint8),
        onset=(bar * POSITIONS + cp[:, 1]).astype(np.int32),
        velocity=np.full(len(cp), 80, dtype=np.uint8),
        part=np.zeros(len(cp), dtype=np.uint8),
    )


def _cp_from_remi(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """REMI ids -> CP rows; a ValueError where a note is no Position, Pitch and Duration."""
    is_bar = ids == REMI_BAR
    notes, first = ids[~is_bar], np.flatnonzero(~is_bar)[::3]
    if len(notes) % 3 or (np.diff(np.flatnonzero(~is_bar).reshape(-1, 3)) != 1).any():
        raise ValueError(f"{len(notes)} REMI ids beside Bar; a note is Position, Pitch and Duration in a row")
    begins = np.searchsorted(np.flatnonzero(is_bar), first)
    new_bar = np.append(begins[:1] > 0, np.diff(begins) > 0)
    columns = notes.reshape(-1, 3) - (REMI_POSITION, REMI_PITCH, REMI_DURATION)
    return np.column_stack([np.where(new_bar, BAR_NEW, BAR_CONTINUE), columns])


def to_pretty_midi(tokens: Tokens, tempo: float = 120.0) -> pretty_midi.PrettyMIDI:
    """CP rows (no PAD or MASK) -> `PrettyMIDI`, as `to_notes` lays them out, at a tempo of quarters a minute."""
    return notes_to_pretty_midi(to_notes(tokens, tempo))


def to_notes(tokens: Tokens, tempo: float = 120.0) -> Notes:
    """CP rows (no PAD or MASK) -> `Notes` at 480 ticks per beat, all grand piano.

    Every part is an instrument: MELODY, BRIDGE, PIANO, and NOTES for notes of unknown part. Because one
    note-off ends every open note of its pitch in a track, notes of one pitch that overlap go to further
    instruments of the same part ("PIANO 2"); nothing merges, and reading the file gives the notes back. Where bars are
    not those of 4/4, time signatures tell them.

    Args:
        tokens: as `encode` made them.
        tempo: beats (quarters) per minute.
    """
    onset, (_, position, pitch, duration) = tokens.onset.astype(np.int64), tokens.tokens.astype(np.int64).T
    pitch += PITCH_LOW
    start = onset * _SUBBEAT_TICKS
    end = start + (duration + 1) * _THIRTY_SECOND_TICKS
    voice = _voices(tokens.part, pitch, start, end)
    keys, track = np.unique(np.stack([tokens.part, voice]), axis=1, return_inverse=True)
    names = ("NOTES", *PARTS)
    tracks = [f"{names[part]} {voice + 1}" if voice else names[part] for part, voice in keys.T.tolist()]
    return Notes(
        start=start,
        end=end,
        pitch=pitch.astype(np.uint8),
        # A note-on of velocity 0 is a note-off.
        velocity=np.maximum(tokens.velocity, 1),
        track=track.reshape(-1).astype(np.int32),
        tracks=tuple(Track(name=name, program=0, is_drum=False) for name in tracks),
        ticks_per_beat=TICKS_PER_BEAT,
        tempo_ticks=np.zeros(1, dtype=np.int64),
        seconds_per_tick=np.full(1, 60.0 / (tempo * TICKS_PER_BEAT)),
        metre=signatures(onset - position, onset, _SUBBEAT_TICKS),
    )


def _voices(part: NDArray, pitch: NDArray, start: NDArray, end: NDArray) -> NDArray[np.int64]:
    """[n] the lowest voice in which the note's pitch is free: no two notes of a voice and pitch overlap."""
    voice = np.zeros(len(start), dtype=np.int64)
    free_at: dict[tuple[int, int], list[int]] = {}
    order = np.lexsort((end, start))
    columns = zip(order.tolist(), *(c[order].tolist() for c in (part, pitch, start, end)), strict=True)
    for index, part_of, pitch_of, begins, ends in columns:
        voices = free_at.setdefault((part_of, pitch_of), [])
        chosen = next((v for v, free in enumerate(voices) if free <= begins), len(voices))
        voices[chosen : chosen + 1] = [ends]
        voice[index] = chosen
    return voice


def remi_from_cp(cp: NDArray[np.integer]) -> RemiTokens:
    """CP rows [n, 4] (no PAD or MASK) -> REMI: Bar at Bar New, then Position, Pitch, Duration of a note."""
    new_bar = cp[:, 0] == BAR_NEW
    pitch_at = 3 * np.arange(len(cp), dtype=np.int64) + np.cumsum(new_bar) + 1
    ids = np.full(3 * len(cp) + np.count_nonzero(new_bar), REMI_BAR, dtype=np.uint8)
    for step, (column, base) in enumerate(((1, REMI_POSITION), (2, REMI_PITCH), (3, REMI_DURATION))):
        ids[pitch_at + step - 1] = cp[:, column] + base
    return RemiTokens(ids=ids, pitch_at=pitch_at)
