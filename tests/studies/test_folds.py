"""Folds as one result: every piece is tested once, and the metrics are over all of them."""

from typing import Any

import pytest

from midibert_ray.report.table import Key, build
from midibert_ray.studies.folds import merge, merged
from midibert_ray.studies.result import TrialResult
from midibert_ray.studies.trials import Trial


def fold(number: int, **fields: Any) -> TrialResult:
    trial = Trial(task="genre", variant="scratch", protocol="clean", seed=1, fold=number)
    known = {"trial": trial.name, **trial.tags, "epoch": number, "seconds": 2.0, "devices": 1.0}
    return TrialResult(**known | {"classes": ["a", "b"], "confusion": [], "metrics": {}, "pieces": {}} | fields)


def of_classes(number: int, confusion: list[list[int]], pieces: dict[str, list[int]], **fields: Any) -> TrialResult:
    right, scored = confusion[0][0] + confusion[1][1], sum(map(sum, confusion))
    metrics = {"test/accuracy": right / scored, "test/f1": 0.0, "test/loss": float(number), "test/piece_accuracy": 0.0}
    return fold(number, confusion=confusion, pieces=pieces, metrics=metrics, **fields)


FOLDS = [
    of_classes(1, [[2, 0], [1, 1]], {"p": [2, 2, 1], "q": [1, 2, 0]}, clusters={"p": "group:g"}),
    of_classes(2, [[1, 1], [0, 2]], {"r": [1, 2, 1], "s": [2, 2, 1]}, clusters={"r": "group:h", "s": "group:h"}),
]


def test_classes_are_counted_over_all_folds() -> None:
    both = merge(FOLDS)
    assert (both.trial, both.fold, both.folds, both.epoch) == ("genre-scratch-clean-seed1", 0, 2, 2)
    assert both.confusion == [[3, 1], [1, 3]]
    assert both.metrics == {
        "test/accuracy": 0.75,
        "test/f1": pytest.approx(0.75),
        "test/loss": 1.5,
        "test/piece_accuracy": 0.75,
    }
    assert both.pieces.keys() == {"p", "q", "r", "s"}
    assert both.seconds == 4


def test_numbers_and_tags_are_scored_over_all_pieces() -> None:
    numbers = [{"a": [1.0, 1.5], "b": [3.0, 2.5]}, {"c": [5.0, 5.0]}]
    made = [fold(at, kind="number", classes=[], pieces=rows) for at, rows in enumerate(numbers, start=1)]
    metrics = merge(made).metrics
    assert metrics["test/r2"] == pytest.approx(1 - 0.5 / 8)
    assert metrics["test/mae"] == pytest.approx(1 / 3)
    assert metrics["test/spearman"] == pytest.approx(1)
    tags = [{"a": [1.0, 0.0, 0.9, 0.2]}, {"b": [0.0, 1.0, 0.1, 0.7]}]
    made = [fold(at, kind="tags", pieces=rows) for at, rows in enumerate(tags, start=1)]
    assert merge(made).metrics["test/average_precision"] == pytest.approx(1)


def test_a_table_has_one_row_for_all_folds_and_draws_groups() -> None:
    other = fold(0, seed=2, trial="genre-other", variant="other", metrics={"test/accuracy": 1.0, "test/f1": 1.0})
    assert [item.trial for item in merged([*FOLDS, other])] == ["genre-scratch-clean-seed1", "genre-other"]
    (table,) = build(FOLDS, {})
    score = table.cells[Key("clean", "genre", "scratch")].score
    assert score
    assert (score.accuracy, score.seeds, score.scored) == (0.75, 1, 8)
    assert score.clusters == {"p": "group:g", "r": "group:h", "s": "group:h"}
    assert score.interval == score.over_pieces
