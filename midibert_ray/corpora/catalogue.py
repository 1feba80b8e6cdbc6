"""The five corpora of the paper, the sample inside this package, and any folder of MIDI files.

Each corpus knows how its publisher lays files out, so what a user downloads is read where it lies. Split
lists are the authors' (JSON beside this file), in the authors' order, which is the row order of their
published arrays.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal

from midibert_ray.music.grid import PARTS, align_to_beats, quantize, read_beats
from midibert_ray.music.midi import read_notes
from midibert_ray.music.protocol import Protocol
from midibert_ray.music.tokens import Tokens, encode

PRETRAIN = "pretrain"
"""The split of every piece of a corpus without splits."""

MIDI_SUFFIXES = (".mid", ".midi")
"""Endings of MIDI files, in lower or upper case."""

_PACKAGE = Path(__file__).parent
_FOLDER_PREFIX = "folder:"


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


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Where a corpus lies, what it holds, and under which terms."""

    name: str
    """What `corpus` was asked for: "pop909", or "folder:/path"."""
    title: str
    folder: str
    """Below the corpora's root; for a folder corpus its own address, for the sample its path in this
    package."""
    licence: str
    redistribute: bool
    """Whether the licence lets anyone pass the files on for any purpose; not so if research or non-commercial
    use is a condition."""
    citation: str = ""
    url: str = ""
    lists: str | None = None
    """Split lists (JSON beside this file); None: all MIDI files of the folder, split "pretrain"."""
    lists_by_song: str | None = None
    """Those with every song in one split alone, where `lists` divide its clips."""
    midi: str = "{}"
    """Piece id -> path of the MIDI file."""
    beats: str | None = None
    """Piece id -> path of the beat annotation to align to."""
    label: Literal["folder", "prefix"] | None = None
    """Labels are the first folder's name, or what stands before the first underscore of the id."""
    parts: tuple[str, ...] = ()
    """Names of the tracks that are melody, bridge and accompaniment."""
    merged: bool = False
    """Whether the published arrays have notes of one onset by pitch, and not track by track; see `quantize`."""
    absolute: bool = False
    """``folder`` is an address of its own, not one below the corpora's root."""

    @property
    def slug(self) -> str:
        """The name for use in a path: letters, digits, dots, dashes and underscores."""
        if not self.name.startswith(_FOLDER_PREFIX):
            return self.name
        folder = self.folder.partition("?")[0] if "://" in self.folder else self.folder
        return "folder-" + (re.sub(r"[^\w.-]+", "-", PurePosixPath(folder).name).strip("-.") or "midi")

    def location(self, root: str) -> str:
        """The address of the corpus's files, given the address (path or URI) that all corpora lie under."""
        if self.absolute:
            return self.folder
        base, mark, query = root.partition("?") if "://" in root else (root, "", "")
        return f"{base.rstrip('/')}/{self.folder}{mark}{query}"  # the query says which server has the bucket

    def pieces(self, files: Mapping[str, int], protocol: Protocol) -> list[Piece]:
        """The pieces, in the order of the authors' lists; a corpus without lists: by id.

        Args:
            files: what lies below `location`: relative posix path -> size in bytes. Listed pieces are given
                whether they are there or not; files of a corpus without lists come from here alone.
            protocol: says which of EMOPIA's splits.
        """
        if self.lists is None:
            found = sorted(path for path in files if path.lower().endswith(MIDI_SUFFIXES))
            return [self._piece(path, PRETRAIN) for path in found]
        by_song = protocol.emopia_split == "song" and self.lists_by_song
        listed = _split_lists(by_song or self.lists).items()
        chosen = _sample_ids() if self.name == "sample" else None
        return [
            self._piece(piece, split) for split, names in listed for piece in names if chosen is None or piece in chosen
        ]

    def _piece(self, piece: str, split: str) -> Piece:
        files = [self.midi.format(piece, piece)]
        if self.beats is not None:
            files.append(self.beats.format(piece))
        label = None
        if self.label == "folder":
            label = piece.split("/")[0]
        elif self.label == "prefix":
            label = piece.split("_")[0]
        return Piece(piece=piece, files=tuple(files), split=split, label=label)


_POP909 = Corpus(
    name="pop909",
    title="POP909",
    folder="POP909",
    licence="MIT",
    redistribute=True,
    citation='Z. Wang et al., "POP909: A pop-song dataset for music arrangement generation", ISMIR 2020',
    url="https://github.com/music-x-lab/POP909-Dataset",
    lists="pop909",
    midi="{}/{}.mid",
    beats="{}/beat_audio.txt",
    parts=PARTS,
)

