"""Table I from token stores."""

from pathlib import Path

import numpy as np
import pytest

from midibert_ray.data.store import TokenStore
from midibert_ray.music.tokens import Tokens
from midibert_ray.report.table_one import NOTES, PRINTED, CorpusRow, describe, grid, table
from tests.stores import read_corpus, write_store


def test_a_corpus_is_counted(tmp_path: Path) -> None:
    """Three notes in two bars, an empty one between them, and one note in a bar of another piece."""
    first = Tokens(
        tokens=np.array([[0, 0, 40, 3], [1, 8, 42, 5], [0, 0, 38, 3]], np.uint8),
        onset=np.array([0, 8, 32], np.int32),
        velocity=np.full(3, 64, np.uint8),
        part=np.zeros(3, np.uint8),
    )
    second = Tokens(**{name: values[:1] for name, values in vars(first).items() if name not in ("dropped", "remarks")})
    pieces = [("1.mid", "pretrain", None, first), ("2.mid", "pretrain", None, second)]
    store = TokenStore.open(write_store(tmp_path / "made", pieces), str(tmp_path / "cache"))
    row = describe(store)
    assert row == CorpusRow(
        corpus="made",
        protocol="clean",
        pieces=2,
        bars_per_piece=1.5,
        notes_per_bar=4 / 3,
        mean_pitch=62.0,
        mean_duration=3.5,
    )
    assert row.mean_thirty_seconds == 4.5
    [line] = table([row])
    assert (line["printed"], line["note"]) == ({}, "")


def test_the_table_sets_the_papers_figures_beside_ours() -> None:
    rows = [
        CorpusRow(
            corpus=corpus,
            protocol=protocol,
            pieces=65,
            bars_per_piece=95.877,
            notes_per_bar=23.138,
            mean_pitch=63.1,
            mean_duration=2.914,
        )
        for corpus in ("asap", "sample")
        for protocol in ("paper", "clean")
    ]
    lines = table(rows)
    assert lines[0]["printed"] == PRINTED["asap"]
    assert lines[0]["mean_thirty_seconds"] == pytest.approx(3.914)
    assert [lines[0]["note"], lines[2]["note"]] == [NOTES["asap"], ""]
    head, *shown = grid(lines)
    assert head[:5] == ["", "protocol", "pieces", "bars per piece", "notes per bar"]
    assert head[5:] == ["mean pitch", "mean duration", "in thirty-seconds"]
    assert shown[0] == ["asap", "paper", "65 (65)", "95.9 (95.9)", "23.1 (23.0)", "63 (63)", "2.9 (2.9)", "3.9"]
    assert shown[3] == ["sample", "clean", "65", "95.9", "23.1", "63", "2.9", "3.9"]


@pytest.mark.corpora
@pytest.mark.parametrize(
    ("name", "pieces", "bars", "notes", "differing"),
    [
        ("pop909", 865, 82_057, 1_424_516, set()),
        ("asap", 65, 6_232, 144_198, {"notes_per_bar"}),
        ("pop1k7", 1747, 180_541, 2_276_713, {"notes_per_bar", "mean_pitch", "mean_duration"}),
        ("pianist8", 411, 44_744, 752_636, {"notes_per_bar", "mean_pitch", "mean_duration"}),
        ("emopia", 1078, 15_935, 285_638, set()),
    ],
)
def test_the_papers_table(
    corpora_root: Path, tmp_path: Path, name: str, pieces: int, bars: int, notes: int, differing: set[str]
) -> None:
    made = read_corpus(name, "paper", corpora_root)
    uri = write_store(tmp_path / name, made, name, in_shard=100, protocol="paper")
    row = describe(TokenStore.open(uri, str(tmp_path / "cache")))
    assert (row.pieces, row.bars_per_piece) == (pieces, bars / pieces)
    assert row.notes_per_bar == notes / bars
    [line] = table([row])
    digits = {"pieces": 0, "mean_pitch": 0, "mean_duration": 1, "notes_per_bar": 1, "bars_per_piece": 1}
    assert {key for key, places in digits.items() if round(line[key], places) != line["printed"][key]} == differing
    assert bool(differing) <= bool(line["note"])
