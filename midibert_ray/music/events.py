"""A MIDI track, event by event: exact in every case, and ten times slower than symusic.

`midibert_ray.music.pairing` comes here when the order of events within a tick decides which notes there are, for
what symusic does not tell, and for what it refuses though it has no bearing on notes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from midibert_ray.music.smf import MidiError

MAX_NOTES = 1_000_000
"""Most notes of a file; a long piano piece has 30,000."""

ZERO_DURATION = "zero duration"
NEVER_RELEASED = "never released"
"""Reasons for which a note is none, as they stand in manifests."""

_META, _SYSEX, _SYSEX_END = 0xFF, 0xF0, 0xF7
_NOTE_OFF, _NOTE_ON, _CONTROL, _PROGRAM_CHANGE, _BEND = 0x80, 0x90, 0xB0, 0xC0, 0xE0
_PRESSURES = _KEY_PRESSURE, _CHANNEL_PRESSURE = 0xA0, 0xD0
_NAME, _TEMPO, _SMPTE, _METRE, _KEY = 0x03, 0x51, 0x54, 0x58, 0x59
_DRUM_CHANNEL = 9
_SYSTEM_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1}
"""Data bytes of the system messages that have any; no file may hold one."""
_SHORTEST_BEAT = 6
"""Power of two of the shortest note value that a metre may count, a sixty-fourth."""
_DAMAGED = dict.fromkeys((_CONTROL, _BEND, _PROGRAM_CHANGE), "controller, pitch bend or program above 127")
_DAMAGED |= dict.fromkeys(_PRESSURES, "pressure above 127")
_SMPTE_LIMITS = (24, 60, 60, 30, 100)
"""Hours, minutes, seconds, frames and hundredths stay below; the two bits above the five of the hours are a rate."""
_KEPT_META = frozenset((0x01, _NAME, 0x05, _TEMPO, _METRE, _KEY))
"""Texts, names, lyrics, and what is told of time and key."""
_META_NAMES = {_TEMPO: "set tempo", _METRE: "time signature", _KEY: "key signature", _SMPTE: "SMPTE offset"}

_DELTA = rb"[\x80-\xff]{0,3}[\x00-\x7f]"
_TWO_BYTES = rb"[\x00-\x7f]{2}(?:" + _DELTA + rb"[\x00-\x7f]{2})*"  # and more of its kind under running status
_ONE_BYTE = rb"[\x00-\x7f](?:" + _DELTA + rb"[\x00-\x7f])*"
_COMMON = re.compile(
    rb"(?:" + _DELTA + rb"([\x80-\xbf\xd0-\xef])"
    rb"(?:(?<![\xd0-\xdf])" + _TWO_BYTES + rb"|(?<=[\xd0-\xdf])" + _ONE_BYTE + rb"))+"
)
"""Sound channel messages in a row but for programs, nearly all that a track holds. Group 1 is the last status."""
_WITHOUT_PRESSURE = re.compile(rb"(?:" + _DELTA + rb"([\x80-\x9f\xb0-\xbf\xe0-\xef])" + _TWO_BYTES + rb")+")
"""Likewise, but for pressure as well."""

_SUSPECTS = bytes(byte & 0xF0 in _PRESSURES or 0xF0 <= byte < 0xFF for byte in range(256))
"""A table for `bytes.translate`: 1 for what may be the status byte of pressure or of a system message."""
_SET_TEMPO = b"\xff\x51\x03"
_TEMPO_EVENT = re.compile(_SET_TEMPO + rb"...", re.DOTALL)
_NOT_IN_FILES = frozenset(range(0xF1, 0xFF)) - {_SYSEX_END}
_CHECKED_META = re.compile(rb"\xff(\x51(?!\x03)|[\x54\x58\x59])")
"""Set-tempo events of the right length are left to a look at the tempi, as there may be one a beat."""


def _variable(body: bytes, at: int) -> tuple[int, int]:
    """A variable-length number (seven bits a byte, the last without the high bit) and where it ends."""
    value = 0
    while True:
        byte = body[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at


def _events(
    body: bytes, common: re.Pattern[bytes] | None = None, stop: int | None = None
) -> Iterator[tuple[int, int, int, int]]:
    """The events of a track: (tick, status, where its data begin, where they end), running status resolved.

    The status of a meta event is 0xFF00 plus its type. What ``common`` matches is passed over: twenty times faster, but
    the ticks are wrong. Those that begin at ``stop`` or later are left out.

    Raises:
        MidiError: the body ends within an event, or has a data byte where a status byte must stand.
    """
    at = tick = status = 0
    stop = len(body) if stop is None else stop
    try:
        while at < stop:
            if common and (run := common.match(body, at, stop)):
                at, status = run.end(), body[run.start(1)]
                continue
            delta = body[at]
            at += 1
            if delta >= 0x80:
                delta, at = _variable(body, at - 1)
            tick += delta
            kind = status
            if body[at] >= 0x80:
                kind = body[at]
                at += 1
            elif not status:
                raise MidiError(f"unreadable MIDI events: data byte 0x{body[at]:02x} where a status byte must stand")
            if kind < 0xC0:  # nearly all
                length, start = 2, at
            elif kind == _META:
                length, start = _variable(body, at + 1)
                kind = _META << 8 | body[at]
            elif kind in (_SYSEX, _SYSEX_END):
                length, start = _variable(body, at)
            else:
                length, start = (_SYSTEM_BYTES.get(kind, 0) if kind > _SYSEX else 1 if 0xC0 <= kind < 0xE0 else 2), at
            if kind < 0xF8:  # a meta event, or a message in real time, leaves running status as it is; SysEx ends it
                status = kind if kind < _SYSEX else 0
            at = start + length
            if at > len(body):
                break
            yield tick, kind, start, at
    except IndexError:
        at = len(body) + 1
    if at > len(body):
        raise MidiError("unreadable MIDI events: the track ends within an event")


def last_tick(body: bytes) -> int:
    """The tick of a track's last event; a MidiError as from `walk`."""
    return max((tick for tick, *_ in _events(body)), default=0)


