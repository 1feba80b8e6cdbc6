"""Pieces of a corpus, with their splits and labels, from its files and the split lists.

The lists of the paper's corpora are the authors' (`splits/*.json`), in the authors' order, which is the row order of
their published arrays. Lists of Lieder are ours, without any random number: groups (composers; for the task of telling
composers apart the cycles of each, where there are at least 20 songs in three cycles) are taken by number of songs,
most first, ties by name; each goes whole to the split where it raises least the sum of (songs - target)^2 / target
over the splits, the targets being 80, 10 and 10 % of the songs, ties in the order train, valid, test. A split that
would hold no cycle of a composer gets the smallest of the training split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from midibert_ray.corpora.catalogue import Corpus
from midibert_ray.corpora.note_labels import SUFFIX
from midibert_ray.music.protocol import Protocol
from midibert_ray.music.score import SCORE_SUFFIXES

PRETRAIN = "pretrain"
"""The split of every piece of a corpus without splits."""

MIDI_SUFFIXES = (".mid", ".midi")
"""Endings of MIDI files, in lower or upper case."""

MUSIC_SUFFIXES = (*MIDI_SUFFIXES, *SCORE_SUFFIXES)
"""Endings of all files that are read."""

_SPLITS = Path(__file__).with_name("splits")


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A piece of a corpus."""

    piece: str
    """Its id, as in the split lists."""
    files: tuple[str, ...]
    """Paths below the corpus folder: the MIDI file, then for POP909 its ``beat_audio.txt``."""
    split: str
    """"train", "valid", "test" or "pretrain"."""
    label: str | None
    """Composer or "Q1".."Q4"; None where the corpus has no labels."""
    notes: tuple[str, ...] = ()
    """Names of the classes of its notes, where its owner labels them; see `note_labels`."""


def list_pieces(
    corpus: Corpus, files: Mapping[str, int], protocol: Protocol, notes: tuple[str, ...] = ()
) -> list[Piece]:
    """The pieces, in the order of the authors' lists; of a corpus without lists by id.

    Args:
        corpus: an entry of the catalogue.
        files: relative posix path -> size, for all files below the corpus folder. Pieces of a corpus without lists come
            from here alone; listed ones are given whether they are there or not.
        protocol: says which of EMOPIA's splits.
        notes: names of the classes of notes, in a corpus without lists; tables of them lie beside MIDI files.
    """
    if corpus.lists is None:
        found = sorted(path for path in files if path.lower().endswith(MUSIC_SUFFIXES))
        pieces = [_piece(corpus, path, corpus.split) for path in found]
        return [_with_notes(piece, files, notes) for piece in pieces] if notes else pieces
    by_song = protocol.emopia_split == "song" and corpus.lists_by_song
    lists = _split_lists(by_song or corpus.lists)
    listed = [_piece(corpus, name, split) for split, names in lists.items() for name in names]
    if corpus.name != "sample":
        return listed
    return [piece for piece in listed if Path(corpus.folder, piece.files[0]).exists()]


def _with_notes(piece: Piece, files: Mapping[str, int], notes: tuple[str, ...]) -> Piece:
    table = piece.piece.rpartition(".")[0] + SUFFIX
    return replace(piece, notes=notes, files=(*piece.files, *((table,) if table in files else ())))


def _piece(corpus: Corpus, name: str, split: str) -> Piece:
    files = [corpus.midi.format(name, name)]
    if corpus.beats is not None:
        files.append(corpus.beats.format(name))
    label = name.split({"folder": "/", "prefix": "_"}[corpus.label])[0] if corpus.label else None
    return Piece(piece=name, files=tuple(files), split=split, label=label)


@cache
def _split_lists(name: str) -> dict[str, list[str]]:
    return json.loads((_SPLITS / f"{name}.json").read_text(encoding="utf-8"))
