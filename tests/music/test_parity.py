"""Our tokens under protocol paper, beside the arrays that the authors published."""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from midibert_ray.corpora.catalogue import corpus
from midibert_ray.corpora.labels import Piece, list_pieces
from midibert_ray.corpora.tokens import tokenize_piece
from midibert_ray.music.tasks import TASKS, note_labels, sequence_label
from midibert_ray.music.tokens import Tokens, remi_from_cp, rows
from midibert_ray.music.vocabulary import CP_PAD, REMI_PAD

SAMPLE_DIGESTS = {
    "paper": "c5c019f46e2d31fd452fba3206ef381c9ce52f03e9fe808fbe9d11ab0b39074e",
    "clean": "40ff5e7f64b1a4d34ebd94b7037dac99e71bc4d4a45eb688f86e0de7123bf0cb",
}


def test_the_tokens_of_the_sample_have_not_drifted(sample):
    """The digests were taken when all golden arrays below were met."""
    digests = {}
    for protocol in ("paper", "clean"):
        total = hashlib.sha256()
        for piece, contents in sample:
            tokens = tokenize_piece(corpus("sample"), piece, contents, protocol)
            for column in (tokens.tokens, tokens.onset.astype("<i4"), tokens.velocity, tokens.part):
                total.update(np.ascontiguousarray(column).tobytes())
        digests[protocol] = total.hexdigest()
    assert digests == SAMPLE_DIGESTS


@cache
def all_tokens(name: str, root: Path) -> dict[str, tuple[Piece, Tokens]]:
    """All pieces of a corpus under protocol paper, by the path of their MIDI file."""
    entry = corpus(name)
    folder = Path(root, entry.folder)
    return {
        piece.files[0]: (
            piece,
            tokenize_piece(entry, piece, [(folder / file).read_bytes() for file in piece.files], "paper"),
        )
        for piece in list_pieces(entry, {}, "paper")
    }


def keeps_last_row(task: str | None, n: int, length: int) -> bool:
    """Whether the last of the rows that n tokens fill is kept: composer leaves one out that is less than half full."""
    rest = n % length
    return rest == 0 or task is None or not TASKS[task].drops_short_rows or rest >= length / 2