CORPORA: dict[str, Corpus] = {
    entry.name: entry
    for entry in (
        _POP909,
        Corpus(
            name="pop1k7",
            title="Pop1K7",
            folder="Pop1K7/midi_synchronized",
            licence="not stated: research use only",
            redistribute=False,
            citation='W.-Y. Hsiao et al., "Compound Word Transformer", AAAI 2021',
            url="https://github.com/YatingMusic/compound-word-transformer",
        ),
        Corpus(
            name="asap",
            title="ASAP (4/4 scores)",
            folder="asap-dataset",
            licence="CC BY-NC-SA 4.0",
            redistribute=False,
            citation='F. Foscarin et al., "ASAP: A dataset of aligned scores and performances", ISMIR 2020',
            url="https://github.com/fosfrancesco/asap-dataset",
            lists="asap",
            merged=True,
        ),
        Corpus(
            name="pianist8",
            title="Pianist8",
            folder="Pianist8/midi",
            licence="not stated: research use only",
            redistribute=False,
            citation='Y.-H. Chou et al., "MidiBERT-Piano", 2021; Pianist8, Zenodo record 5089279',
            url="https://zenodo.org/record/5089279",
            lists="pianist8",
            label="folder",
        ),
        Corpus(
            name="emopia",
            title="EMOPIA",
            folder="EMOPIA_1.0/midis",
            licence="CC BY-NC-SA 4.0",
            redistribute=False,
            citation='H.-T. Hung et al., "EMOPIA: A multi-modal pop piano dataset", ISMIR 2021',
            url="https://zenodo.org/record/5090631",
            lists="emopia",
            lists_by_song="emopia_song_disjoint",
            label="prefix",
        ),
        replace(
            _POP909,
            name="sample",
            title="POP909, 32 pieces inside this package",
            folder=str(_PACKAGE / "sample" / "POP909"),
            absolute=True,
        ),
    )
}
"""The corpora that have a name."""


def corpus(name: str) -> Corpus:
    """The corpus of this name: pop909, pop1k7, asap, pianist8, emopia, sample, or ``folder:<path or URI>``.

    A folder corpus is every ``.mid`` and ``.midi`` file below the folder, however deep; the piece id is the
    path below it. Lists of corpora on the command line are split at commas, so that a folder whose path holds
    one cannot be named there: rename it, or name a link to it.

    Raises:
        ValueError: no such corpus (the nearest name is given), or a folder without a path.
    """
    if name.startswith(_FOLDER_PREFIX):
        folder = name.removeprefix(_FOLDER_PREFIX).rstrip("/") or "/" * name.endswith("/")
        if not folder:
            raise ValueError(f"corpus {name!r} names no folder; write folder:/path/to/midi")
        return Corpus(
            name=name,
            title=f"MIDI files below {folder}",
            folder=folder,
            licence="the user's own files",
            redistribute=False,
            absolute=True,
        )
    if name in CORPORA:
        return CORPORA[name]
    nearest = difflib.get_close_matches(name.lower(), CORPORA, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"unknown corpus {name!r}; did you mean {nearest!r}? "
        f"Known: {', '.join(CORPORA)}, or folder:/path/to/midi for files of your own "
        "(without a comma in the path, which would end the name: rename or link such a folder)"
    )


@cache
def _split_lists(name: str) -> dict[str, list[str]]:
    return json.loads((_PACKAGE / "splits" / f"{name}.json").read_text(encoding="utf-8"))


@cache
def _sample_ids() -> frozenset[str]:
    return frozenset(path.parent.name for path in (_PACKAGE / "sample" / "POP909").glob("*/beat_audio.txt"))


def tokenize_piece(corpus: Corpus, piece: Piece, contents: Sequence[bytes], protocol: Protocol) -> Tokens:
    """A piece's files -> its CP rows.

    Args:
        corpus: as `corpus` gives it.
        piece: as `Corpus.pieces` gives it.
        contents: the bytes of ``piece.files``, in that order.
        protocol: its fields of `tokens` are used.

    Raises:
        MidiError: the piece cannot be used; ``str(error)`` is the reason.
    """
    notes = read_notes(contents[0])
    lost: dict[str, int] = {}
    if corpus.beats is not None:
        notes, lost = align_to_beats(notes, read_beats(contents[1]))
    grid = quantize(notes, protocol, merged=corpus.merged, parts=corpus.parts)
    return encode(replace(grid, dropped=lost | dict(grid.dropped)))
