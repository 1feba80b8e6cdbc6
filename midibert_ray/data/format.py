"""The token store as other tools read it: its columns, its schema, its manifest, and the digests of its content.

    {root}/tokens/<corpus>-<hash>/part-00000.<mark>.parquet    a shard: one row a piece, in the order of their ids
    {root}/tokens/<corpus>-<hash>/manifest.json                names the shards; a folder without it is no store

The mark in a shard's name is that of the job that wrote it (see `tokenizing.commit`), so that shards of another job may
lie beside those of the store.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from midibert_ray import storage

FORMAT_VERSION = 3
"""Counts up when the columns, or the tokens of an unchanged file, change: old stores are then made anew."""

MANIFEST = "manifest.json"

COLUMNS: dict[str, tuple[str, int]] = {
    "tokens": ("|u1", 4),
    "onset": ("<i4", 1),
    "velocity": ("|u1", 1),
    "part": ("|u1", 1),
}
"""Columns with values for every note: dtype, in memory as in the digest, and values a note."""

PIECE_SCHEMA = pa.schema(
    [
        pa.field("piece", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("label", pa.string()),
    ]
)
"""Columns that describe a piece beside its notes."""

SCHEMA = pa.schema(
    [*PIECE_SCHEMA, *(pa.field(name, pa.list_(pa.from_numpy_dtype(dtype))) for name, (dtype, _) in COLUMNS.items())]
)
"""Of a shard."""

LABELS = "labels"
"""The manifest's key for an account of labels; a folder that has it lies in that of a token store."""
LABELS_TABLE = "labels.parquet"

SHARDS = "parts"
"""The manifest's key for the shards: bytes by name, in the order of their pieces."""


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


def find_manifest(uri: str) -> dict[str, Any] | None:
    """The manifest of the store at a URI; None where there is none, it is damaged, or shards are missing or cut."""
    manifest = storage.find_json(storage.join(uri, MANIFEST))
    if manifest is None or SHARDS not in manifest or not manifest[SHARDS].items() <= storage.sizes(uri).items():
        return None
    return manifest


def read_manifest(uri: str) -> dict[str, Any]:
    """The manifest of the store at a URI.

    Raises:
        FileNotFoundError: if no finished store stands there.
        ValueError: if it has a format that this version does not read, or is empty or cut (DamagedError).
    """
    try:
        manifest = storage.read_json(storage.join(uri, MANIFEST))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no token store at {uri}: it has no {MANIFEST}; the job tokenize writes it, with the same settings"
        ) from error
    version = manifest.get("settings", {}).get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"the token store at {uri} has format {version}, but {FORMAT_VERSION} is needed; tokenize again"
        )
    return manifest


def write_manifest(uri: str, manifest: dict[str, Any]) -> None:
    """Put a manifest into a store's folder, in one step."""
    storage.write_bytes(storage.join(uri, MANIFEST), json.dumps(manifest, indent=1).encode() + b"\n")


def shard_name(number: int, mark: str) -> str:
    """The file name of a shard that the job with this mark writes."""
    return f"part-{number:05d}.{mark}.parquet"