def row_count(piece_tokens: Tokens, task: str | None) -> int:
    kept = keeps_last_row(task, len(piece_tokens), 512)
    return -(-len(piece_tokens) // 512) - (not kept)


GOLDEN = [
    ("pop909", "pop909_valid", None),
    ("pianist8", "pianist8_valid", "composer"),
    ("emopia", "emopia_valid", "emotion"),
    ("asap", "asap", None),
]


def expected_rows(tokens: Tokens, representation: str, task: str | None) -> dict[str, np.ndarray]:
    """The rows that we make of one piece, with the note-level labels."""
    cp = tokens.tokens
    remi = remi_from_cp(cp)
    ids, pad = (cp, CP_PAD) if representation == "cp" else (remi.ids, REMI_PAD)
    kept = len(rows(ids, 512, pad)) - (not keeps_last_row(task, len(ids), 512))
    out = {"tokens": rows(ids, 512, pad)[:kept]}
    for name in ("melody", "velocity"):
        labels = note_labels(TASKS[name], tokens)
        if representation == "remi":
            spread = np.zeros(len(ids), dtype=np.uint8)
            spread[remi.pitch_at] = labels
            labels = spread
        out[name] = rows(labels, 512, 0)[:kept]
    return out


@pytest.mark.corpora
@pytest.mark.parametrize("representation", ["cp", "remi"])
@pytest.mark.parametrize(("name", "file", "task"), GOLDEN)
def test_golden_arrays(corpora_root, name, file, task, representation):
    with np.load(corpora_root / "golden" / f"{file}_{representation}.npz") as arrays:
        golden = dict(arrays)
    made = all_tokens(name, corpora_root)
    parts: dict[str, list[np.ndarray]] = {"tokens": [], "melody": [], "velocity": [], "label": []}
    for path in golden["pieces"].tolist():
        piece, tokens = made[path]
        found = expected_rows(tokens, representation, task)
        for key, value in found.items():
            parts[key].append(value)
        if task:
            parts["label"].append(np.full(len(found["tokens"]), sequence_label(TASKS[task], piece.label)))
    for key in set(golden) - {"pieces", "row_piece"}:
        np.testing.assert_array_equal(np.concatenate(parts[key]), golden[key], err_msg=key)


@pytest.mark.corpora
@pytest.mark.parametrize(
    ("name", "task", "counts"),
    [
        ("pop909", None, {"train": 2577, "valid": 317, "test": 320}),
        ("pianist8", "composer", {"train": 1186, "valid": 156, "test": 126}),
        ("emopia", "emotion", {"train": 924, "valid": 114, "test": 109}),
        ("asap", None, {"pretrain": 317}),
    ],
)
def test_row_counts_of_all_splits(corpora_root, name, task, counts):
    found: Counter[str] = Counter()
    for piece, tokens in all_tokens(name, corpora_root).values():
        found[piece.split] += row_count(tokens, task)
    assert dict(found) == counts


CLASS_ROWS = {
    "composer": {
        "train": [134, 136, 124, 280, 142, 129, 150, 91],
        "valid": [16, 12, 15, 55, 21, 11, 16, 10],
        "test": [17, 11, 18, 28, 20, 9, 14, 9],
    },
    "emotion": {"train": [210, 255, 208, 251], "valid": [26, 32, 25, 31], "test": [26, 27, 25, 31]},
}


@pytest.mark.corpora
@pytest.mark.parametrize("task", CLASS_ROWS)
def test_rows_per_class(corpora_root, task):
    entry = TASKS[task]
    found = {split: [0] * len(entry.classes) for split in ("train", "valid", "test")}
    for piece, tokens in all_tokens(entry.corpus, corpora_root).values():
        found[piece.split][sequence_label(entry, piece.label)] += row_count(tokens, task)
    assert found == CLASS_ROWS[task]


@pytest.mark.corpora
def test_notes_per_class(corpora_root):
    tokens = [tokens for _, tokens in all_tokens("pop909", corpora_root).values()]
    found = {
        task: sum(np.bincount(note_labels(TASKS[task], t), minlength=7) for t in tokens).tolist()
        for task in ("melody", "velocity")
    }
    assert found["melody"] == [0, 288206, 230643, 905667, 0, 0, 0]
    assert found["velocity"] == [0, 3765, 23628, 100365, 349603, 586413, 360742]


@pytest.mark.corpora
def test_remi_row_counts_of_pop909(corpora_root):
    found: Counter[str] = Counter()
    for piece, tokens in all_tokens("pop909", corpora_root).values():
        found[piece.split] += -(-len(remi_from_cp(tokens.tokens).ids) // 512)
    assert (found["valid"], found["test"]) == (885, 897)


@pytest.mark.corpora
@pytest.mark.parametrize(
    ("name", "notes", "bars", "distinct_pitches", "duration_index"),
    [("pop909", 1_424_516, 82_057, 62.88, 6.117), ("asap", 144_198, 6_232, 63.11, 2.914)],
)
def test_table_one(corpora_root, name, notes, bars, distinct_pitches, duration_index):
    """The paper's Table I. "Pitch" and "duration" are means over all notes, the duration that of the 0-based
    index."""
    table = np.concatenate([tokens.tokens for _, tokens in all_tokens(name, corpora_root).values()])
    assert len(table) == notes
    assert int((table[:, 0] == 0).sum()) == bars
    assert table[:, 2].mean() + 22 == pytest.approx(distinct_pitches, abs=0.005)
    assert table[:, 3].mean() == pytest.approx(duration_index, abs=0.0005)
