"""MIDI bytes <-> notes in ticks.

symusic reads (0.1 ms a file where pretty_midi takes 5 to 36 ms), but note-offs are paired with note-ons as
pretty_midi pairs them (`midibert_ray.music.pairing`), because the paper's published tokens come from a reader
of that kind; first-in-first-out readers give other durations, and notes of length zero.
`pretty_midi.PrettyMIDI` is the type at the borders: `notes_from_pretty_midi`, `notes_to_pretty_midi`.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import mido
import numpy as np
import pretty_midi
from numpy.typing import NDArray

from midibert_ray.music.pairing import MAX_TICK, TrackNotes, read_track
from midibert_ray.music.smf import Container, MidiError, split

READER_ERRORS = (
    ValueError,  # symusic, mido (data byte out of range), pretty_midi (too many ticks), numpy
    RuntimeError,  # symusic: everything its C++ parser throws
    OSError,  # mido: no header, running status without a status
    EOFError,  # mido: the end comes too early
    LookupError,  # mido: unknown specs (KeyError), empty messages (IndexError)
    ArithmeticError,  # pretty_midi: a tempo of zero; overflow of a tick
    TypeError,  # mido: a message decoded from too few bytes
    AttributeError,  # pretty_midi: an unknown message without the attribute it asks for
    struct.error,  # mido: a short header
    mido.KeySignatureError,  # a bare Exception in mido
)
"""Errors of the readers below on bytes that are no music (found by fuzzing); `read_notes` makes MidiError of them."""


@dataclass(frozen=True, kw_only=True)
class Track:
    """One instrument: a program on a channel of a MIDI track, as pretty_midi separates them."""

    name: str
    program: int
    """0..127 (General MIDI, 0 is the grand piano)."""
    is_drum: bool
    """Channel 10, where pitches are drum sounds."""


@dataclass(frozen=True, kw_only=True)
class Notes:
    """The notes of one file, ordered by track, start and pitch, and the tempo map to tell seconds by."""

    start: NDArray[np.int64]
    """[n] ticks."""
    end: NDArray[np.int64]
    """[n] ticks, always after ``start``."""
    pitch: NDArray[np.uint8]
    """[n] MIDI 0..127."""
    velocity: NDArray[np.uint8]
    """[n] MIDI 1..127."""
    track: NDArray[np.int32]
    """[n] index into ``tracks``."""
    tracks: tuple[Track, ...]
    """Instruments with at least one note, in pretty_midi's order."""
    ticks_per_beat: int
    tempo_ticks: NDArray[np.int64]
    """[k] where the tempo changes, ascending, the first at 0."""
    tempo_seconds: NDArray[np.float64]
    """[k] the time of ``tempo_ticks``."""
    seconds_per_tick: NDArray[np.float64]
    """[k] from there on."""

    def __len__(self) -> int:
        return len(self.start)

    def take(self, index: NDArray) -> Notes:
        """The notes of ``index`` (positions or bool[n]), in that order; tracks and tempo map stay."""
        return replace(
            self,
            start=self.start[index],
            end=self.end[index],
            pitch=self.pitch[index],
            velocity=self.velocity[index],
            track=self.track[index],
        )


