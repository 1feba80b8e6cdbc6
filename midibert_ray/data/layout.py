"""The token store on disk, and the memory-mapped copy that every node makes of it.

    {root}/tokens/<corpus>-<hash>/part-*.parquet            one row a piece, pieces in the order of their ids
    {root}/tokens/<corpus>-<hash>/manifest.json             written last: a folder without it is no store
    {cache}/<corpus>-<hash>-<digest>/*.npy, pieces.arrow    the node's copy, one array a column

In an object store the manifest names the parts, as there those of another store may lie beside them for a while; see
`staging`. A copy is built part by part, so that its memory does not depend on the size of the store.
"""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from midibert_ray import storage
from midibert_ray.data.columns import COLUMNS, FORMAT_VERSION, piece_digest, store_digest
from midibert_ray.storage.node_cache import Copy, NodeCache

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"

SCHEMA = pa.schema(
    [
        pa.field("piece", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("tokens", pa.list_(pa.uint8())),
        pa.field("onset", pa.list_(pa.int32())),
        pa.field("velocity", pa.list_(pa.uint8())),
        pa.field("part", pa.list_(pa.uint8())),
    ]
)

PIECE_SCHEMA = pa.schema([SCHEMA.field(name) for name in ("piece", "split", "label")])


def part_name(number: int) -> str:
    """The file name of a part."""
    return f"part-{number:05d}.parquet"


def read_manifest(uri: str) -> dict[str, Any]:
    """The manifest of the store at an address.

    Raises:
        FileNotFoundError: if no finished store stands there.
        ValueError: if it was written in a format that this version does not read.
    """
    try:
        manifest: dict[str, Any] = json.loads(storage.read_bytes(storage.join(uri, MANIFEST)))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no token store at {uri}: it has no {MANIFEST}; make it with `python jobs/tokenize.py`"
        ) from error
    version = manifest["settings"].get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"the token store at {uri} has format {version}, but {FORMAT_VERSION} is needed; tokenize again"
        )
    return manifest


def write_manifest(uri: str, manifest: dict[str, Any]) -> None:
    """Put a manifest into a store's folder, in one step."""
    storage.write_bytes(storage.join(uri, MANIFEST), json.dumps(manifest, indent=1).encode() + b"\n")


def part_files(uri: str, manifest: dict[str, Any]) -> list[str]:
    """Names of the parts of a store, in the order of their pieces."""
    named = manifest.get("parts")
    return sorted(named if named is not None else [name for name in storage.names(uri) if name.endswith(".parquet")])


def node_copy(uri: str, manifest: dict[str, Any], cache: NodeCache) -> Copy:
    """The copy of a store on this node; built first if the node has none.

    Raises:
        ValueError: if the content of the store is not what its manifest says.
        OSError: if the store cannot be read, or the copy not be written.
    """
    name = f"{storage.basename(uri)}-{manifest['digest'][:16]}-v{FORMAT_VERSION}"
    return cache.get(name, _copy_bytes(manifest["counts"]), lambda folder: _build(uri, manifest, folder))


def _copy_bytes(counts: dict[str, int]) -> int:
    """Roughly the bytes of a copy: its columns, and of every piece an id, a split, an offset and its bars."""
    columns = sum(np.dtype(dtype).itemsize * width for dtype, width in COLUMNS.values())
    return counts["notes"] * columns + counts["pieces"] * 64


def _build(uri: str, manifest: dict[str, Any], folder: Path) -> None:
    """Write every column of the store as one array, and compare counts and digest with the manifest."""
    logger.info("copying the token store %s to %s", uri, folder.parent)
    notes = manifest["counts"]["notes"]
    digests: list[tuple[str, str]] = []
    lengths: list[NDArray[np.int64]] = []
    bars: list[NDArray[np.int32]] = []
    with contextlib.ExitStack() as files:
        arrays = {
            name: files.enter_context(_array_file(folder / f"{name}.npy", notes, dtype, width))
            for name, (dtype, width) in COLUMNS.items()
        }
        sink = files.enter_context(pa.OSFile(str(folder / "pieces.arrow"), "wb"))
        pieces = files.enter_context(pa.ipc.new_file(sink, PIECE_SCHEMA))
        for batch in _batches(uri, manifest):
            pieces.write_batch(batch.select(PIECE_SCHEMA.names))
            length = batch.column("velocity").value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
            values = {name: batch.column(name).flatten().to_numpy() for name in COLUMNS}
            for name, (dtype, _) in COLUMNS.items():
                arrays[name].write(values[name].astype(dtype, copy=False).tobytes())
            digests += _digests(batch, values, length)
            bars.append(_bar_counts(values["tokens"], length))
            lengths.append(length)
    found = store_digest(digests)
    if found != manifest["digest"]:
        raise ValueError(
            f"the token store at {uri} is damaged: its {len(digests)} pieces have digest {found[:16]}, its "
            f"manifest says {manifest['counts']['pieces']} pieces and {manifest['digest'][:16]}; "
            "delete it and tokenize again"
        )
    ends = np.cumsum(np.concatenate(lengths))
    np.save(folder / "offsets.npy", np.concatenate([np.zeros(1, np.int64), ends]))
    np.save(folder / "bars.npy", np.concatenate(bars))


def _batches(uri: str, manifest: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    """The rows of all parts in their order, some at a time."""
    system, path = storage.filesystem(uri)
    for name in part_files(uri, manifest):
        with system.open_input_file(f"{path}/{name}") as source:
            yield from pq.ParquetFile(source).iter_batches(batch_size=64, columns=SCHEMA.names)


def _digests(
    batch: pa.RecordBatch, values: dict[str, NDArray[Any]], length: NDArray[np.int64]
) -> Iterator[tuple[str, str]]:
    ends = np.cumsum(length)
    rows = zip(*(batch.column(name).to_pylist() for name in ("piece", "split", "label")), strict=True)
    for (piece, split, label), end, count in zip(rows, ends, length, strict=True):
        spans = (
            values[name][(end - count) * width : end * width].astype(dtype, copy=False).tobytes()
            for name, (dtype, width) in COLUMNS.items()
        )
        yield piece, piece_digest(piece, split, label, spans)


def _bar_counts(tokens: NDArray[np.uint8], length: NDArray[np.int64]) -> NDArray[np.int32]:
    """Notes that open a bar (Bar New has id 0), piece by piece; REMI has one Bar token for each."""
    opened = np.concatenate([[0], np.cumsum(tokens.reshape(-1, 4)[:, 0] == 0)])
    ends = np.cumsum(length)
    return (opened[ends] - opened[ends - length]).astype(np.int32)


def _array_file(path: Path, rows: int, dtype: str, width: int) -> BinaryIO:
    """An .npy file of known shape whose values are appended bit by bit, without a map of the whole."""
    file = path.open("wb")
    shape = (rows, width) if width > 1 else (rows,)
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file
