"""Music as its owner has it (a path, bytes, a `PrettyMIDI`, a symusic `Score`) -> its notes and all else it holds."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pretty_midi
import symusic
from mido.midifiles.meta import KeySignatureError
from numpy.typing import NDArray

from midibert_ray.music.events import Track, without_damage
from midibert_ray.music.midi import (
    MidiError,
    Notes,
    notes_to_pretty_midi,
    read_notes,
    seconds_to_ticks,
    ticks_to_seconds,
)
from midibert_ray.music.score import is_score, read_score
from midibert_ray.music.smf import NoNotesError, pack, split

Frame = Callable[[], pretty_midi.PrettyMIDI]

Source: TypeAlias = str | PathLike[str] | bytes | pretty_midi.PrettyMIDI | Any
"""A path or the bytes of a MIDI or MusicXML file, a `pretty_midi.PrettyMIDI` or a symusic `Score` of any time unit."""

_SCORES = (symusic.core.ScoreTick, symusic.core.ScoreQuarter, symusic.core.ScoreSecond)
_REFUSED = (KeySignatureError, ArithmeticError, EOFError, LookupError, OSError, ValueError)
"""Errors of mido and pretty_midi on files that are damaged, or too long for them."""
_MOST_TICKS = 1 << 27
"""pretty_midi holds a float a tick."""


@dataclass(frozen=True, kw_only=True)
class Song:
    """A piece of music: all its notes, and a way to the rest."""

    name: str
    """Of its file, without folders and ending; empty where there is none."""
    notes: Notes
    """All notes by track, start and pitch; of objects (not of files) those too that have no length."""
    onset_s: NDArray[np.float64]
    """[n] seconds."""
    offset_s: NDArray[np.float64]
    """[n] seconds."""
    frame: Frame = field(repr=False)
    """Makes the piece without its notes: an instrument a track of `notes`, with its controllers and bends, then
    instruments that have no note; tempo, metre, keys, lyrics and texts."""

    def __len__(self) -> int:
        return len(self.notes)

    @property
    def order(self) -> NDArray[np.int64]:
        """[n] indices of the notes by onset, pitch and track, as tables list them."""
        return np.lexsort((self.notes.track, self.notes.pitch, self.onset_s))


def read_song(source: Source | Song, name: str = "") -> Song:
    """A piece from what holds it; a `Song` is handed on.

    Raises:
        MidiError: it cannot be used, or has no notes; ``str(error)`` is one sentence.
        FileNotFoundError: there is no such file.
        TypeError: the source is of another type.
    """
    if isinstance(source, Song):
        return source
    if isinstance(source, pretty_midi.PrettyMIDI):
        return _from_pretty_midi(source, name)
    if isinstance(source, _SCORES):
        return _from_score(source.to(symusic.TimeUnit.tick), name)
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_bytes(bytes(source), name)
    if not isinstance(source, str | PathLike):
        raise TypeError(
            f"a {type(source).__name__} is no piece of music; give a path, the bytes of a MIDI file, a "
            "pretty_midi.PrettyMIDI or a symusic.Score"
        )
    path = Path(source)
    try:
        return _from_bytes(path.read_bytes(), name or path.stem)
    except MidiError as error:
        raise MidiError(f"{path}: {error}") from error


def _from_bytes(data: bytes, name: str) -> Song:
    if is_score(data):
        notes = read_score(data)
        return _at_ticks(name, notes, partial(_frame_of_notes, notes))
    notes = read_notes(data, keep_unreleased=True)
    return _at_ticks(name, notes, partial(_frame_of_bytes, data, notes))


def _at_ticks(name: str, notes: Notes, frame: Frame) -> Song:
    """A piece whose seconds are told by its ticks."""
    onset, offset = ticks_to_seconds(notes, np.stack([notes.start, notes.end]))
    return Song(name=name, notes=notes, onset_s=onset, offset_s=offset, frame=frame)


def _from_score(score: Any, name: str) -> Song:
    """A symusic `Score` in ticks. Its notes are taken as they are: a file could not hold all that may overlap."""
    data = score.dumps_midi()
    sounding = [track for track in score.tracks if len(track.notes)]
    columns = [[t.notes.numpy()[key] for key in ("time", "duration", "pitch", "velocity")] for t in sounding]
    tracks = tuple(Track(name=t.name, program=t.program, is_drum=t.is_drum) for t in sounding)
    if not tracks:
        raise NoNotesError({})
    table = np.concatenate([np.stack(rows).astype(np.int64) for rows in columns], axis=1)
    track = np.repeat(np.arange(len(tracks)), [len(rows[0]) for rows in columns])
    _check_notes(table[0], table[2], table[3])
    start, end, pitch, velocity, track = _ordered(table[0], table[0] + table[1], table[2], table[3], track)
    notes = replace(
        read_notes(data, keep_unreleased=True),
        start=start,
        end=end,
        pitch=pitch.astype(np.uint8),
        velocity=velocity.astype(np.uint8),
        track=track.astype(np.int32),
        tracks=tracks,
        dropped={},
    )
    return _at_ticks(name, notes, partial(_frame_of_bytes, data, notes))


def _from_pretty_midi(midi: pretty_midi.PrettyMIDI, name: str) -> Song:
    sounding = [instrument for instrument in midi.instruments if instrument.notes]
    if not sounding:
        raise NoNotesError({})
    rows = [(n.start, n.end, n.pitch, n.velocity, k) for k, i in enumerate(sounding) for n in i.notes]
    start_s, end_s, pitch, velocity, track = np.array(rows, dtype=np.float64).T
    _check_notes(start_s, pitch, velocity)
    tempo_ticks, seconds_per_tick = map(np.array, zip(*midi._tick_scales, strict=True))

    def ticks(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        return seconds_to_ticks(seconds, tempo_ticks, seconds_per_tick)

    start = ticks(start_s)
    end = np.where(end_s > start_s, np.maximum(ticks(np.maximum(end_s, 0)), start + 1), start)
    start, end, start_s, end_s, pitch, velocity, track = _ordered(start, end, start_s, end_s, pitch, velocity, track)
    metre = [
        (int(ticks(np.array([change.time]))[0]), change.numerator, change.denominator)
        for change in midi.time_signature_changes
        if change.denominator in (1, 2, 4, 8, 16, 32, 64)
    ]
    notes = Notes(
        start=start,
        end=end,
        pitch=pitch.astype(np.uint8),
        velocity=velocity.astype(np.uint8),
        track=track.astype(np.int32),
        tracks=tuple(Track(name=i.name, program=i.program, is_drum=i.is_drum) for i in sounding),
        ticks_per_beat=midi.resolution,
        tempo_ticks=tempo_ticks.astype(np.int64),
        seconds_per_tick=seconds_per_tick,
        metre=np.array(sorted(metre), dtype=np.int64).reshape(-1, 3),
    )
    return Song(name=name, notes=notes, onset_s=start_s, offset_s=end_s, frame=partial(_frame_of_pretty_midi, midi))


def _check_notes(start: NDArray, pitch: NDArray, velocity: NDArray) -> None:
    """Raise MidiError for a note that no MIDI file could hold."""
    limits = (("onset", start, 0, np.inf), ("pitch", pitch, 0, 127), ("velocity", velocity, 0, 127))
    for name, values, low, high in limits:
        if (bad := ~((values >= low) & (values <= high))).any():
            raise MidiError(f"a note has the {name} {values[bad][0]:g}; allowed are {low} to {high:g}")


def _ordered(start: NDArray, end: NDArray, *columns: NDArray) -> tuple[NDArray[Any], ...]:
    """Columns of notes by track (the last of them), start and pitch (the last but two)."""
    order = np.lexsort((columns[-3], start, columns[-1]))
    return tuple(column[order] for column in (start, end, *columns))


def _frame_of_pretty_midi(midi: pretty_midi.PrettyMIDI) -> pretty_midi.PrettyMIDI:
    bare = copy.copy(midi)
    bare.instruments = [copy.copy(i) for i in sorted(midi.instruments, key=lambda i: not i.notes)]
    for instrument in bare.instruments:
        instrument.notes = []
    return copy.deepcopy(bare)


def _frame_of_bytes(data: bytes, notes: Notes) -> pretty_midi.PrettyMIDI:
    midi = _parse(data, notes)
    found = list(midi.instruments)
    midi.instruments = []
    for track in notes.tracks:
        # Both are in one order; a track of notes that are never ended is none to pretty_midi.
        same = bool(found) and (found[0].program, found[0].is_drum) == (track.program, track.is_drum)
        own = pretty_midi.Instrument(track.program, track.is_drum, track.name)
        midi.instruments.append(found.pop(0) if same else own)
    for instrument in midi.instruments:
        instrument.notes = []
    if not midi.time_signature_changes:  # pretty_midi reads those of the first track alone
        midi.time_signature_changes = _frame_of_notes(notes).time_signature_changes
    return midi


def _frame_of_notes(notes: Notes) -> pretty_midi.PrettyMIDI:
    return notes_to_pretty_midi(notes.take(np.zeros(0, dtype=np.int64)))


def _parse(data: bytes, notes: Notes) -> pretty_midi.PrettyMIDI:
    """A file as pretty_midi reads it; where it refuses, once more without the damaged events."""
    with warnings.catch_warnings(action="ignore"):  # of tempi on other tracks than the first, which do not count
        try:
            return pretty_midi.PrettyMIDI(io.BytesIO(data))
        except _REFUSED:
            pass
        most = pretty_midi.pretty_midi.MAX_TICK
        ticks_per_beat, bodies, _ = split(data)
        try:
            pretty_midi.pretty_midi.MAX_TICK = _MOST_TICKS
            return pretty_midi.PrettyMIDI(io.BytesIO(pack(ticks_per_beat, *map(without_damage, bodies))))
        except _REFUSED:
            return _frame_of_notes(notes)
        finally:
            pretty_midi.pretty_midi.MAX_TICK = most