def read_notes(data: bytes) -> Notes:
    """Read a MIDI file: ``bytes`` -> `Notes`, note for note what ``pretty_midi.PrettyMIDI(file)`` holds.

    Any ticks per beat, format 0, 1 or 2, several tracks, drums, tempo changes (those of the first track
    count, as in pretty_midi), running status and RIFF-wrapped files are read. Notes that are never ended, and
    notes of length zero, are not notes. A file with several channels, programs or names in one track, with
    split SysEx messages (0xF7 events) or events after an early end of track, and the rare one whose note-offs
    leave room for doubt (`read_track`), is read by pretty_midi itself: slower, same result.

    Known differences from pretty_midi, all outside the five corpora:

    - A meta event of a type that mido does not know keeps its delta time; mido drops it, and plays all that
      follows too early.
    - A delta time of five bytes is refused; the standard allows four.
    - System messages that no file may hold (0xF1 to 0xF6, 0xF8 to 0xFE), and data under running status after a
      SysEx event, are skipped or refused, not always in the same way; pretty_midi reads some of both.
    - Names are read as UTF-8, by pretty_midi as Latin-1.

    Raises:
        MidiError: the file is not MIDI, is cut short or garbled, has SMPTE time division or zero ticks per
            beat, an event after tick 10,000,000, or no note.
    """
    container = split(data)
    if b"" in container.tracks:
        number = container.tracks.index(b"") + 1
        raise MidiError(f"empty track: MTrk chunk {number} of {len(container.tracks)} has no events, not even its end")
    try:
        notes = _read_fast(container)
        if notes is None:
            notes = _reread(container)
    except MidiError:
        raise
    except READER_ERRORS as error:
        raise MidiError(f"unreadable MIDI events: {_one_line(error)}") from error
    if len(notes) == 0:
        raise MidiError("no notes")
    return notes


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]


def _read_fast(container: Container) -> Notes | None:
    """The notes through symusic; None where only pretty_midi's own reading is certain to be pretty_midi's."""
    tracks: list[TrackNotes] = []
    for body in container.tracks:
        track = read_track(container.ticks_per_beat, body)
        if track is None:
            return None
        tracks.append(track)
    full = [track for track in tracks if len(track.start)]
    track_of = np.repeat(np.arange(len(full)), [len(track.start) for track in full])
    columns = [np.concatenate([getattr(track, c) for track in tracks]) for c in ("start", "end", "pitch", "velocity")]
    names = tuple(Track(name=track.name, program=track.program, is_drum=track.is_drum) for track in full)
    notes = _assemble([*columns, track_of], names)
    return _with_tempo(notes, container.ticks_per_beat, tracks[0].tempo_ticks, tracks[0].tempo_microseconds)


def _assemble(columns: Sequence[NDArray], tracks: tuple[Track, ...]) -> Notes:
    """Notes in the order of `Notes`, at 120 bpm and 480 ticks per beat until `_tempo_map` says otherwise.

    ``columns`` are start, end, pitch, velocity and track, [n] each.
    """
    start, end, pitch, velocity, track = (np.asarray(column, dtype=np.int64) for column in columns)
    order = np.argsort((track * MAX_TICK + start) * 128 + pitch, kind="stable")
    return Notes(
        start=start[order],
        end=end[order],
        pitch=pitch[order].astype(np.uint8),
        velocity=velocity[order].astype(np.uint8),
        track=track[order].astype(np.int32),
        tracks=tracks,
        ticks_per_beat=480,
        tempo_ticks=np.zeros(1, dtype=np.int64),
        tempo_seconds=np.zeros(1),
        seconds_per_tick=np.full(1, 60 / (120 * 480)),
    )


def _with_tempo(notes: Notes, ticks_per_beat: int, ticks: NDArray, microseconds: NDArray) -> Notes:
    """``notes`` with the tempo map of these set-tempo events, float for float as pretty_midi computes it.

    A change at tick 0 replaces the 120 bpm that hold without one; a change to the tempo in force is none.
    """
    if len(microseconds) and microseconds.min() <= 0:
        raise MidiError(f"a tempo of {microseconds.min()} microseconds a beat; it must be positive")
    ticks = ticks.astype(np.int64)
    scales = 60.0 / ((6e7 / microseconds.astype(np.float64)) * ticks_per_beat)
    first = ticks == 0
    opening = scales[first][-1] if first.any() else 60.0 / (120.0 * ticks_per_beat)
    ticks = np.concatenate([[0], ticks[~first]])
    scales = np.concatenate([[opening], scales[~first]])
    changes = np.concatenate([[True], scales[1:] != scales[:-1]])
    return _tempo_map(notes, ticks_per_beat, ticks[changes], scales[changes])


