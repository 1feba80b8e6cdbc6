"""What tokenizing a corpus means: its pieces, their files, and the address of the store."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyarrow import fs

from midibert_ray import storage
from midibert_ray.corpora.catalogue import MIDI_SUFFIXES, Corpus, Piece, corpus
from midibert_ray.data import layout
from midibert_ray.data.columns import FORMAT_VERSION
from midibert_ray.music.protocol import Protocol
from midibert_ray.music.vocabulary import vocabulary_digest
from midibert_ray.tokenizing.listing import File, Listing, is_utf8, list_files, listing_digest, open_file
from midibert_ray.tokenizing.shard import Part


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What tokenizing one corpus means: which pieces, from where, to which address."""

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

    @property
    def settings(self) -> dict[str, Any]:
        """Whatever the content of the store depends on, apart from the files."""
        settings = {"protocol": self.protocol.name, "segment": self.segment, "format_version": FORMAT_VERSION}
        # Only what is switched is named, so that a protocol keeps its addresses when it gets another field.
        return settings | self.protocol.switched("tokens")

    @functools.cached_property
    def address(self) -> str:
        """`{storage_root}/tokens/<corpus>-<hash>`; the hash covers settings, vocabulary, names and sizes.

        Times are not in it, so that a copy of a corpus keeps its address; see `is_current`.
        """
        sizes = {name: file.size for name, file in self.files.items()}
        listing = [[p.piece, p.split, p.label, [sizes.get(f) for f in p.files]] for p in self.pieces]
        plain = corpus(storage.without_query(self.corpus.name))  # without an endpoint of the object store
        identity = [plain.name, self.settings, vocabulary_digest(), listing]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return storage.join(self.storage_root, "tokens", f"{plain.slug}-{digest[:12]}")

    def part(self, number: int, pieces: tuple[Piece, ...], staging: str) -> Part:
        """The task of tokenizing some of the pieces, whose result goes into a staging folder."""
        return Part(
            corpus=self.corpus.name,
            root=self.root,
            protocol=self.protocol,
            segment=self.segment,
            number=number,
            pieces=pieces,
            files={file: self.files[file] for piece in pieces for file in piece.files if file in self.files},
            staging=staging,
        )

    @functools.cached_property
    def listing(self) -> str:
        """`listing_digest` of what was listed."""
        return listing_digest(self.files, self.unlisted)

    @property
    def quarantined(self) -> dict[str, str]:
        """What is quarantined beside the pieces: places of a corpus without lists that may hold more of them."""
        return dict(self.unlisted) if self.corpus.lists is None else {}

    def reason(self, file: str, found: str) -> str:
        """Why a piece is quarantined, given what its task found: it knows only of the files that were listed."""
        if file not in self.files:
            for place, reason in self.unlisted.items():
                if file == place:
                    return reason
                if place.endswith("/") and file.startswith(place):
                    return f"{place}: {reason}"
        return found

    def is_current(self) -> bool:
        """Whether the store is there, and was made from the files as they are now.

        The manifest tells the listings that it is known to hold for, and the files that could not be read for
        a reason that may pass: these are tried.
        """
        if not storage.exists(storage.join(self.address, layout.MANIFEST)):
            return False
        checked = layout.read_manifest(self.address).get("checked", {})
        if self.listing not in checked.get("listings", ()):
            return False
        passing = set(checked["unread"])
        return not any(self._readable(piece) for piece in self.pieces if piece.files[0] in passing)

    def _readable(self, piece: Piece) -> bool:
        location = self.corpus.location(self.root)
        try:
            for name in piece.files:
                with open_file(location, self.files[name].path) as stream:
                    stream.read(1)
        except (OSError, KeyError):
            return False
        return True


def plan_corpus(
    name: str,
    *,
    corpora_root: str,
    storage_root: str,
    protocol: Protocol,
    segment: int = 512,
) -> Plan:
    """List a corpus (`pop909`, ..., or `folder:/path`) and lay out its store.

    Raises:
        ValueError: for an unknown corpus, or a folder without MIDI files of the corpus.
        FileNotFoundError: if the corpus folder is not there.
        PermissionError: if it may not be listed.
    """
    chosen, root = _corpus(name), storage.resolve(corpora_root)
    location = chosen.location(root)
    hint = "" if chosen.absolute else f"; set corpora.root (now {corpora_root!r}) to where {chosen.folder} lies"
    listing = _listing(name, location, hint)
    sizes = {file: about.size for file, about in listing.files.items()}
    pieces = sorted(chosen.pieces(sizes, protocol), key=lambda piece: piece.piece)
    if not any(piece.files[0] in listing.files for piece in pieces):
        sought = f"{pieces[0].files[0]} and others" if pieces else "*.mid or *.midi"
        raise ValueError(f"corpus {name}: its MIDI files ({sought}) are not below {location}{_closed(listing)}")
    return Plan(
        corpus=chosen,
        protocol=protocol,
        segment=segment,
        root=root,
        pieces=tuple(pieces),
        files={file: listing.files[file] for piece in pieces for file in piece.files if file in listing.files},
        unlisted={
            place: why for place, why in listing.unlisted.items() if place.lower().endswith(("/", *MIDI_SUFFIXES))
        },
        storage_root=storage.resolve(storage_root),
    )


def _listing(name: str, location: str, hint: str) -> Listing:
    system, path = storage.filesystem(location)
    if system.get_file_info(path).type is not fs.FileType.Directory:
        raise FileNotFoundError(f"corpus {name}: there is no folder {location}{hint}")
    try:
        return list_files(location)
    except PermissionError as error:
        raise PermissionError(f"corpus {name}: no permission to list {location}; grant it, or name another") from error


def _closed(listing: Listing) -> str:
    """What could not be listed, as the end of a message."""
    for place, reason in sorted(listing.unlisted.items()):
        return f"; places that could not be looked at: {len(listing.unlisted):,}, first {place}: {reason}"
    return ""


def _corpus(name: str) -> Corpus:
    """The corpus of a name; workers run in other directories, so that a folder's path is made absolute."""
    prefix = "folder:"
    if name.startswith(prefix):
        name = prefix + storage.resolve(corpus(name).folder)
    if not is_utf8(name):
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise ValueError(f"corpus {shown}: a manifest cannot hold this path, which is not UTF-8; rename or link it")
    return corpus(name)
