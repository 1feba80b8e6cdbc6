"""Folders of small MIDI files with labels, as a user has them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

Note = tuple[int, int, int]
"""Onset and length in sixteenths, and MIDI pitch."""

_TICKS = 120  # of a sixteenth


def write_midi(path: Path, tracks: Mapping[str, Iterable[Note]] | Iterable[Note]) -> None:
    """A MIDI file of some notes, or of several named tracks, at 480 ticks per beat."""
    named = tracks if isinstance(tracks, Mapping) else {"piano": tracks}
    chunks = [_track(name, list(notes)) for name, notes in named.items()]
    head = b"MThd" + (6).to_bytes(4, "big") + bytes([0, 1, 0, len(chunks)]) + (480).to_bytes(2, "big")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + b"".join(chunks))


def _track(name: str, notes: Sequence[Note]) -> bytes:
    events = [(onset * _TICKS, 1, pitch) for onset, _, pitch in notes]
    events += [((onset + length) * _TICKS, 0, pitch) for onset, length, pitch in notes]
    body, now = b"\x00\xff\x03" + bytes([len(name)]) + name.encode(), 0
    for tick, on, pitch in sorted(events):
        body += _variable(tick - now) + bytes([0x90, pitch, 70 * on])
        now = tick
    body += b"\x00\xff\x2f\x00"
    return b"MTrk" + len(body).to_bytes(4, "big") + body


def _variable(value: int) -> bytes:
    found = [value & 0x7F]
    while value := value >> 7:
        found.append(0x80 | value & 0x7F)
    return bytes(reversed(found))


def tune(seed: int, notes: int = 48, low: int = 50) -> list[Note]:
    """A melody of random notes, one after the other."""
    random = np.random.default_rng(seed)
    steps = random.integers(1, 4, notes)
    onsets = np.cumsum(steps) - steps
    pitches = low + random.integers(0, 24, notes)
    return [(int(onset), int(step), int(pitch)) for onset, step, pitch in zip(onsets, steps, pitches, strict=True)]


def write_folder(folder: Path, names: Iterable[str]) -> list[str]:
    """A folder with a tune of its own under each name; high ones below a folder `high`, or in names that say so."""
    written = list(names)
    for number, name in enumerate(written):
        write_midi(folder / name, tune(number, low=70 if "high" in name else 30))
    return written
