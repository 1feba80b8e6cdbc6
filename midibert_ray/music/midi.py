"""MIDI bytes <-> notes in ticks.

symusic reads (0.1 ms a file where pretty_midi takes 5 to 36 ms), but note-offs are paired with note-ons as
pretty_midi pairs them (`midibert_ray.music.pairing`), because the paper's published tokens come from a reader
of that kind; first-in-first-out readers give other durations, and notes of length zero.
`pretty_midi.PrettyMIDI` is the type at the borders: `notes_from_pretty_midi`, `notes_to_pretty_midi`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pretty_midi
from numpy.typing import NDArray

from midibert_ray.music.events import MAX_NOTES, TrackContent, too_many_notes
from midibert_ray.music.pairing import MAX_TICK, read_track
from midibert_ray.music.smf import MidiError, split

__all__ = [
    "MAX_SECONDS",
    "MAX_TICK",
    "MidiError",
    "Notes",
    "Track",
    "notes_from_pretty_midi",
    "notes_to_pretty_midi",
    "read_notes",
    "ticks_to_seconds",
]

MAX_SECONDS = 24 * 3600
"""Longest piece; what claims to last longer is most likely corrupt."""


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
    metre: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int64))
    """[m, 3] time signatures: tick (ascending), numerator, denominator. None before the first: 4/4."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Note-ons of which no note came, by reason."""
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Damaged events that have no bearing on notes, by kind."""

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


def read_notes(data: bytes, *, keep_unreleased: bool = False) -> Notes:
    """Read a MIDI file: ``bytes`` -> `Notes`, note for note what ``pretty_midi.PrettyMIDI(file)`` holds.

    Any ticks per beat, format 0, 1 or 2, several tracks, channels and programs, drums, tempo changes (those of the
    first track count, as in pretty_midi), time signatures (of any track), running status, SysEx in packets, early ends
    of track and RIFF-wrapped files are read. Notes of length zero are none, and those that are never ended only if
    asked for; both are counted. Damaged events that have no bearing on notes (a key of eight sharps, a controller of
    255) are ignored and counted.

    Known differences from pretty_midi, all outside the five corpora:

    - It refuses a file for a damaged event, and for one after tick 10,000,000.
    - A meta event of a type that mido does not know keeps its delta time; mido drops it, and plays all that
      follows too early.
    - A delta time of five bytes is refused; the standard allows four.
    - Names are read as UTF-8, by pretty_midi as Latin-1.

    Args:
        data: a whole file.
        keep_unreleased: whether notes that are never ended last to the end of their track, or are none.

    Raises:
        MidiError: the file is not MIDI, is cut short or garbled, has SMPTE time division or zero ticks per beat, more
            than `MAX_NOTES` notes or 24 hours, an event after `MAX_TICK`, or no note.
    """
    container = split(data)
    if b"" in container.tracks:
        number = container.tracks.index(b"") + 1
        raise MidiError(f"empty track: MTrk chunk {number} of {len(container.tracks)} has no events, not even its end")
    tracks = [read_track(container.ticks_per_beat, body, keep_unreleased=keep_unreleased) for body in container.tracks]
    notes = _join(tracks, container.ticks_per_beat)
    if len(notes) == 0:
        raise MidiError(f"no notes{_in_parentheses(notes.dropped)}")
    seconds = ticks_to_seconds(notes, notes.end.max(keepdims=True))[0]
    if seconds > MAX_SECONDS:
        raise MidiError(f"{seconds / 3600:,.0f} hours long; more than 24 are most likely corrupt")
    return notes


def _in_parentheses(dropped: Mapping[str, int]) -> str:
    return f" (dropped: {', '.join(f'{count} {reason}' for reason, count in dropped.items())})" if dropped else ""


def _join(tracks: Sequence[TrackContent], ticks_per_beat: int) -> Notes:
    """The notes of all tracks of a file."""
    instruments = [instrument for track in tracks for instrument in track.instruments]
    if sum(len(instrument.start) for instrument in instruments) > MAX_NOTES:
        raise MidiError(too_many_notes())
    names = tuple(Track(name=i.name, program=i.program, is_drum=i.is_drum) for i in instruments)
    track_of = np.repeat(np.arange(len(instruments)), [len(instrument.start) for instrument in instruments])
    columns = [
        np.concatenate([np.zeros(0, np.int64), *(getattr(instrument, column) for instrument in instruments)])
        for column in ("start", "end", "pitch", "velocity")
    ]
    if (latest := max(columns[1].max(initial=0), *(track.tempo_ticks.max(initial=0) for track in tracks))) >= MAX_TICK:
        raise MidiError(f"an event at tick {latest:,}, later than {MAX_TICK:,}: most likely corrupt")
    metre = np.concatenate([track.metre for track in tracks])
    notes = replace(
        _assemble([*columns, track_of], names),
        metre=metre[np.argsort(metre[:, 0], kind="stable")],
        dropped=_added(track.dropped for track in tracks),
        ignored=_added(track.ignored for track in tracks),
    )
    return _with_tempo(notes, ticks_per_beat, tracks[0].tempo_ticks, tracks[0].tempo_microseconds)


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def _assemble(columns: Sequence[NDArray], tracks: tuple[Track, ...]) -> Notes:
    """Notes in the order of `Notes`, at 120 bpm and 480 ticks per beat until `_tempo_map` says otherwise.

    ``columns`` are start, end, pitch, velocity and track, [n] each.
    """
    start, end, pitch, velocity, track = (np.asarray(column, dtype=np.int64) for column in columns)
    order = np.argsort((track * MAX_TICK + start) * 128 + pitch, kind="stable")  # below 2 ** 16 * 2 ** 31 * 2 ** 7
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
    scales = 60.0 / ((6e7 / microseconds.astype(np.float64)) * ticks_per_beat)
    first = ticks == 0
    opening = scales[first][-1] if first.any() else 60.0 / (120.0 * ticks_per_beat)
    ticks = np.concatenate([[0], ticks[~first]])
    scales = np.concatenate([[opening], scales[~first]])
    changes = np.concatenate([[True], scales[1:] != scales[:-1]])
    return _tempo_map(notes, ticks_per_beat, ticks[changes], scales[changes])


def _tempo_map(notes: Notes, ticks_per_beat: int, ticks: NDArray[np.int64], scales: NDArray[np.float64]) -> Notes:
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
    metre = [
        (midi.time_to_tick(change.time), change.numerator, change.denominator) for change in midi.time_signature_changes
    ]
    notes = replace(notes, metre=np.array(metre, dtype=np.int64).reshape(-1, 3))
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
    midi.time_signature_changes = [
        pretty_midi.TimeSignature(numerator, denominator, time)
        for (_, numerator, denominator), time in zip(
            notes.metre.tolist(), ticks_to_seconds(notes, notes.metre[:, 0]).tolist(), strict=True
        )
    ]
    return midi
