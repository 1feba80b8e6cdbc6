"""The container of a Standard MIDI File: header, track chunks, RIFF wrapping. Events are read elsewhere.

Splitting the file first costs microseconds and gives three things that an event parser does not: a clear
reason for every kind of broken container, the time division before anything is allocated, and each track on
its own, so that its notes can be told from those of other tracks.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

HEADER_BYTES = 14
"""Length of an MThd chunk as every file has it: name, length 6, format, tracks, division."""


class MidiError(ValueError):
    """A MIDI file that cannot be used. ``str(error)`` is the reason that a manifest shows."""


class NoNotesError(MidiError):
    """A MIDI file of which no note is left."""

    def __init__(self, dropped: Mapping[str, int], where: str = "") -> None:
        """Given the notes that were dropped by reason, and where there are none (" within the annotated beats")."""
        counts = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items() if count)
        super().__init__(f"no notes{where} (dropped: {counts})" if counts else f"no notes{where}")


def pack(ticks_per_beat: int, *bodies: bytes) -> bytes:
    """The bytes of a MIDI file of these tracks."""
    chunks = (struct.pack(">4sI", b"MTrk", len(body)) + body for body in bodies)
    return struct.pack(">4sIHHH", b"MThd", 6, int(len(bodies) > 1), len(bodies), ticks_per_beat) + b"".join(chunks)


def split(data: bytes) -> tuple[int, list[bytes], int]:
    """The ticks per beat of a MIDI file, the bodies of its MTrk chunks, and how many more there are than declared.

    A RIFF wrapper ("RMID", files named .rmi) is taken off. Chunks that are not MTrk are skipped, as the MIDI
    standard asks; whatever follows the last declared track is left out, and the independent patterns
    of format 2 are read like the tracks of format 1, as every reader in the field does.

    Raises:
        MidiError: not a MIDI file, cut short, no track, SMPTE time division or zero ticks per beat.
    """
    if data[:4] == b"RIFF":
        data = _unwrap_riff(data)
    if not data:
        raise MidiError("empty file")
    if data[:4] != b"MThd":
        raise MidiError(f"not a MIDI file: it begins with {_quoted(data[:4])}, not 'MThd'")
    if len(data) < HEADER_BYTES:
        raise MidiError(f"truncated: {len(data)} bytes, the header alone has {HEADER_BYTES}")
    length, kind, count, division = struct.unpack(">IHHH", data[4:HEADER_BYTES])
    if length < 6:
        raise MidiError(f"not a MIDI file: header length {length}, at least 6 is needed")
    if kind > 2:
        raise MidiError(f"unknown MIDI format {kind}; 0, 1 and 2 exist")
    if division & 0x8000:
        raise MidiError(f"SMPTE time division 0x{division:04x}: beats are needed, ticks per beat only")
    if division == 0:
        raise MidiError("zero ticks per beat in the header")
    if count == 0:
        raise MidiError("no tracks: the header declares 0")
    return division, *_tracks(data, 8 + length, count)


def _tracks(data: bytes, at: int, count: int) -> tuple[list[bytes], int]:
    bodies: list[bytes] = []
    while len(bodies) < count:
        if at + 8 > len(data):
            raise MidiError(f"truncated: {len(bodies)} of the {count} tracks that the header declares")
        name, length = struct.unpack(">4sI", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        if len(body) < length:
            raise MidiError(f"truncated: a chunk of {length} bytes ends after {len(body)}")
        if name == b"MTrk":
            bodies.append(body)
        at += 8 + length
    more = 0
    while data[at : at + 4] == b"MTrk" and at + 8 <= len(data):
        more += 1
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "big")
    return bodies, more


def _unwrap_riff(data: bytes) -> bytes:
    """The MIDI file inside a RIFF "RMID" container: the body of its ``data`` chunk."""
    if data[8:12] != b"RMID":
        raise MidiError(f"a RIFF file of type {_quoted(data[8:12])}; only RMID holds MIDI")
    at = 12
    while at + 8 <= len(data):
        name, length = struct.unpack("<4sI", data[at : at + 8])
        if name == b"data":
            return data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2  # chunks are padded to even
    raise MidiError("a RIFF RMID file without a data chunk")


def _quoted(name: bytes) -> str:
    """The name of a chunk as text; what is not printable is spelled `\\x89`."""
    return "'" + "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in name) + "'"
