"""The notes of one MIDI track, read by symusic and ended by pretty_midi's rule.

The rule: a note-off ends every open note of its channel and pitch that began at an earlier tick; if there is
none, it discards those that began at its own tick. symusic pairs first in, first out. Its ends are all the
note-offs that matter, so a note's true end is the first of them after its start, unless a note-off stands at
that very start, or a note was left open: then the track is walked event by event.

The rest, which symusic does not tell, is found with a *probe*, events put behind the track's end: note-offs for every
pitch, which bring out notes left open, and one note per channel (its velocity says which), which brings out
a change of program.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import symusic
from numpy.typing import NDArray

from midibert_ray.music.events import (
    MAX_NOTES,
    ZERO_DURATION,
    Track,
    TrackContent,
    changes_program,
    is_doubtful,
    last_tick,
    too_many_notes,
    walk,
    without_tempi,
)
from midibert_ray.music.smf import MidiError, pack

MAX_TICK = 1 << 35
"""Nothing that matters may stand later: 24 hours at the finest division, 32,767 ticks per beat, and 720 bpm. A million
instruments of 128 pitches with as many ticks each are told apart in an int64."""

_SPAN = 2 * MAX_TICK
_END_OF_TRACK = b"\xff\x2f\x00"
_EMPTY_TEXT = b"\xff\x01\x00"
_TRACK_NAME = b"\xff\x03"
_NAME_OR_NOTE = re.compile(rb"\xff\x03|[\x90-\x9f]")
_PROBE_WAIT = b"\xff\xff\xff\x7f"
"""The longest delta time, 268,435,455 ticks. Where music goes on beyond that, the probe cannot stand behind it."""
_PROBE_TICK = 0x0FFFFFFF
_WRAP = 1 << 31


def read_track(ticks_per_beat: int, body: bytes, *, keep_unreleased: bool = False) -> TrackContent:
    """Read one track as `walk` does: by symusic where its reading is certain.

    It is not where a track has notes on more than one channel or program, a program change between them, a second or
    late name, notes that are never ended, damaged events, or no end of track where it belongs and there alone.
    """
    return _read_fast(ticks_per_beat, body) or walk(body, keep_unreleased=keep_unreleased)


def _read_fast(ticks_per_beat: int, body: bytes) -> TrackContent | None:
    probed = _with_probe(body)
    if probed is None or is_doubtful(body) or _may_wrap(body):
        return None
    try:
        score: Any = symusic.Score.from_midi(pack(ticks_per_beat, probed))
    except (RuntimeError, ValueError, IndexError):
        return None
    found = [track for track in score.tracks if not _is_probe_alone(track.notes)]
    if len(found) > 1:
        return None
    instruments, dropped = [], {}
    for track in found:
        if len(track.notes) > MAX_NOTES + 1:
            raise MidiError(too_many_notes())
        notes = _columns(track)
        if notes is None or _program_changes(body, notes) or _named_anew(body) or (ended := _end_notes(notes)) is None:
            return None
        if without_length := notes.shape[1] - 1 - ended.shape[1]:
            dropped[ZERO_DURATION] = without_length
        if ended.size:
            instruments.append((Track(name=track.name, program=track.program, is_drum=track.is_drum), ended))
    tempi = _table(score.tempos, "time", "mspq")
    metre = _table(score.time_signatures, "time", "numerator", "denominator")
    if metre.min(initial=0) < 0 or tempi.min(initial=0) < 0 or not tempi[1].all():
        return None  # a tick that is too large for symusic, or a tempo of zero
    return TrackContent(instruments=instruments, tempi=tempi.T, metre=metre.T, dropped=dropped)


def _table(events: Any, *columns: str) -> NDArray[np.int64]:
    """[columns, events] of a list of symusic's."""
    table = np.empty((len(columns), len(events)), dtype=np.int64)
    arrays = events.numpy() if len(events) else {}
    if not arrays:
        return table
    for row, name in zip(table, columns, strict=True):
        row[:] = arrays[name]
    return table


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


def _may_wrap(body: bytes) -> bool:
    """Tell whether a track may be too long for symusic, whose ticks have 32 bits and begin anew after the last."""
    # Tempi may hold any bytes, and there may be one a beat.
    return _bound_ticks(body) >= _WRAP and _bound_ticks(without_tempi(body)) >= _WRAP and last_tick(body) >= _WRAP


def _bound_ticks(body: bytes) -> int:
    """More ticks than a track has: delta times of two, three and four bytes are below 2 ** 14, 2 ** 21 and 2 ** 28."""
    high = np.frombuffer(body, dtype=np.int8) < 0
    pairs = high[1:] & high[:-1]
    longest = np.count_nonzero(pairs[1:] & pairs[:-1])
    return (len(body) << 14) // 3 + (int(np.count_nonzero(pairs)) << 21) + (int(longest) << 28)


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


def _program_changes(body: bytes, columns: NDArray[np.int64]) -> bool:
    """A note may begin under one program and end under another, given the track's `_columns`."""
    start, _, _, velocity = columns[:, -1].tolist()
    if start < _PROBE_TICK:
        return True  # the probe's note went to another program
    return body.count(0xC0 + velocity - 1) > 1 and changes_program(body, velocity - 1)


def _columns(track: Any) -> NDArray[np.int64] | None:
    """[4, n >= 1]: start, end, pitch, velocity as symusic paired them, by start, the probe's last.

    None where notes reach beyond the probe, or hold numbers that no note holds.
    """
    columns = _table(track.notes, "time", "duration", "pitch", "velocity")
    columns[1] += columns[0]
    _, _, pitch, velocity = columns[:, -1].tolist()
    if columns.min() < 0 or pitch > 0 or velocity > 16:
        return None
    return columns if columns[0].searchsorted(_PROBE_TICK) == columns.shape[1] - 1 else None


def _end_notes(columns: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The notes that have a length, with their ends by the rule.

    None where a note is left open, or the order within a tick decides.
    """
    start, end, pitch, velocity = columns[:, :-1]
    if (end >= _PROBE_TICK).any():
        return None
    # Pitch and tick make one number, so that one sort and one search serve all pitches, and none meets another's ends.
    group, order = pitch * _SPAN, _by_key(pitch)
    ends = np.sort((group + end)[order], kind="stable")
    # Notes of length zero are none; their note-offs may still end others.
    sounding = end != start
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
    return np.stack([start, ends[closing] - group, pitch, velocity])


def close_notes(key: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """End overlapping notes of one pitch as if they were written to a MIDI track and read again: int64 [n].

    Each note's new end is the first end of its key after its start.

    Args:
        key: [n] equal for notes of the same track and pitch.
        start: [n] ticks below `MAX_TICK`.
        end: [n] likewise, every end after its start.
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
