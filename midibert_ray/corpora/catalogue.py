"""The five corpora of the paper, two more with a melody, the sample inside this package, and any folder of files.

An entry describes how its publisher lays files out, so that a download is read where it lies. `labels` makes pieces
of an entry, `tokens` makes tokens of a piece.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from midibert_ray.music.grid import PARTS

_PACKAGE = Path(__file__).parent
_FOLDER_PREFIX = "folder:"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus: its place, layout and terms of use."""

    name: str
    """The name that `corpus` takes: "pop909", or "folder:/path"."""
    title: str
    folder: str
    """Below the corpora's root; for a folder corpus its own address, for the sample its path in this
    package."""
    licence: str
    redistribute: bool
    """True where the licence lets anyone pass the files on for any purpose; not so if research or non-commercial
    use is a condition."""
    citation: str = ""
    url: str = ""
    lists: str | None = None
    """Name of the split lists (`splits/*.json`); None: all files of the folder, split `split`."""
    lists_by_song: str | None = None
    """Lists with every song in one split alone, where `lists` divide its clips."""
    midi: str = "{}"
    """Piece id -> path of the MIDI file."""
    beats: str | None = None
    """Piece id -> path of the beat annotation to align to."""
    label: Literal["folder", "prefix"] | None = None
    """Labels are the first folder's name, or what stands before the first underscore of the id."""
    parts: tuple[str, ...] = ()
    """Names of the tracks that are melody, bridge and accompaniment."""
    score_parts: tuple[str, ...] = ()
    """Names that the parts of a score (MusicXML) get, in their order, whatever the score calls them."""
    split: str = "pretrain"
    """The split of every piece of a corpus without lists."""
    merged: bool = False
    """The published arrays have notes of one onset by pitch, and not track by track; see `quantize`."""
    four_four: bool = False
    """True where all of it counts as 4/4 from the first tick, as the paper has it, whatever time signatures say."""
    absolute: bool = False
    """``folder`` is an address of its own, not one below the corpora's root."""

    @property
    def is_own(self) -> bool:
        """True where it is a folder of the user's, of which nothing is known."""
        return self.name.startswith(_FOLDER_PREFIX)

    @property
    def slug(self) -> str:
        """The name for use in a path: letters, digits, dots, dashes and underscores."""
        if not self.is_own:
            return self.name
        folder = self.folder.partition("?")[0] if "://" in self.folder else self.folder
        return "folder-" + (re.sub(r"[^\w.-]+", "-", PurePosixPath(folder).name).strip("-.") or "midi")

    def location(self, root: str) -> str:
        """The address of the corpus's files, given the address (path or URI) that all corpora lie under."""
        if self.absolute:
            return self.folder
        base, mark, query = root.partition("?") if "://" in root else (root, "", "")
        return f"{base.rstrip('/')}/{self.folder}{mark}{query}"  # the query says which server has the bucket


_POP909 = Corpus(
    name="pop909",
    title="POP909",
    folder="POP909",
    licence="MIT",
    redistribute=True,
    citation='Z. Wang et al., "POP909: A pop-song dataset for music arrangement generation", ISMIR 2020',
    url="https://github.com/music-x-lab/POP909-Dataset",
    four_four=True,
    lists="pop909",
    midi="{}/{}.mid",
    beats="{}/beat_audio.txt",
    parts=PARTS,
)

_LIEDER = Corpus(
    name="lieder",
    title="OpenScore Lieder (one voice, one piano)",
    folder="Lieder/scores",
    licence="CC0 1.0",
    redistribute=True,
    citation='M. Gotham and P. Jonas, "The OpenScore Lieder Corpus", MEC 2021',
    url="https://github.com/OpenScore/Lieder",
    lists="lieder",
    midi="{}.mxl",
    parts=PARTS,
    score_parts=("MELODY", "PIANO"),
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
            four_four=True,
        ),
        Corpus(
            name="asap",
            title="ASAP (4/4 scores)",
            folder="asap-dataset",
            licence="CC BY-NC-SA 4.0",
            redistribute=False,
            citation='F. Foscarin et al., "ASAP: A dataset of aligned scores and performances", ISMIR 2020',
            url="https://github.com/fosfrancesco/asap-dataset",
            four_four=True,
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
            four_four=True,
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
            four_four=True,
            lists="emopia",
            lists_by_song="emopia_song_disjoint",
            label="prefix",
        ),
        _LIEDER,
        replace(
            _LIEDER, name="lieder_composers", title="Lieder (17 composers)", lists="lieder_composers", label="folder"
        ),
        Corpus(
            name="solo",
            title="Solo instrument with accompaniment",
            folder="Solo",
            licence="published for research: never redistribute",
            redistribute=False,
            citation='F. Simonetta et al., "Symbolic melody identification", 2019',
            url="https://github.com/LIMUNIMI/Symbolic-Melody-Identification",
            parts=PARTS,
            split="test",
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
    """The corpus of this name: one of `CORPORA`, or ``folder:<path or URI>``.

    A folder corpus is every ``.mid``, ``.midi``, ``.mxl`` and ``.musicxml`` file below the folder, however deep; the
    piece id is the path below it.

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
        f"unknown corpus {name!r}; did you mean {nearest!r}? Known: {', '.join(CORPORA)}, or folder:/path/to/midi for "
        "files of your own (without a comma in the path, which would end the name: rename or link such a folder)"
    )