def changes_program(body: bytes, channel: int) -> bool:
    """Tell whether a track sets a channel to more than one program; a MidiError as from `walk`."""
    change = _PROGRAM_CHANGE + channel  # with one data byte, so that it is none of the common events
    return len({body[start] for _, status, start, _ in _events(body, _COMMON) if status == change}) > 1


def is_doubtful(body: bytes) -> bool:
    """Tell whether a track has events that symusic misreads, or that are to be counted as damaged.

    symusic takes the payload of a continuation or escape (a SysEx event that begins with 0xF7, legal in a file) for
    delta times and events, and likewise whatever it finds under running status after a SysEx event. It does not tell
    of meta events of a wrong length or value, nor of pressure above 127.
    """
    # Nearly every track is told by these two looks: a delta time of 4,096 ticks and more may have such a byte, too.
    last, sound = _last_suspect(body), all(_is_sound(*place) for place in _meta_places(body))
    if last < 0 and sound:
        return False
    try:  # long delta times stand where music begins, so that what is read here is short
        events = list(_events(body, _WITHOUT_PRESSURE, last + 1 if sound else None))
        if any(status < _SYSEX and status & 0xF0 in _PRESSURES for _, status, _, _ in events):
            events = list(_events(body, _COMMON))  # more may follow under running status
        return any(_is_misread(status, body[start:end]) for _, status, start, end in events)
    except MidiError:
        return True


def _is_misread(status: int, data: bytes) -> bool:
    if status >> 8 == _META:
        return not _is_sound(status & 0xFF, data)
    if status == _SYSEX:
        return not data.removesuffix(b"\xf7").isascii()
    return status > _SYSEX or (status & 0xF0 in _PRESSURES and not data.isascii())


def without_damage(body: bytes) -> bytes:
    """A track with the events that readers understand and no others, each with a status byte of its own.

    Left out are damaged events, SysEx, system messages, and meta events but for texts, names, lyrics, tempi, metres and
    keys; what follows them keeps its tick. A MidiError as from `walk`.
    """
    made, last = bytearray(), 0
    for tick, status, start, end in _events(body):
        kind, data = status & 0xFF, body[start:end]
        if status >> 8 == _META:
            if kind not in _KEPT_META or not _is_sound(kind, data):
                continue
            event = bytes((_META, kind)) + as_variable(len(data)) + data
        elif status < _SYSEX and data.isascii():
            event = bytes((status,)) + data
        else:
            continue
        made += as_variable(tick - last) + event
        last = tick
    return bytes(made + b"\x00\xff\x2f\x00")


