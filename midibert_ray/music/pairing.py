"""The notes of one MIDI track, read by symusic and ended by pretty_midi's rule.

The rule: a note-off ends every open note of its channel and pitch that began at an earlier tick; if there is
none, it discards those that began at its own tick. symusic pairs first in, first out. Its ends are all the
note-offs that matter, so a note's true end is the first of them after its start, unless a note-off stands at
that very start, or a note was left open: then the track is walked event by event.

What symusic does not tell is found with a *probe*, events put behind the track's end: note-offs for every
pitch, which bring out notes left open, and one note per channel (its velocity says which), which brings out
a change of program.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import symusic
from numpy.typing import NDArray

from midibert_ray.music.events import changes_program, has_doubtful_sysex, walk_notes
from midibert_ray.music.smf import MidiError, pack

MAX_TICK = 10_000_000
"""Nothing that matters may stand later: pretty_midi's own limit, 5.8 hours at 480 ticks per beat and 60 bpm.
It bounds the memory that a file of a few bytes can ask for."""

_SPAN = 2 * MAX_TICK
_END_OF_TRACK = b"\xff\x2f\x00"
_EMPTY_TEXT = b"\xff\x01\x00"
_TRACK_NAME = b"\xff\x03"
_NAME_OR_NOTE = re.compile(rb"\xff\x03|[\x90-\x9f]")
_SYSEX_END = b"\xf7"
_PROBE_WAIT = b"\xff\xff\xff\x7f"
"""The longest delta time, 268,435,455 ticks: the probe stands far behind `MAX_TICK`."""
_PROBE_TICK = 0x0FFFFFFF

Columns: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Start, end, pitch, velocity of notes, [n] each."""
_NONE = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class TrackNotes:
    """One instrument's notes, in no particular order but by start for equal pitches, and the tempo events."""

    name: str
    program: int
    is_drum: bool
    start: NDArray[np.int64]
    """[n] ticks, as ``end``."""
    end: NDArray[np.int64]
    pitch: NDArray[np.int64]
    velocity: NDArray[np.int64]
    tempo_ticks: NDArray[np.int32]
    """[k] ticks of set-tempo events, ascending."""
    tempo_microseconds: NDArray[np.int32]
    """[k] microseconds a beat."""


def read_track(ticks_per_beat: int, body: bytes) -> TrackNotes | None:
    """Read one track: the body of an MTrk chunk -> `TrackNotes`, or None if only pretty_midi itself can tell.

    None means: notes on more than one channel or program, a program change between them, a second or late
    name, SysEx events that symusic misreads, or no end of track where it belongs and there alone.

    Raises:
        MidiError: a note after `MAX_TICK`, or a data byte above 127.
        RuntimeError, ValueError, IndexError: the events cannot be parsed.
    """
    probed = _with_probe(body)
    if probed is None or (_SYSEX_END in body and has_doubtful_sysex(body)):
        return None
    score: Any = symusic.Score.from_midi(pack(ticks_per_beat, (probed,)))
    found = [(track, _columns(track)) for track in score.tracks if not _is_probe_alone(track.notes)]
    heard = [(track, columns) for track, columns in found if columns[0][0] < _PROBE_TICK]
    if len(heard) > 1 or any(_program_changes(body, columns) for _, columns in heard):
        return None
    if heard and _named_anew(body):
        return None
    notes: Columns = (_NONE, _NONE, _NONE, _NONE)
    for _, columns in heard:
        before_probe = columns[0].searchsorted(_PROBE_TICK)
        ended = _end_notes(*(column[:before_probe] for column in columns))
        notes = tuple(walk_notes(body)) if ended is None else ended
    start, end, pitch, velocity = notes
    tempo = score.tempos.numpy()
    return TrackNotes(
        name=heard[0][0].name if heard else "",
        program=heard[0][0].program if heard else 0,
        is_drum=heard[0][0].is_drum if heard else False,
        start=start,
        end=end,
        pitch=pitch,
        velocity=velocity,
        tempo_ticks=tempo["time"],
        tempo_microseconds=tempo["mspq"],
    )


def _with_probe(body: bytes) -> bytes | None:
    """``body`` with the probe in front of its end of track; None if it has no such end, or an earlier one too.

    symusic stops at the first end of track, pretty_midi reads on.
    """
    if not body.endswith(_END_OF_TRACK) or body.find(_END_OF_TRACK[:2]) < len(body) - 3:
        return None
    # 0x9n is a note-on of channel n (or some other byte, and the probe of that channel is of no consequence).
    channels = [channel for channel in range(16) if 0x90 + channel in body]
    events = b"".join(_PROBES[channel] for channel in channels)
    return body[:-3] + _EMPTY_TEXT + _PROBE_WAIT + _EMPTY_TEXT + events + b"\x00" + _END_OF_TRACK


def _named_anew(body: bytes) -> bool:
    """A track may have a second name, or one behind its first note.

    pretty_midi takes the last name before the first note ends, symusic the last of all.
    """
    last = body.rfind(_TRACK_NAME)
    return last > 0 and _NAME_OR_NOTE.search(body, 0, last) is not None


