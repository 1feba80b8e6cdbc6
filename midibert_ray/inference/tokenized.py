"""Ids of a piece, and the way back to its notes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pretty_midi
from numpy.typing import NDArray

from midibert_ray.inference.annotator import read_grid
from midibert_ray.inference.sources import Song, Source, read_song
from midibert_ray.music.grid import GridNotes
from midibert_ray.music.protocol import PROTOCOLS, Protocol, ProtocolName
from midibert_ray.music.tokens import decode, encode, to_pretty_midi


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """The ids of one piece."""

    ids: NDArray[np.int64]
    """[steps, 4] (CP: Bar, Position, Pitch, Duration) or [steps] (REMI); names: `midibert_ray.music.vocabulary`."""
    note_at: NDArray[np.int64]
    """[n] the time step of each note; REMI: of its Pitch."""
    grid: GridNotes = field(repr=False)
    """The notes that have a token; `source` leads to those of `song.notes`."""
    song: Song = field(repr=False)

    def to_midi(self) -> pretty_midi.PrettyMIDI:
        """The notes as the ids tell them, on the grid of sixteenths, in the piece's mean tempo, with its velocities."""
        notes = self.song.notes
        ticks = max(int(notes.end.max()), 1)
        seconds = float(self.song.offset_s.max())
        return to_pretty_midi(encode(self.grid), tempo=60.0 * ticks / notes.ticks_per_beat / seconds)


def tokenize(
    source: Source, representation: Literal["cp", "remi"] = "cp", protocol: ProtocolName | Protocol = "clean"
) -> Tokenized:
    """The ids of a piece.

    Args:
        source: a path, the bytes of a MIDI file, a `pretty_midi.PrettyMIDI` or a symusic `Score`.
        representation: `cp`, an id of each token type a note, or `remi`, one id after the other.
        protocol: `clean`, `paper`, or one of your own; see README.

    Raises:
        ValueError: there is no such representation or protocol.
        MidiError: the piece cannot be used, or has no notes; FileNotFoundError, TypeError: see `read_song`.
    """
    if representation not in ("cp", "remi"):
        raise ValueError(f"representation={representation!r} is not possible; allowed: 'cp', 'remi'")
    if not isinstance(protocol, Protocol) and protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r} is not possible; allowed: {', '.join(map(repr, PROTOCOLS))}")
    song = read_song(source)
    grid, ids, note_at = read_grid(song, representation, PROTOCOLS.get(protocol, protocol))  # type: ignore[arg-type]
    return Tokenized(ids=ids, note_at=note_at, grid=grid, song=song)


def detokenize(ids: NDArray[np.integer], tempo: float = 120.0) -> pretty_midi.PrettyMIDI:
    """Ids alone, from wherever they come, as a MIDI file in 4/4; see `music.tokens.decode`, also for its errors.

    Args:
        ids: [notes, 4] (CP) or [steps] (REMI), without PAD and MASK.
        tempo: quarters per minute.
    """
    return to_pretty_midi(decode(ids), tempo)
