"""The columns of a tokenized piece, and the digests that name their content."""

import hashlib
import json
from collections.abc import Iterable

FORMAT_VERSION = 2
"""Counts up when the columns, or the tokens of an unchanged file, change: old stores are then made anew."""

COLUMNS: dict[str, tuple[str, int]] = {
    "tokens": ("|u1", 4),
    "onset": ("<i4", 1),
    "velocity": ("|u1", 1),
    "part": ("|u1", 1),
}
"""Columns with values for every note: dtype, in memory as in the digest, and values a note."""


def piece_digest(piece: str, split: str, label: str | None, columns: Iterable[bytes]) -> str:
    """A digest of one piece: its id, split, label and the bytes of its columns in the order of COLUMNS."""
    digest = hashlib.blake2b(json.dumps([piece, split, label]).encode(), digest_size=16)
    for column in columns:
        digest.update(len(column).to_bytes(8, "little"))
        digest.update(column)
    return digest.hexdigest()


def store_digest(pieces: Iterable[tuple[str, str]]) -> str:
    """The digest of a store from (piece, digest of the piece), in any order."""
    digest = hashlib.sha256()
    for piece, value in sorted(pieces):
        digest.update(f"{piece}\0{value}\n".encode())
    return digest.hexdigest()
