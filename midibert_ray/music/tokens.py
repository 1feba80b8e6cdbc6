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
from midibert_ray.music.metre import SUBBEATS_PER_BAR, signatures
from midibert_ray.music.midi import Notes, Track, notes_to_pretty_midi
from midibert_ray.music.vocabulary import (
    BAR_CONTINUE,
    BAR_NEW,
    CP_PAD,
    PITCH_LOW,
    REMI_BAR,
    REMI_DURATION,
    REMI_PAD,
    REMI_PITCH,
    REMI_POSITION,
)

SUBBEAT_TICKS = TICKS_PER_BEAT // SUBBEATS_PER_BEAT
THIRTY_SECOND_TICKS = SUBBEAT_TICKS // 2

SPECIAL = "special token"
"""Reason for which `decode` drops a row: a PAD or MASK id in it."""

DEFAULT_VELOCITY = 80
"""Velocity of decoded notes that have none of their own (forte, the commonest class of POP909)."""


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
    """What else a reader should know of the piece, counted; see `music.grid`."""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, kw_only=True)
class RemiTokens:
    """A piece as REMI ids."""

    ids: NDArray[np.uint8]
    """[m]"""
    note: NDArray[np.int32]
    """[m] the note (CP row) that a token belongs to, -1 for Bar."""
    pitch_at: NDArray[np.int64]
    """[n] where the Pitch token of a note stands: note-level labels belong there."""


def encode(grid: GridNotes) -> Tokens:
    """`GridNotes` -> CP rows. The first note of every non-empty bar has Bar New."""
    tokens = np.empty((len(grid), 4), dtype=np.uint8)
    tokens[:, 0] = np.where(np.diff(grid.bar, prepend=-1) != 0, BAR_NEW, BAR_CONTINUE)
    tokens[:, 1] = grid.onset - grid.bar
    tokens[:, 2] = grid.pitch - PITCH_LOW
    tokens[:, 3] = grid.duration
    return Tokens(
        tokens=tokens,
        onset=grid.onset,
        velocity=grid.velocity,
        part=grid.part,
        dropped=dict(grid.dropped),
        remarks=dict(grid.remarks),
    )


def decode(tokens: Tokens | NDArray[np.integer]) -> GridNotes:
    """CP rows -> `GridNotes`, sorted by onset.

    Args:
        tokens: `Tokens`, whose onsets are taken as they are; or ids [n, 4] alone (a model's output), where
            bars are counted from Bar New, so that empty bars are lost, and every note has velocity 80 and
            part 0.

    Rows with a PAD or MASK id are dropped and counted as "special token".

    Raises:
        ValueError: not [n, 4].
    """
    if not isinstance(tokens, Tokens):
        tokens = _from_ids(np.asarray(tokens))
    real: NDArray[np.bool_] = np.all(tokens.tokens < np.array(CP_PAD), axis=1)
    order = np.flatnonzero(real)
    order = order[np.argsort(tokens.onset[order], kind="stable")]
    dropped = dict(tokens.dropped)
    if len(order) < len(real):
        dropped[SPECIAL] = dropped.get(SPECIAL, 0) + len(real) - len(order)
    return GridNotes(
        onset=tokens.onset[order],
        bar=tokens.onset[order] - tokens.tokens[order, 1],
        duration=tokens.tokens[order, 3],
        pitch=tokens.tokens[order, 2] + np.uint8(PITCH_LOW),
        velocity=tokens.velocity[order],
        part=tokens.part[order],
        dropped=dropped,
    )


def _from_ids(ids: NDArray[np.integer]) -> Tokens:
    if ids.ndim != 2 or ids.shape[1] != 4:
        raise ValueError(f"CP ids have shape [n, 4]; got {list(ids.shape)}")
    bar = np.maximum(np.cumsum(ids[:, 0] == BAR_NEW) - 1, 0)
    return Tokens(
        tokens=ids.astype(np.uint8),
        onset=(bar * SUBBEATS_PER_BAR + ids[:, 1]).astype(np.int32),
        velocity=np.full(len(ids), DEFAULT_VELOCITY, dtype=np.uint8),
        part=np.zeros(len(ids), dtype=np.uint8),
    )


