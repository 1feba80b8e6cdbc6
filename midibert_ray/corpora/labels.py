"""Pieces of a corpus, with their splits and labels, from its files and the split lists.

The lists are the authors' (`splits/*.json`), in the authors' order, which is the row order of their published arrays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from midibert_ray.corpora.catalogue import Corpus
from midibert_ray.music.protocol import Protocol

PRETRAIN = "pretrain"
"""The split of every piece of a corpus without splits."""

MIDI_SUFFIXES = (".mid", ".midi")
"""Endings of MIDI files, in lower or upper case."""

_SPLITS = Path(__file__).with_name("splits")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One piece of a corpus."""

    piece: str
    """Its id, as in the split lists."""
    files: tuple[str, ...]
    """Paths below the corpus folder: the MIDI file, then for POP909 its ``beat_audio.txt``."""
    split: str
    """"train", "valid", "test" or "pretrain"."""
    label: str | None
    """Composer or "Q1".."Q4"; None where the corpus has no labels."""


def list_pieces(corpus: Corpus, files: Mapping[str, int], protocol: Protocol) -> list[Piece]:
    """The pieces, in the order of the authors' lists; of a corpus without lists by id.

    Args:
        corpus: an entry of the catalogue.
        files: relative posix path -> size in bytes, for all files below the corpus folder. Listed pieces are given
            whether they are there or not; pieces of a corpus without lists come from here alone.
        protocol: says which of EMOPIA's splits.
    """
    if corpus.lists is None:
        found = sorted(path for path in files if path.lower().endswith(MIDI_SUFFIXES))
        return [_piece(corpus, path, PRETRAIN) for path in found]
    by_song = protocol.emopia_split == "song" and corpus.lists_by_song
    chosen = _sample_ids(corpus.folder) if corpus.name == "sample" else None
    return [
        _piece(corpus, name, split)
        for split, names in _split_lists(by_song or corpus.lists).items()
        for name in names
        if chosen is None or name in chosen
    ]


def _piece(corpus: Corpus, name: str, split: str) -> Piece:
    files = [corpus.midi.format(name, name)]
    if corpus.beats is not None:
        files.append(corpus.beats.format(name))
    label = name.split({"folder": "/", "prefix": "_"}[corpus.label])[0] if corpus.label else None
    return Piece(piece=name, files=tuple(files), split=split, label=label)


@cache
def _split_lists(name: str) -> dict[str, list[str]]:
    return json.loads((_SPLITS / f"{name}.json").read_text(encoding="utf-8"))


@cache
def _sample_ids(folder: str) -> frozenset[str]:
    return frozenset(path.parent.name for path in Path(folder).glob("*/beat_audio.txt"))