def as_variable(value: int) -> bytes:
    """A number in seven bits a byte, the last without the high bit, as delta times and lengths are written."""
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.append(value & 0x7F | 0x80)
    return bytes(reversed(digits))


def without_tempi(body: bytes) -> bytes:
    """A track without its set-tempo events, whose delta times stay."""
    first, *rest = body.split(_SET_TEMPO)
    if any(len(part) < 3 for part in rest):  # what looks like another event within three bytes is a tempo's value
        return _TEMPO_EVENT.sub(b"", body)
    return b"".join([first, *(part[3:] for part in rest)])  # four times as fast


def _last_suspect(body: bytes) -> int:
    """Where the last of `_SUSPECTS` stands, or -1 where there are none but in set-tempo events, which may hold any."""
    last = body.translate(_SUSPECTS).rfind(1)
    return last if last < 0 or 1 in without_tempi(body).translate(_SUSPECTS) else -1


def _meta_places(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and data of what looks like a meta event of a kind that is checked."""
    for found in _CHECKED_META.finditer(body):
        length = body[found.end() : found.end() + 1]
        yield found[1][0], body[found.end() + 1 : found.end() + 1 + sum(length)]


def _is_sound(kind: int, data: bytes) -> bool:
    """True unless a meta event that tells tempo, metre, key or SMPTE offset holds a value that it may not hold."""
    if kind == _TEMPO:
        return len(data) == 3 and any(data)
    if kind == _METRE:
        return len(data) >= 2 and data[0] > 0 and data[1] <= _SHORTEST_BEAT
    if kind == _KEY:
        return len(data) == 2 and (data[0] <= 7 or data[0] >= 249) and data[1] <= 1
    if kind == _SMPTE:
        if len(data) != 5 or data[0] >= 0x80:
            return False
        return all(value < limit for value, limit in zip([data[0] & 0x1F, *data[1:]], _SMPTE_LIMITS, strict=True))
    return True


@dataclass(frozen=True, kw_only=True)
class Track:
    """An instrument: a program on a channel of a MIDI track, as pretty_midi separates them."""

    name: str
    program: int
    """0..127 (General MIDI, 0 is the grand piano)."""
    is_drum: bool
    """Channel 10, where pitches are drum sounds."""


@dataclass(frozen=True, kw_only=True)
class TrackContent:
    """The content of a MIDI track."""

    instruments: Sequence[tuple[Track, NDArray[np.int64]]]
    """Instruments with a note, in the order in which their first notes end, as pretty_midi separates them; and their
    notes, [4, n]: start and end in ticks, pitch, velocity, in no particular order but by start for equal pitches."""
    tempi: NDArray[np.int64]
    """[k, 2] ticks of set-tempo events, ascending, and microseconds a beat."""
    metre: NDArray[np.int64]
    """[m, 3] tick, numerator and denominator of time signatures, ascending."""
    dropped: Mapping[str, int]
    """Note-ons of which no note came, by reason."""
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Damaged events that have no bearing on notes, by kind."""


def walk(body: bytes, *, keep_unreleased: bool = False) -> TrackContent:
    """Read a track event by event: the body of an MTrk chunk -> `TrackContent`, by pretty_midi's rules.

    A note-off ends every open note of its channel and pitch that began at an earlier tick; if there is none, it
    discards those that began at its own tick. A note belongs to the program that its channel has when it ends, and its
    instrument bears the name that the track has when the first of its notes ends.

    Args:
        body: the body of an MTrk chunk.
        keep_unreleased: whether notes that are never ended last to the end of the track; pretty_midi drops them.

    Raises:
        MidiError: the events cannot be read, or there are more than `MAX_NOTES` notes.
    """
    walker = _Walker()
    for event in _events(body):
        walker.take(body, *event)
    return walker.finish(keep_unreleased)


class _Walker:
    """The state of a track at a tick."""

    def __init__(self) -> None:
        self.tick = 0
        self.name = ""
        self.programs = [0] * 16
        self.open: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self.notes: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
        self.names: dict[tuple[int, int], str] = {}
        self.count = 0
        self.tempi: list[tuple[int, int]] = []
        self.metre: list[tuple[int, int, int]] = []
        self.dropped: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()

    def take(self, body: bytes, tick: int, status: int, start: int, end: int) -> None:
        self.tick = tick
        kind, channel = status & 0xF0, status & 0x0F
        if kind <= _NOTE_ON and status < _SYSEX:
            pitch, velocity = body[start], body[start + 1]
            if (pitch | velocity) > 127:
                raise MidiError(f"unreadable MIDI events: a data byte above 127 in a note at tick {tick}")
            if kind == _NOTE_ON and velocity:
                self._begin(channel, pitch, velocity)
            else:
                self._end(channel, pitch)
            return
        data = body[start:end]
        if status >= _SYSEX:
            self._take_other(status, data)
        elif not data.isascii():
            self.ignored[_DAMAGED[kind]] += 1
        elif kind == _PROGRAM_CHANGE:
            self.programs[channel] = data[0]

    def _take_other(self, status: int, data: bytes) -> None:
        kind = status & 0xFF
        if status in _NOT_IN_FILES:
            self.ignored["system message"] += 1
        elif status < _META:  # what begins with 0xF7 may hold any bytes
            self.ignored["SysEx event"] += status == _SYSEX and not data.removesuffix(b"\xf7").isascii()
        elif not _is_sound(kind, data):
            self.ignored[_META_NAMES[kind]] += 1
        elif kind == _NAME:
            self.name = data.decode("utf-8", "replace")
        elif kind == _TEMPO:
            self.tempi.append((self.tick, int.from_bytes(data, "big")))
        elif kind == _METRE:
            self.metre.append((self.tick, data[0], 1 << data[1]))

    def _begin(self, channel: int, pitch: int, velocity: int) -> None:
        self.count += 1
        if self.count > MAX_NOTES:
            raise MidiError(too_many_notes())
        self.open.setdefault((channel, pitch), []).append((self.tick, velocity))

    def _end(self, channel: int, pitch: int) -> None:
        begun = self.open.pop((channel, pitch), None)
        if begun is None:
            return
        if len(begun) == 1 and begun[0][0] != self.tick:  # nearly always, and told in half the time
            start, velocity = begun[0]
            self._add(channel, (start, self.tick, pitch, velocity))
            return
        older = [(start, velocity) for start, velocity in begun if start != self.tick]
        for start, velocity in older:
            self._add(channel, (start, self.tick, pitch, velocity))
        rest = begun[len(older) :]
        if older and rest:
            self.open[channel, pitch] = rest
        else:
            self.dropped[ZERO_DURATION] += len(rest)

    def _add(self, channel: int, note: tuple[int, int, int, int]) -> None:
        instrument = (self.programs[channel], channel)
        if instrument not in self.notes:
            self.names[instrument], self.notes[instrument] = self.name, []
        self.notes[instrument].append(note)

    def finish(self, keep_unreleased: bool) -> TrackContent:
        for key in list(self.open):
            while keep_unreleased and key in self.open:  # once more for those that began at the last tick
                self._end(*key)
        self.dropped[NEVER_RELEASED] += sum(map(len, self.open.values()))
        instruments = []
        for (program, channel), notes in self.notes.items():
            table = np.array(notes, dtype=np.int64).T
            track = Track(name=self.names[program, channel], program=program, is_drum=channel == _DRUM_CHANNEL)
            instruments.append((track, table[:, np.argsort(table[0], kind="stable")]))
        return TrackContent(
            instruments=instruments,
            tempi=np.array(self.tempi, dtype=np.int64).reshape(-1, 2),
            metre=np.array(self.metre, dtype=np.int64).reshape(-1, 3),
            dropped=+self.dropped,
            ignored=+self.ignored,
        )


def too_many_notes() -> str:
    """Why a file with more than `MAX_NOTES` notes is refused."""
    return f"more than {MAX_NOTES:,} notes: no piece of music has so many"