def to_pretty_midi(tokens: Tokens | NDArray[np.integer], tempo: float = 120.0) -> pretty_midi.PrettyMIDI:
    """CP rows -> `PrettyMIDI` at 480 ticks per beat, all grand piano.

    Every part is an instrument: MELODY, BRIDGE, PIANO, and NOTES for notes of unknown part. Because one
    note-off ends every open note of its pitch in a track, notes of one pitch that overlap go to further
    instruments of the same part ("PIANO 2"); nothing merges, and reading the file gives the notes back. Where bars are
    not those of 4/4, time signatures tell them.

    Args:
        tokens: as in `decode`.
        tempo: beats (quarters) per minute.
    """
    grid = decode(tokens)
    start = grid.onset.astype(np.int64) * SUBBEAT_TICKS
    end = start + (grid.duration.astype(np.int64) + 1) * THIRTY_SECOND_TICKS
    voice = _voices(grid.part, grid.pitch, start, end)
    keys, track = np.unique(np.stack([grid.part, voice]), axis=1, return_inverse=True)
    names = ("NOTES", *PARTS)
    tracks = [f"{names[part]} {voice + 1}" if voice else names[part] for part, voice in keys.T.tolist()]
    notes = Notes(
        start=start,
        end=end,
        pitch=grid.pitch,
        # A note-on of velocity 0 is a note-off.
        velocity=np.maximum(grid.velocity, 1),
        track=track.reshape(-1).astype(np.int32),
        tracks=tuple(Track(name=name, program=0, is_drum=False) for name in tracks),
        ticks_per_beat=TICKS_PER_BEAT,
        tempo_ticks=np.zeros(1, dtype=np.int64),
        tempo_seconds=np.zeros(1),
        seconds_per_tick=np.full(1, 60.0 / (tempo * TICKS_PER_BEAT)),
        metre=signatures(grid.bar.astype(np.int64), grid.onset.astype(np.int64), SUBBEAT_TICKS),
    )
    return notes_to_pretty_midi(notes)


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


def remi_length(cp: NDArray[np.integer]) -> int:
    """Length of the REMI sequence of CP rows [n, 4]: three tokens a note, and one a non-empty bar."""
    return 3 * len(cp) + int((cp[:, 0] == BAR_NEW).sum())


def remi_from_cp(cp: NDArray[np.integer]) -> RemiTokens:
    """CP rows [n, 4] (no PAD or MASK) -> REMI: Bar at Bar New, then Position, Pitch, Duration of a note."""
    new_bar = cp[:, 0] == BAR_NEW
    pitch_at = 3 * np.arange(len(cp), dtype=np.int64) + np.cumsum(new_bar) + 1
    ids = np.full(remi_length(cp), REMI_BAR, dtype=np.uint8)
    note = np.full(len(ids), -1, dtype=np.int32)
    for step, (column, base) in enumerate(((1, REMI_POSITION), (2, REMI_PITCH), (3, REMI_DURATION))):
        ids[pitch_at + step - 1] = cp[:, column] + base
        note[pitch_at + step - 1] = np.arange(len(cp))
    return RemiTokens(ids=ids, note=note, pitch_at=pitch_at)


def cp_from_remi(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """REMI ids [m] -> CP rows uint8[n, 4]; the inverse of `remi_from_cp`, PAD at the end is taken off.

    Raises:
        ValueError: the ids are not bars of (Position, Pitch, Duration) groups.
    """
    ids = np.asarray(ids, dtype=np.int64)
    ids = ids[ids != REMI_PAD]
    is_bar = ids == REMI_BAR
    notes = ids[~is_bar]
    if len(notes) % 3:
        raise ValueError(f"REMI ids have three tokens a note; {len(notes)} is not a multiple of three")
    table = notes.reshape(-1, 3) - (REMI_POSITION, REMI_PITCH, REMI_DURATION)
    sizes = np.array(CP_PAD[1:])
    if ((table < 0) | (table >= sizes)).any():
        bad = int(np.flatnonzero(((table < 0) | (table >= sizes)).any(axis=1))[0])
        raise ValueError(f"REMI note {bad} is not Position, Pitch, Duration: ids {notes[3 * bad : 3 * bad + 3]}")
    before = np.cumsum(~is_bar)[is_bar]
    if (before % 3).any():
        raise ValueError("a REMI Bar stands inside a note (Position, Pitch, Duration)")
    bar = np.full((len(table), 1), BAR_CONTINUE)
    starts = before // 3
    bar[starts[starts < len(table)]] = BAR_NEW
    return np.concatenate([bar, table], axis=1).astype(np.uint8)
