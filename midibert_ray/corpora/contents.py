"""The contents of the five corpora, file by file, so that a copy can be compared with the one of the paper.

`contents.json` holds, for every file that `tokenize_piece` reads (the pieces' MIDI files and POP909's beats),
the first half of its SHA-256 digest. It was measured on copies of the publishers' commits and is made again with

    json.dumps({name: asdict(measure(CORPORA[name], root / CORPORA[name].folder)) for name in PUBLISHED}, indent=0)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from midibert_ray.corpora.catalogue import Corpus
from midibert_ray.corpora.labels import list_pieces
from midibert_ray.music.protocol import PROTOCOLS

PUBLISHED = ("pop909", "asap", "pop1k7", "pianist8", "emopia")
"""Corpora whose contents are known."""

_DIGITS = 32  # 128 bits still tell any two files apart, in half the space


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The files of a corpus that are read."""

    digest: str
    """SHA-256 over path and SHA-256 of every file, in the order of the paths."""
    bytes: int
    """All files together."""
    files: Mapping[str, str]
    """Posix path below the corpus folder -> the first 32 hexadecimal digits of the file's SHA-256."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How a folder differs from what is expected; paths in order."""

    missing: tuple[str, ...]
    changed: tuple[str, ...]
    """Files that are there with other bytes."""
    unknown: tuple[str, ...]
    """Files that would be read and that the publisher's copy does not have; only corpora without split lists
    read such files."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.changed or self.unknown)

    def __str__(self) -> str:
        kinds = {"missing": self.missing, "changed": self.changed, "unknown": self.unknown}
        return "; ".join(f"{len(paths):,} {kind}, first {paths[0]}" for kind, paths in kinds.items() if paths)


@cache
def published(name: str) -> Contents:
    """The content of the publisher's copy of a corpus, one of `PUBLISHED`."""
    table = json.loads(Path(__file__).with_name("contents.json").read_text(encoding="utf-8"))
    return Contents(**table[name])


def measure(corpus: Corpus, folder: Path) -> Contents:
    """Digests of the files below a corpus's folder that tokenization would read under either protocol."""
    files = (path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    pieces = (piece for protocol in PROTOCOLS.values() for piece in list_pieces(corpus, sizes, protocol))
    read = sorted({path for piece in pieces for path in piece.files} & sizes.keys())
    digests = {path: hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in read}
    overall = hashlib.sha256("".join(f"{path}\n{digest}\n" for path, digest in digests.items()).encode())
    return Contents(
        digest=overall.hexdigest(),
        bytes=sum(sizes[path] for path in read),
        files={path: digest[:_DIGITS] for path, digest in digests.items()},
    )


def compare(expected: Contents, found: Contents) -> Difference:
    """The files missing, changed or unknown in `found`."""
    both = expected.files.keys() & found.files.keys()
    return Difference(
        missing=tuple(sorted(expected.files.keys() - both)),
        changed=tuple(sorted(path for path in both if expected.files[path] != found.files[path])),
        unknown=tuple(sorted(found.files.keys() - both)),
    )