def _probe(channel: int) -> bytes:
    offs = b"".join(bytes([0, 0x80 + channel, pitch, 0]) for pitch in range(128))
    return offs + bytes([0, 0x90 + channel, 0, channel + 1, 1, 0x80 + channel, 0, 0])


_PROBES = tuple(_probe(channel) for channel in range(16))


def _is_probe_alone(notes: Any) -> bool:
    """A channel has no note but the probe's, if any: so a few attributes tell, without any arrays."""
    if len(notes) > 1:
        return False
    return all(n.start >= _PROBE_TICK and n.duration == 1 and n.pitch == 0 and 0 < n.velocity <= 16 for n in notes)


def _program_changes(body: bytes, columns: Columns) -> bool:
    """A note may begin under one program and end under another, given the track's `_columns`."""
    start, _, _, velocity = columns
    if start[-1] < _PROBE_TICK:
        return True  # the probe's note went to another program
    channel = int(velocity[-1]) - 1
    return body.count(0xC0 + channel) > 1 and changes_program(body, channel)


def _columns(track: Any) -> Columns:
    """[n >= 1] each: start, end, pitch, velocity as symusic paired them, by start; the probe's last."""
    table = track.notes.numpy()
    start, pitch, velocity = (table[name].astype(np.int64) for name in ("time", "pitch", "velocity"))
    end = start + table["duration"]
    if (start | end | pitch | velocity).min() < 0:  # a number with the sign bit of any of the four
        raise MidiError("a negative tick, or a data byte above 127 in a note: most likely corrupt")
    late = start.searchsorted(_PROBE_TICK)
    if any(pitch[late:] > 0) or any(velocity[late:] > 16):
        raise MidiError(f"a note at tick {start[-1]}, later than {MAX_TICK}: most likely corrupt")
    return start, end, pitch, velocity


def _end_notes(
    start: NDArray[np.int64], end: NDArray[np.int64], pitch: NDArray[np.int64], velocity: NDArray[np.int64]
) -> Columns | None:
    """Start, end, pitch, velocity by the rule, [n] each; None where the order within a tick decides."""
    # Pitch and tick make one number, so that one sort and one search serve all pitches, and none meets another's ends.
    group, order = pitch * _SPAN, _by_key(pitch)
    ends = np.sort((group + end)[order], kind="stable")
    if max(start[-1], end.max()) >= MAX_TICK:
        left_open = end >= _PROBE_TICK
        latest = max(start[-1], end[~left_open].max(initial=0))
        if latest >= MAX_TICK:
            raise MidiError(f"a note at tick {latest}, later than {MAX_TICK}: most likely corrupt")
        # The probe's note-offs end nothing. By the rule a later note-off of its pitch ends a note that symusic left
        # open: with such a one the track must be walked.
        ends = np.sort((group + end)[~left_open])
        later = np.searchsorted(ends, (group + start)[left_open], side="right")
        if (np.append(ends, -1)[later] // _SPAN == pitch[left_open]).any():
            return None
    # Notes of length zero, and open ones, are none; the note-offs of the former may still end others.
    sounding = (end != start) & (end < _PROBE_TICK)
    if not sounding.all():
        start, pitch, velocity, group = (column[sounding] for column in (start, pitch, velocity, group))
        order = _by_key(pitch)
    onset = group + start
    closing = _first_after(ends, onset, order)
    # A note-off at the very start of a note must be alone, and end an earlier note: the last of those there must be
    # some note's first. (Where no end stands before the onset, [-1] is the last of all, and greater.)
    closes = np.zeros(len(ends), dtype=bool)
    closes[closing] = True
    if (~closes[closing - 1] & (ends[closing - 1] == onset)).any():
        return None
    return start, ends[closing] - group, pitch, velocity


def close_notes(key: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """End overlapping notes of one pitch as if they were written to a MIDI track and read again.

    Args:
        key: [n] equal for notes of the same track and pitch.
        start: [n] ticks below `MAX_TICK`.
        end: [n] likewise, every end after its start.

    Returns:
        [n] new ends: each note's is the first end of its key after its start.
    """
    group, order = key * _SPAN, _by_key(key)
    ends = np.sort((group + end)[order], kind="stable")
    return ends[_first_after(ends, group + start, order)] - group


def _by_key(key: NDArray[np.int64]) -> NDArray[np.int64]:
    """An order of notes by key, and for equal keys as they come: by start, which leaves the ends nearly in order.

    Nothing but speed depends on it: sorts and searches are several times faster when their input is nearly in order.
    So sixteen bits of the key will do, which numpy sorts by radix.
    """
    return np.argsort(key.astype(np.uint16), kind="stable")


def _first_after(ends: NDArray[np.int64], onset: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """``np.searchsorted(ends, onset, side="right")``, searched in this ``order``."""
    first = np.empty_like(order)
    first[order] = np.searchsorted(ends, onset[order], side="right")
    return first
