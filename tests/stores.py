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
from midibert_ray.corpora.labels import list_pieces
from midibert_ray.corpora.tokens import tokenize_piece
from midibert_ray.data.format import COLUMNS, FORMAT_VERSION, MANIFEST, SCHEMA, SHARDS, piece_digest, store_digest
from midibert_ray.music.protocol import PROTOCOLS
from midibert_ray.music.tasks import TASKS
from midibert_ray.music.tokens import Tokens
from midibert_ray.tokenizing.shard import Shard, make_shard

Piece = tuple[str, str, str | None, Tokens]


def write_store(
    folder: Path, pieces: list[Piece], corpus: str = "made", in_shard: int = 5, protocol: str = "clean"
) -> str:
    """A token store without Ray."""
    folder.mkdir(parents=True)
    digests, shards = [], {}
    for number, start in enumerate(range(0, len(pieces), in_shard)):
        rows = []
        for piece, split, label, tokens in pieces[start : start + in_shard]:
            columns = {name: np.asarray(getattr(tokens, name)).ravel() for name in COLUMNS}
            rows.append({"piece": piece, "split": split, "label": label, **columns})
            values = (columns[name].astype(dtype).tobytes() for name, (dtype, _) in COLUMNS.items())
            digests.append((piece, piece_digest(piece, split, label, values)))
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        shard = folder / f"part-{number:05d}.parquet"
        pq.write_table(table, shard)
        shards[shard.name] = shard.stat().st_size
    counts = {"pieces": len(pieces), "notes": sum(len(tokens) for *_, tokens in pieces)}
    manifest = {
        "corpus": corpus,
        "protocol": protocol,
        "settings": {"format_version": FORMAT_VERSION},
        "counts": counts,
        "digest": store_digest(digests),
        SHARDS: shards,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return str(folder)


def make_here(shards: Sequence[Shard]) -> Iterator[list[dict[str, Any]]]:
    """What `tokenize._stream` gives, one shard after the other in this process."""
    for shard in shards:
        began = time.time()
        reports = make_shard(shard)
        yield [{**report, "node": "here", "began": began, "ended": time.time()} for report in reports]


def beginnings(pieces: list[Piece], notes: int) -> list[Piece]:
    """The first notes of each piece, labelled with one emotion after the other."""
    emotions = TASKS["emotion"].classes
    cut = []
    for number, (piece, split, _, tokens) in enumerate(pieces):
        columns = {name: getattr(tokens, name)[:notes] for name in COLUMNS}
        cut.append((piece, split, emotions[number % len(emotions)], Tokens(**columns)))
    return cut


def sample(protocol: str = "clean", order: str = "") -> list[Piece]:
    """The pieces of the sample corpus, by id."""
    return read_corpus("sample", protocol, order=order)


def read_corpus(name: str, protocol: str, root: Path | str = "", order: str = "") -> list[Piece]:
    """The pieces of a corpus whose folder lies below `root`, by id."""
    corpus = corpora.corpus(name)
    folder = Path(corpus.location(str(root)))
    made_by = PROTOCOLS[protocol].switch(order=order) if order else PROTOCOLS[protocol]
    files = {path.relative_to(folder).as_posix(): 1 for path in folder.rglob("*") if path.is_file()}
    pieces = []
    for piece in sorted(list_pieces(corpus, files, made_by), key=lambda piece: piece.piece):
        contents = [(folder / file).read_bytes() for file in piece.files]
        tokens = tokenize_piece(corpus, piece, contents, made_by)
        pieces.append((piece.piece, piece.split, piece.label, tokens))
    return pieces
