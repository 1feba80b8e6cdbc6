"""The plan of tokenizing a corpus: its pieces, their files, and the URI of the store."""

import functools
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyarrow import fs

from midibert_ray import storage
from midibert_ray.corpora.catalogue import Corpus, corpus
from midibert_ray.corpora.labels import MUSIC_SUFFIXES, Piece, list_pieces
from midibert_ray.corpora.tokens import read_piece
from midibert_ray.data.format import FORMAT_VERSION, find_manifest, shard_name
from midibert_ray.music.midi import Notes
from midibert_ray.music.protocol import Protocol
from midibert_ray.music.score import SCORE_SUFFIXES
from midibert_ray.music.vocabulary import vocabulary_digest
from midibert_ray.tokenizing.listing import (
    File,
    Listing,
    duplicates,
    is_utf8,
    list_files,
    listing_digest,
    open_file,
    rows_digest,
    uncollected,
)
from midibert_ray.tokenizing.shard import Shard

_LEAST_PIECES, _MOST_SHARDS = 64, 1024
_MOST_BYTES = 4 << 20  # of the MIDI files of a task, which holds the notes of all of them until its shard is written


@dataclass(frozen=True, kw_only=True)
class CorpusPlan:
    """The plan of tokenizing one corpus: which pieces, from where, to which URI."""

    corpus: Corpus
    protocol: Protocol
    segment: int
    """Time steps of a segment; only counted with."""
    root: str
    """`corpora.root`, absolute."""
    pieces: tuple[Piece, ...] = field(repr=False)
    """Sorted by id."""
    files: Mapping[str, File] = field(repr=False)
    """The pieces' files by name below the corpus folder; absent files are missing."""
    unlisted: Mapping[str, str]
    """Folders (with a slash at the end) and MIDI files that could not be looked at, with the reason."""
    storage_root: str
    notes: tuple[str, ...] = ()
    """Names of the classes of notes, of a corpus whose owner labels them."""

    @property
    def settings(self) -> dict[str, Any]:
        """Whatever the content of the store depends on, apart from the files."""
        settings = {"protocol": self.protocol.name, "segment": self.segment, "format_version": FORMAT_VERSION}
        # Only what is switched is named, so that a protocol keeps its stores when it gets another field.
        notes = {"notes": list(self.notes)} if self.notes else {}
        return settings | self.protocol.switched("tokens") | notes

    @functools.cached_property
    def uri(self) -> str:
        """`{storage_root}/tokens/<corpus>-<hash>`; the hash covers settings, vocabulary, names and sizes.

        Times are not in it, so that a copy of a corpus has the same store; see `is_current`.
        """
        sizes = {name: file.size for name, file in self.files.items()}
        listing = ([p.piece, p.split, p.label, [sizes.get(f) for f in p.files]] for p in self.pieces)
        plain = corpus(storage.without_query(self.corpus.name))  # without an endpoint of the object store
        made_by = json.dumps([plain.name, self.settings, vocabulary_digest()], sort_keys=True)
        digest = rows_digest(f"{made_by[:-1]}, ", listing, "]")
        return storage.join(storage.root.tokens(self.storage_root), f"{plain.slug}-{digest[:12]}")

    @property
    def there(self) -> list[Piece]:
        """The pieces whose MIDI file is there."""
        return [piece for piece in self.pieces if piece.files[0] in self.files]

    @functools.cached_property
    def duplicates(self) -> dict[str, str]:
        """Files of a user's folder with the same bytes as another: name -> that one. Reads files.

        The paper's corpora hold what they hold.
        """
        folder = self.corpus.absolute and self.corpus.lists is None
        return duplicates(self.corpus.location(self.root), self.files) if folder else {}

    def shards(self, mark: str) -> list[Shard]:
        """The tasks of tokenizing, for the job with this mark; duplicates are in none.

        Which pieces a shard holds depends on the files alone, so that it has the same content for any number of
        workers.
        """
        return [
            Shard(
                corpus=self.corpus.name,
                root=self.root,
                protocol=self.protocol,
                segment=self.segment,
                pieces=tuple(pieces),
                files={file: self.files[file] for piece in pieces for file in piece.files if file in self.files},
                store=self.uri,
                name=shard_name(number, mark),
            )
            for number, pieces in enumerate(self._groups())
        ]

    def _groups(self) -> Iterator[list[Piece]]:
        """The pieces of each task: a few dozen, or fewer where their files are large."""
        pieces = [piece for piece in self.pieces if piece.files[0] not in self.duplicates]
        most = max(_LEAST_PIECES, -(-len(pieces) // _MOST_SHARDS))
        group: list[Piece] = []
        size = 0
        for piece in pieces:
            own = sum(self.files[file].size for file in piece.files if file in self.files)
            if group and (len(group) == most or size + own > _MOST_BYTES):
                yield group
                group, size = [], 0
            group.append(piece)
            size += own
        yield group

    def read(self, piece: str) -> Notes:
        """The notes of a piece by its id, aligned to beats where the corpus annotates them.

        Raises:
            MidiError, OSError: they cannot be read.
        """
        names = next(each.files for each in self.pieces if each.piece == piece)
        contents = []
        for name in names:
            with open_file(self.corpus.location(self.root), self.files[name].path) as stream:
                contents.append(bytes(stream.read()))
        return read_piece(self.corpus, contents, self.protocol)[0]

    @functools.cached_property
    def listing(self) -> str:
        """`listing_digest` of what was listed."""
        return listing_digest(self.files, self.unlisted)

    @property
    def quarantined(self) -> dict[str, str]:
        """The entries quarantined beside the pieces: folders of a corpus without lists, which may hold more of them."""
        return dict(self.unlisted) if self.corpus.lists is None else {}

    def reason(self, file: str, found: str) -> str:
        """Why a piece is quarantined, given what its task found: it knows only of the files that were listed."""
        if file not in self.files:
            for unlisted, reason in self.unlisted.items():
                if file == unlisted:
                    return reason
                if unlisted.endswith("/") and file.startswith(unlisted):
                    return f"{unlisted}: {reason}"
        return found

    def is_current(self) -> bool:
        """Tell whether the store is there, and was made from the files as they are now.

        The manifest tells the listings that it is known to hold for, and the files that could not be read for
        a reason that may pass: these are tried.
        """
        manifest = find_manifest(self.uri)
        if manifest is None or self.listing not in manifest["checked"]["listings"]:
            return False
        passing = set(manifest["checked"]["unread"])
        return not any(self._readable(piece) for piece in self.pieces if piece.files[0] in passing)

    def _readable(self, piece: Piece) -> bool:
        uri = self.corpus.location(self.root)
        try:
            for name in piece.files:
                with open_file(uri, self.files[name].path) as stream:
                    stream.read(1)
        except (OSError, KeyError):
            return False
        return True


@dataclass(frozen=True)
class CorpusFiles:
    """A corpus and its files, listed once for all protocols and orders."""

    corpus: Corpus
    root: str
    """`corpora.root`, absolute."""
    listing: Listing = field(repr=False)


def list_corpus(name: str, corpora_root: str) -> CorpusFiles:
    """List the files of a corpus (`pop909`, ..., or `folder:/path`).

    Raises:
        ValueError: for an unknown corpus.
        FileNotFoundError: if the corpus folder is not there.
        PermissionError: if it may not be listed.
    """
    chosen, root = _corpus(name), storage.resolve(corpora_root)
    hint = "" if chosen.absolute else f"; set corpora.root (now {corpora_root!r}) to where {chosen.folder} lies"
    uri = chosen.location(root)
    system, path = storage.filesystem(uri)
    if system.get_file_info(path).type is not fs.FileType.Directory:
        raise FileNotFoundError(f"corpus {name}: there is no folder {uri}{hint}")
    try:
        return CorpusFiles(chosen, root, list_files(uri))
    except PermissionError as error:
        raise PermissionError(f"corpus {name}: no permission to list {uri}; grant it, or name another") from error


@uncollected()
def plan_corpus(
    name: str,
    *,
    corpora_root: str,
    storage_root: str,
    protocol: Protocol,
    segment: int = 512,
    found: CorpusFiles | None = None,
    notes: tuple[str, ...] = (),
) -> CorpusPlan:
    """List a corpus (`pop909`, ..., or `folder:/path`), unless its files are given, and lay out its store.

    `notes` names the classes of notes in a folder whose owner labels them; listed corpora have their own.

    Raises:
        ValueError: for a folder without files of the corpus; and whatever `list_corpus` raises.
        ModuleNotFoundError: for scores, where partitura is not installed.
    """
    found = found or list_corpus(name, corpora_root)
    chosen, root, listing = found.corpus, found.root, found.listing
    uri, notes = chosen.location(root), notes if chosen.is_own else ()
    sizes = {file: about.size for file, about in listing.files.items()}
    pieces = sorted(list_pieces(chosen, sizes, protocol, notes), key=lambda piece: piece.piece)
    if not any(piece.files[0] in listing.files for piece in pieces):
        expected = (
            f"{pieces[0].files[0]} and others" if pieces else " or ".join(f"*{suffix}" for suffix in MUSIC_SUFFIXES)
        )
        first = min(listing.unlisted.items(), default=None)
        hint = (
            f"; places that could not be looked at: {len(listing.unlisted):,}, first {': '.join(first)}"
            if first
            else ""
        )
        raise ValueError(f"corpus {name}: its MIDI files ({expected}) are not below {uri}{hint}")
    files = {file: listing.files[file] for piece in pieces for file in piece.files if file in listing.files}
    _require_reader(name, files)
    return CorpusPlan(
        corpus=chosen,
        protocol=protocol,
        segment=segment,
        root=root,
        pieces=tuple(pieces),
        files=files,
        unlisted={name: why for name, why in listing.unlisted.items() if name.lower().endswith(("/", *MUSIC_SUFFIXES))},
        storage_root=storage.resolve(storage_root),
        notes=notes,
    )


def _require_reader(name: str, files: Iterable[str]) -> None:
    score = next((file for file in files if file.lower().endswith(SCORE_SUFFIXES)), None)
    if score and importlib.util.find_spec("partitura") is None:
        raise ModuleNotFoundError(
            f"corpus {name}: {score} is MusicXML, which partitura reads: pip install 'midibert-ray[scores]', here and "
            "on every node"
        )


def _corpus(name: str) -> Corpus:
    """The corpus of a name; workers run in other directories, so that a folder's path is made absolute."""
    prefix = "folder:"
    if name.startswith(prefix):
        name = prefix + storage.resolve(corpus(name).folder)
    if not is_utf8(name):
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise ValueError(f"corpus {shown}: a manifest cannot hold this path, which is not UTF-8; rename or link it")
    return corpus(name)