def _tempo_map(notes: Notes, ticks_per_beat: int, ticks: NDArray[np.int64], scales: NDArray[np.float64]) -> Notes:
    if ticks.max() >= MAX_TICK:
        raise MidiError(f"a tempo change at tick {ticks.max()}, later than {MAX_TICK}: most likely corrupt")
    seconds = np.concatenate([[0.0], np.cumsum(scales[:-1] * np.diff(ticks))])
    return replace(
        notes,
        ticks_per_beat=ticks_per_beat,
        tempo_ticks=ticks,
        tempo_seconds=seconds,
        seconds_per_tick=scales,
    )


def ticks_to_seconds(notes: Notes, ticks: NDArray[np.int64]) -> NDArray[np.float64]:
    """The times of ``ticks`` [n] by the tempo map of ``notes``: float64[n] seconds."""
    at = np.searchsorted(notes.tempo_ticks, ticks, side="right") - 1
    return notes.tempo_seconds[at] + notes.seconds_per_tick[at] * (ticks - notes.tempo_ticks[at])


def _seconds_to_ticks(notes: Notes, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """The nearest ticks of ``seconds`` [n]: exact for times that `ticks_to_seconds` gave."""
    at = np.maximum(np.searchsorted(notes.tempo_seconds, seconds, side="right") - 1, 0)
    offset = (seconds - notes.tempo_seconds[at]) / notes.seconds_per_tick[at]
    return np.rint(offset).astype(np.int64) + notes.tempo_ticks[at]


def _reread(container: Container) -> Notes:
    """The notes as pretty_midi itself reads them."""
    with warnings.catch_warnings():
        # pretty_midi warns of tempo events outside the first track; it ignores them, and so do we.
        warnings.simplefilter("ignore", RuntimeWarning)
        midi = pretty_midi.PrettyMIDI(io.BytesIO(container.whole()))
    return notes_from_pretty_midi(midi)


def notes_from_pretty_midi(midi: pretty_midi.PrettyMIDI) -> Notes:
    """`PrettyMIDI` -> `Notes`: seconds become the nearest ticks (exact for notes that came from a file).

    Instruments without notes are left out; a note that rounds to length zero is given one tick.
    """
    instruments = [instrument for instrument in midi.instruments if instrument.notes]
    rows = [
        (note.start, note.end, note.pitch, note.velocity, index)
        for index, instrument in enumerate(instruments)
        for note in instrument.notes
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    tracks = tuple(Track(name=i.name, program=int(i.program), is_drum=i.is_drum) for i in instruments)
    # The public get_tempo_changes() gives tempi that are a rounding error away from these.
    ticks, scales = (np.array(column) for column in zip(*midi._tick_scales, strict=True))
    empty = _assemble([np.zeros(0)] * 5, tracks)
    tempo = _tempo_map(empty, midi.resolution, ticks, scales)
    start = _seconds_to_ticks(tempo, table[:, 0])
    end = np.maximum(_seconds_to_ticks(tempo, table[:, 1]), start + 1)
    notes = _assemble([start, end, *table[:, 2:].T], tracks)
    return _tempo_map(notes, midi.resolution, ticks, scales)


def notes_to_pretty_midi(notes: Notes) -> pretty_midi.PrettyMIDI:
    """`Notes` -> `PrettyMIDI`, one instrument a track, ready for ``.write(path or file)``.

    Every MIDI file that this package writes comes through here.
    """
    midi = pretty_midi.PrettyMIDI(resolution=notes.ticks_per_beat)
    # pretty_midi has no public way to set more than the first tempo.
    midi._tick_scales = list(zip(notes.tempo_ticks.tolist(), notes.seconds_per_tick.tolist(), strict=True))
    midi._update_tick_to_time(int(notes.end.max(initial=0)) + 1)
    instruments = [pretty_midi.Instrument(t.program, t.is_drum, t.name) for t in notes.tracks]
    start = ticks_to_seconds(notes, notes.start)
    end = ticks_to_seconds(notes, notes.end)
    columns = (notes.track, notes.velocity, notes.pitch, start, end)
    for track, velocity, pitch, start_s, end_s in zip(*(c.tolist() for c in columns), strict=True):
        instruments[track].notes.append(pretty_midi.Note(velocity, pitch, start_s, end_s))
    midi.instruments = instruments
    return midi
