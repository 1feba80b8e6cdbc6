"""A task of tokenizing: some pieces of a corpus -> one Parquet file of its token store.

A task that is repeated, because its node was lost, overwrites what it wrote with the same content.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa

from midibert_ray import storage
from midibert_ray.corpora.catalogue import corpus
from midibert_ray.corpora.labels import Piece
from midibert_ray.data.format import COLUMNS, PIECE_SCHEMA, SCHEMA, piece_digest
from midibert_ray.music.protocol import Protocol
from midibert_ray.tokenizing.listing import File, open_file
from midibert_ray.tokenizing.sandbox import Answer, Request, process_sandbox

FILE_LIMIT = 32 << 20
"""Bytes; a larger file is quarantined unread. The largest of the five corpora has 0.3 MB."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The work of one task: what is to be read, and where the result goes."""

    corpus: str
    root: str
    """`corpora.root`, absolute."""
    protocol: Protocol
    segment: int
    """Time steps of a segment; only counted with."""
    pieces: tuple[Piece, ...] = field(repr=False)
    files: dict[str, File] = field(repr=False)
    """The pieces' files by name; absent files are missing."""
    store: str
    """URI of the store."""
    name: str
    """Of the file that is written there."""


class Report(TypedDict):
    """The report of a piece to the driver. "" stands for none, so that all blocks have one schema."""

    corpus: str
    piece: str
    file: str
    digest: str
    notes: int
    segments: int
    dropped: str
    """JSON, notes by reason."""
    remarks: str
    """JSON, counts by remark."""
    reason: str
    """Why the piece is quarantined."""
    unread: bool
    """True where the reason lies with the storage and may pass: the next run tries again."""


def make_shard(shard: Shard) -> list[Report]:
    """Tokenize the pieces of a shard, write its file, and report on each piece.

    Raises:
        FileNotFoundError: if the corpus or the store's folder is not visible from this node.
        OSError: for a problem of the storage; that of one file is a reason in its report.
    """
    sandbox = process_sandbox()
    sandbox.start()
    uri = corpus(shard.corpus).location(shard.root)
    for what, folder in (("corpora.root", uri), ("storage.root", shard.store)):
        if storage.is_local(folder) and not Path(folder).is_dir():
            raise FileNotFoundError(f"{folder} is not on this node; {what} must be visible from every node")

    def read(piece: Piece) -> Request | Answer:
        try:
            contents = tuple(read_file(uri, name, shard.files.get(name)) for name in piece.files)
        except UnusableError as error:
            return Answer(reason=str(error), may_pass=error.may_pass)
        return Request(corpus=shard.corpus, piece=piece, protocol=shard.protocol, contents=contents)

    with ThreadPoolExecutor(max_workers=4) as pool:  # files are read while others are tokenized; a shard's are few MiB
        found = pool.map(read, shard.pieces)
        answers = [item if isinstance(item, Answer) else sandbox.tokenize(item) for item in found]
    _write(shard, answers)
    return [_report(shard, piece, answer) for piece, answer in zip(shard.pieces, answers, strict=True)]


class UnusableError(Exception):
    """A file that gives nothing; the text is the reason."""

    def __init__(self, reason: str, *, may_pass: bool = False) -> None:
        super().__init__(reason)
        self.may_pass = may_pass


def read_file(uri: str, name: str, file: File | None) -> bytes:
    """The content of a file below a folder.

    Raises:
        UnusableError: for a problem of this one file.
        OSError: for any other of the storage.
    """
    shown = name.rpartition("/")[2]
    if file is None:
        raise UnusableError(f"file not found ({shown})")
    if file.size > FILE_LIMIT:
        raise UnusableError(f"too large: {file.size / 2**20:.1f} MiB, the limit is {FILE_LIMIT >> 20} MiB")
    try:
        with open_file(uri, file.path) as stream:
            return bytes(stream.read())
    except FileNotFoundError as error:
        raise UnusableError(f"file not found ({shown})", may_pass=True) from error
    except PermissionError as error:
        raise UnusableError(f"no permission to read {shown}", may_pass=True) from error
    except OSError as error:
        if not storage.is_local(uri):
            raise  # an object store that does not answer is not this file's problem
        raise UnusableError(f"cannot read {shown}: {error.strerror}", may_pass=True) from error


def _write(shard: Shard, answers: list[Answer]) -> None:
    """Write the pieces that have tokens as one Parquet file."""
    usable = [(piece, answer) for piece, answer in zip(shard.pieces, answers, strict=True) if answer.reason is None]
    arrays: dict[str, pa.Array] = {
        name: pa.array([getattr(piece, name) for piece, _ in usable], SCHEMA.field(name).type)
        for name in PIECE_SCHEMA.names
    }
    for name, (dtype, _) in COLUMNS.items():
        values = [np.frombuffer(answer.columns[name], dtype) for _, answer in usable]
        offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
        arrays[name] = pa.ListArray.from_arrays(
            offsets, np.concatenate([np.zeros(0, dtype), *values]), type=SCHEMA.field(name).type
        )
    storage.write_bytes(storage.join(shard.store, shard.name), storage.parquet(pa.table(arrays, schema=SCHEMA)))


def _report(shard: Shard, piece: Piece, answer: Answer) -> Report:
    notes = len(answer.columns.get("velocity", b""))
    digest = piece_digest(piece.piece, piece.split, piece.label, answer.columns.values()) if notes else ""
    return Report(
        corpus=shard.corpus,
        piece=piece.piece,
        file=piece.files[0],
        digest=digest,
        notes=notes,
        segments=-(-notes // shard.segment),
        dropped=json.dumps(answer.dropped),
        remarks=json.dumps(answer.remarks),
        reason=answer.reason or "",
        unread=answer.may_pass,
    )
