"""MIDI files that are hard to read, built byte by byte or through mido."""

from __future__ import annotations

import io
import struct

import mido


def message(kind: str, time: int = 0, **fields: int) -> mido.Message:
    return mido.Message(kind, time=time, **fields)


def note(pitch: int, length: int, time: int = 0, velocity: int = 64, channel: int = 0) -> list[mido.Message]:
    on = message("note_on", time, note=pitch, velocity=velocity, channel=channel)
    return [on, message("note_off", length, note=pitch, channel=channel)]


def midi_file(*tracks: list, ticks_per_beat: int = 480, kind: int | None = None) -> bytes:
    """A file with these tracks (messages with delta times); format 0 for one track, else 1, unless told."""
    kind = int(len(tracks) > 1) if kind is None else kind
    midi = mido.MidiFile(type=kind, ticks_per_beat=ticks_per_beat)
    midi.tracks.extend(mido.MidiTrack(track) for track in tracks)
    buffer = io.BytesIO()
    midi.save(file=buffer)
    return buffer.getvalue()


def raw_file(*bodies: bytes, division: int = 480, kind: int = 0, declared: int | None = None) -> bytes:
    count = len(bodies) if declared is None else declared
    chunks = b"".join(struct.pack(">4sI", b"MTrk", len(body)) + body for body in bodies)
    return struct.pack(">4sIHHH", b"MThd", 6, kind, count, division) + chunks


def riff(data: bytes) -> bytes:
    """``data`` in a RIFF RMID container, behind a chunk that is to be skipped."""
    chunks = b"RMIDLIST" + struct.pack("<I", 3) + b"abc\0" + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


END = bytes.fromhex("00ff2f00")

RUNNING_STATUS = raw_file(bytes.fromhex("00903c40 8360 3c00 00 4050 8360 4000".replace(" ", "")) + END)
"""Two quarters, C4 and E4, one status byte; note-offs are note-ons of velocity 0."""

SPLIT_SYSEX = raw_file(bytes.fromhex("00f0037e7f09 60f7030102f7 00903c40 60803c00".replace(" ", "")) + END)
"""A SysEx message in two packets, the second 96 ticks after the first; then C4."""

ESCAPED = raw_file(bytes.fromhex("00f703f30140 00903c40 60803c00".replace(" ", "")) + END)
"""A song select as an escape, which pretty_midi refuses for its byte above 127; then C4."""
