"""The copy of a token store that every node makes, as arrays that are mapped into memory.

    {cache}/<corpus>-<hash>-<digest>/*.npy, pieces.arrow    one array a column, the pieces of all shards together

A copy is written batch by batch, so that its memory does not depend on the size of the store.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from midibert_ray import storage
from midibert_ray.data.format import COLUMNS, FORMAT_VERSION, PIECE_SCHEMA, SCHEMA, SHARDS, piece_digest, store_digest
from midibert_ray.settings.text import counted
from midibert_ray.storage.node_cache import Copy, NodeCache

logger = logging.getLogger(__name__)

_REMEDY = "delete it and tokenize again"
_PIECE_BYTES = 64  # of an id, a split, a label, an offset and the bars, roughly


def node_copy(uri: str, manifest: dict[str, Any], cache: NodeCache) -> Copy:
    """The copy of a store on this node; built first if the node has none.

    Raises:
        ValueError: if the content of the store is not what its manifest says.
        OSError: if the store cannot be read, or the copy not be written.
    """
    name = f"{storage.basename(uri)}-{manifest['digest'][:16]}-v{FORMAT_VERSION}"
    note_bytes = sum(np.dtype(dtype).itemsize * width for dtype, width in COLUMNS.values())
    size = manifest["counts"]["notes"] * note_bytes + manifest["counts"]["pieces"] * _PIECE_BYTES
    return cache.get(name, size, lambda folder: _build(uri, manifest, folder))


def _build(uri: str, manifest: dict[str, Any], folder: Path) -> None:
    """Write every column of the store as one array, and compare the digest with the manifest's."""
    logger.info("copying the token store %s to %s", uri, folder.parent)
    digests: list[tuple[str, str]] = []
    lengths: list[NDArray[np.int64]] = []
    bars: list[NDArray[np.int32]] = []
    with contextlib.ExitStack() as files:
        # An .npy file states its shape at its start. The manifest knows it before a row is read, so each column is
        # appended to its own file in a single pass; the digest below proves that the manifest was right.
        arrays = {
            name: files.enter_context(_array_file(folder / f"{name}.npy", manifest["counts"]["notes"], dtype, width))
            for name, (dtype, width) in COLUMNS.items()
        }
        sink = files.enter_context(pa.OSFile(str(folder / "pieces.arrow"), "wb"))
        pieces = files.enter_context(pa.ipc.new_file(sink, PIECE_SCHEMA))
        for batch in _batches(uri, manifest):
            pieces.write_batch(batch.select(PIECE_SCHEMA.names))
            length = batch.column("velocity").value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
            values = {
                name: batch.column(name).flatten().to_numpy().astype(dtype, copy=False)
                for name, (dtype, _) in COLUMNS.items()
            }
            for name, array in arrays.items():
                array.write(values[name].tobytes())
            digests += _digests(batch, values, length)
            bars.append(_bar_counts(values["tokens"], length))
            lengths.append(length)
    found = store_digest(digests)
    if found != manifest["digest"]:
        raise ValueError(
            f"the token store at {uri} is damaged: {counted(len(digests), 'pieces')} of digest {found[:16]}, but its "
            f"manifest says {manifest['counts']['pieces']} and {manifest['digest'][:16]}; {_REMEDY}"
        )
    np.save(folder / "offsets.npy", np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths])))
    np.save(folder / "bars.npy", np.concatenate(bars))


def _batches(uri: str, manifest: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    """The rows of all shards in their order, some at a time."""
    system, path = storage.filesystem(uri)
    for name in manifest[SHARDS]:
        try:
            source = system.open_input_file(f"{path}/{name}")
        except FileNotFoundError as error:
            raise ValueError(f"the token store at {uri} is damaged: {name} is missing; {_REMEDY}") from error
        with source:
            yield from pq.ParquetFile(source).iter_batches(batch_size=64, columns=SCHEMA.names)


def _digests(
    batch: pa.RecordBatch, values: dict[str, NDArray[Any]], length: NDArray[np.int64]
) -> Iterator[tuple[str, str]]:
    ends = np.cumsum(length)
    rows = zip(*(batch.column(name).to_pylist() for name in PIECE_SCHEMA.names), strict=True)
    for (piece, split, label), end, count in zip(rows, ends, length, strict=True):
        spans = (values[name][(end - count) * width : end * width].tobytes() for name, (_, width) in COLUMNS.items())
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
