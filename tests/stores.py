"""Token stores for tests, written without Ray."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from midibert_ray.corpora import catalogue as corpora
from midibert_ray.data import layout
from midibert_ray.data.columns import COLUMNS, FORMAT_VERSION, piece_digest, store_digest
from midibert_ray.music.protocol import PROTOCOLS
from midibert_ray.music.tasks import TASKS
from midibert_ray.music.tokens import Tokens
from midibert_ray.tokenizing.shard import Part, make_part

Piece = tuple[str, str, str | None, Tokens]


def write_store(
    folder: Path, pieces: list[Piece], corpus: str = "made", in_part: int = 5, protocol: str = "clean"
) -> str:
    """A token store as `data.tokenize` writes it, without Ray."""
    folder.mkdir(parents=True)
    digests = []
    for number, start in enumerate(range(0, len(pieces), in_part)):
        rows_of_part = []
        for piece, split, label, tokens in pieces[start : start + in_part]:
            columns = {name: np.asarray(getattr(tokens, name)).ravel() for name in COLUMNS}
            rows_of_part.append({"piece": piece, "split": split, "label": label, **columns})
            values = (columns[name].astype(dtype).tobytes() for name, (dtype, _) in COLUMNS.items())
            digests.append((piece, piece_digest(piece, split, label, values)))
        table = pa.Table.from_pylist(rows_of_part, schema=layout.SCHEMA)
        pq.write_table(table, folder / layout.part_name(number))
    counts = {"pieces": len(pieces), "notes": sum(len(tokens) for *_, tokens in pieces)}
    manifest = {
        "corpus": corpus,
        "protocol": protocol,
        "settings": {"format_version": FORMAT_VERSION},
        "counts": counts,
        "digest": store_digest(digests),
    }
    (folder / layout.MANIFEST).write_text(json.dumps(manifest))
    return str(folder)


def make_here(parts: Sequence[Part]) -> Iterator[list[dict[str, Any]]]:
    """What `tokenize._stream` gives, one part after the other in this process."""
    for part in parts:
        began = time.time()
        reports = make_part(part)
        yield [{**report, "node": "here", "began": began, "ended": time.time()} for report in reports]


def beginnings(pieces: list[Piece], notes: int) -> list[Piece]:
    """The first notes of each piece, labelled with one emotion after the other."""
    emotions = TASKS["emotion"].classes
    cut = []
    for number, (piece, split, _, tokens) in enumerate(pieces):
        columns = {name: getattr(tokens, name)[:notes] for name in COLUMNS}
        cut.append((piece, split, emotions[number % len(emotions)], Tokens(**columns)))
    return cut


def sample(protocol: str = "clean") -> list[Piece]:
    """The pieces of the sample corpus, by id."""
    return read_corpus("sample", protocol)


def read_corpus(name: str, protocol: str, root: Path | str = "") -> list[Piece]:
    """The pieces of a corpus whose folder lies below `root`, by id."""
    corpus = corpora.corpus(name)
    folder = Path(corpus.location(str(root)))
    files = {path.relative_to(folder).as_posix(): 1 for path in folder.rglob("*") if path.is_file()}
    pieces = []
    for piece in sorted(corpus.pieces(files, PROTOCOLS[protocol]), key=lambda piece: piece.piece):
        contents = [(folder / file).read_bytes() for file in piece.files]
        tokens = corpora.tokenize_piece(corpus, piece, contents, PROTOCOLS[protocol])
        pieces.append((piece.piece, piece.split, piece.label, tokens))
    return pieces
