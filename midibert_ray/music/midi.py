"""MIDI bytes <-> notes in ticks.

symusic reads (0.1 ms a file where pretty_midi takes 5 to 36 ms), but note-offs are paired with note-ons as
pretty_midi pairs them (`midibert_ray.music.pairing`), because the paper's published tokens come from a reader
of that kind; first-in-first-out readers give other durations, and notes of length zero.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pretty_midi
from numpy.typing import NDArray

from midibert_ray.music.events import MAX_NOTES, Track, TrackContent, too_many_notes
from midibert_ray.music.pairing import MAX_TICK, read_track
from midibert_ray.music.smf import MidiError, NoNotesError, split

__all__ = ["MAX_SECONDS", "MidiError", "Notes", "Track", "notes_to_pretty_midi", "read_notes", "ticks_to_seconds"]

MAX_SECONDS = 24 * 3600
"""Longest piece; what claims to last longer is most likely corrupt."""
UNDECLARED = "tracks beyond those that the header declares"


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
    seconds_per_tick: NDArray[np.float64]
    """[k] from there on."""
    metre: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int64))
    """[m, 3] time signatures: tick (ascending), numerator, denominator. None before the first: 4/4."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Note-ons of which no note came, by reason."""
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Damaged events that have no bearing on notes, and tracks beyond the declared ones, by kind."""
    label: NDArray[np.uint8] | None = None
    """[n] class of each note, from 1, 0 where it is unknown; None where tracks tell it."""

    def __len__(self) -> int:
        return len(self.start)

    def take(self, index: NDArray) -> Notes:
        """The notes of ``index`` (positions or bool[n]), in that order; tracks and tempo map stay."""
        names = ("start", "end", "pitch", "velocity", "track", *(("label",) if self.label is not None else ()))
        return replace(self, **{name: getattr(self, name)[index] for name in names})


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
    ticks_per_beat, bodies, undeclared = split(data)
    if b"" in bodies:
        number = bodies.index(b"") + 1
        raise MidiError(f"empty track: MTrk chunk {number} of {len(bodies)} has no events, not even its end")
    notes = _join(
        [read_track(ticks_per_beat, body, keep_unreleased=keep_unreleased) for body in bodies], ticks_per_beat
    )
    if undeclared:
        notes = replace(notes, ignored={**notes.ignored, UNDECLARED: undeclared})
    if len(notes) == 0:
        raise NoNotesError(notes.dropped)
    seconds = ticks_to_seconds(notes, notes.end.max(keepdims=True))[0]
    if seconds > MAX_SECONDS:
        raise MidiError(f"{seconds / 3600:,.0f} hours long; more than 24 are most likely corrupt")
    return notes


def _join(tracks: Sequence[TrackContent], ticks_per_beat: int) -> Notes:
    """The notes of all tracks of a file."""
    instruments = [instrument for track in tracks for instrument in track.instruments]
    table = np.concatenate([np.zeros((4, 0), np.int64), *(notes for _, notes in instruments)], axis=1)
    if table.shape[1] > MAX_NOTES:
        raise MidiError(too_many_notes())
    latest = max(table[1].max(initial=0), *(track.tempi[:, 0].max(initial=0) for track in tracks))
    if latest >= MAX_TICK:
        raise MidiError(f"an event at tick {latest:,}, later than {MAX_TICK:,}: most likely corrupt")
    track_of = np.repeat(np.arange(len(instruments)), [notes.shape[1] for _, notes in instruments])
    order = np.argsort((track_of * MAX_TICK + table[0]) * 128 + table[2], kind="stable")  # below 2 ** (20 + 35 + 7)
    start, end, pitch, velocity = table[:, order]
    metre = np.concatenate([track.metre for track in tracks])
    tempo_ticks, seconds_per_tick = _tempo_map(tracks[0].tempi, ticks_per_beat)
    return Notes(
        start=start,
        end=end,
        pitch=pitch.astype(np.uint8),
        velocity=velocity.astype(np.uint8),
        track=track_of[order].astype(np.int32),
        tracks=tuple(track for track, _ in instruments),
        ticks_per_beat=ticks_per_beat,
        tempo_ticks=tempo_ticks,
        seconds_per_tick=seconds_per_tick,
        metre=metre[np.argsort(metre[:, 0], kind="stable")],
        dropped=_added(track.dropped for track in tracks),
        ignored=_added(track.ignored for track in tracks),
    )


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in filter(None, counts):
        total.update(count)
    return dict(total)


def _tempo_map(tempi: NDArray[np.int64], ticks_per_beat: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """[k] ticks at which the tempo changes, and seconds a tick from there on, float for float as pretty_midi has them.

    A change at tick 0 replaces the 120 bpm that hold without one; a change to the tempo in force is none.
    """
    ticks, microseconds = tempi.T
    scales = 60.0 / ((6e7 / microseconds.astype(np.float64)) * ticks_per_beat)
    first = ticks == 0
    opening = scales[first][-1] if first.any() else 60.0 / (120.0 * ticks_per_beat)
    ticks = np.concatenate([[0], ticks[~first]])
    scales = np.concatenate([[opening], scales[~first]])
    changes = np.concatenate([[True], scales[1:] != scales[:-1]])
    return ticks[changes], scales[changes]


def ticks_to_seconds(notes: Notes, ticks: NDArray[np.int64]) -> NDArray[np.float64]:
    """The times of ``ticks`` [n] by the tempo map of ``notes``: float64[n] seconds."""
    passed = np.concatenate([[0.0], np.cumsum(notes.seconds_per_tick[:-1] * np.diff(notes.tempo_ticks))])
    at = np.searchsorted(notes.tempo_ticks, ticks, side="right") - 1
    return passed[at] + notes.seconds_per_tick[at] * (ticks - notes.tempo_ticks[at])


def seconds_to_ticks(
    seconds: NDArray[np.float64], tempo_ticks: NDArray[np.int64], seconds_per_tick: NDArray[np.float64]
) -> NDArray[np.int64]:
    """The nearest ticks of ``seconds`` [n], none of them before 0, by a tempo map as in `Notes`: int64[n]."""
    passed = np.concatenate([[0.0], np.cumsum(seconds_per_tick[:-1] * np.diff(tempo_ticks))])
    at = np.searchsorted(passed, seconds, side="right") - 1
    return np.rint(tempo_ticks[at] + (seconds - passed[at]) / seconds_per_tick[at]).astype(np.int64)


def notes_to_pretty_midi(notes: Notes) -> pretty_midi.PrettyMIDI:
    """`Notes` -> `PrettyMIDI`, one instrument a track, ready for ``.write(path or file)``.

    Every MIDI file that this package writes comes through here.
    """
    midi = pretty_midi.PrettyMIDI(resolution=notes.ticks_per_beat)
    # pretty_midi has no public way to set more than the first tempo.
    midi._tick_scales = list(zip(notes.tempo_ticks.tolist(), notes.seconds_per_tick.tolist(), strict=True))
    midi._update_tick_to_time(int(notes.end.max(initial=0)) + 1)
    keep_tempi(midi)
    midi.instruments = [pretty_midi.Instrument(t.program, t.is_drum, t.name) for t in notes.tracks]
    start, end = ticks_to_seconds(notes, np.stack([notes.start, notes.end]))
    columns = (notes.track, notes.velocity, notes.pitch, start, end)
    for track, *note in zip(*(c.tolist() for c in columns), strict=True):
        midi.instruments[track].notes.append(pretty_midi.Note(*note))
    times = ticks_to_seconds(notes, notes.metre[:, 0])
    midi.time_signature_changes = [
        pretty_midi.TimeSignature(numerator, denominator, time)
        for (_, numerator, denominator), time in zip(notes.metre.tolist(), times.tolist(), strict=True)
    ]
    return midi


def keep_tempi(midi: pretty_midi.PrettyMIDI) -> None:
    """Make `midi.write` tell whole microseconds a beat as they are.

    It cuts off the fraction of what it computes, so that half of all tempi would lose a microsecond a beat, and notes
    some milliseconds an hour. Such tempi are raised by their last bits; the times of events do not change.
    """
    kept = []
    for tick, scale in midi._tick_scales:
        whole = round(scale * midi.resolution * 1e6)
        while (
            abs(scale * midi.resolution * 1e6 - whole) < 1e-6 and int(6e7 / (60.0 / (scale * midi.resolution))) < whole
        ):
            scale = math.nextafter(scale, math.inf)
        kept.append((tick, scale))
    midi._tick_scales = kept
