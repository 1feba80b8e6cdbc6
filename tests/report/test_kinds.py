"""Numbers and tags in baselines, tables and pages; plain features beside them."""

import csv
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from midibert_ray.music.tasks import TASKS, Task
from midibert_ray.report import findings, formats, page, plots, sections, statistics, table
from midibert_ray.report.baselines import MEAN, MEDIAN, PLAIN, PRIOR, Baseline, baselines, plain_features
from midibert_ray.report.table import Key
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.studies.result import TrialResult
from midibert_ray.training.predictions import KINDS
from midibert_ray.training.task_data import TaskData
from tests.report.pages import check
from tests.stores import Piece
from tests.training.test_kinds import BUSY, HEIGHT, MOOD, labelled


@pytest.fixture
def config() -> Config:
    return replace(Config(), {"tokens.segment": 128})


def outcome(task: Task, variant: str, seed: int, noise: float, pieces: int = 60) -> TrialResult:
    """A trial whose answers are the truth, which all trials of a task share, and some noise."""
    truth, random = np.random.default_rng(7), np.random.default_rng((seed, int(100 * noise)))
    if task.kind == "number":
        label = truth.normal(60, 5, pieces)
        logits = (label + noise * random.normal(size=pieces))[:, None]
    else:
        label = (truth.random((pieces, len(task.classes))) < 0.3).astype(float)
        logits = label - 0.5 + noise * random.normal(size=label.shape)
    numbers = np.arange(pieces)
    said = KINDS[task.kind](numbers, numbers, np.full(pieces, -1), label, logits)
    return TrialResult(
        trial=f"{task.name}-{variant}-clean-seed{seed}",
        task=task.name,
        variant=variant,
        protocol="clean",
        seed=seed,
        kind=task.kind,
        epoch=2,
        metrics=said.metrics("test") | {"valid/best": 0.5},
        classes=list(task.classes),
        confusion=[],
        pieces=said.by_piece("{:03d}".format),
        seconds=1.0,
        devices=1.0,
    )


OUTCOMES = [
    outcome(task, variant, seed, noise)
    for task, scale in ((HEIGHT, 4.0), (MOOD, 0.4))
    for variant, noise in (("pretrained", scale), ("scratch", 2 * scale))
    for seed in (1, 2)
]


@pytest.fixture(scope="module")
def made() -> table.ResultTable:
    (made,) = table.build(OUTCOMES, {})
    return made


# ------------------------------------------------------------------------------------ statistics


def test_an_interval_of_explained_variance(made: table.ResultTable) -> None:
    score = made.cells[Key("clean", "height", "pretrained")].score
    assert score
    values = [item.metrics["test/r2"] for item in OUTCOMES[:2]]
    assert score.accuracy == pytest.approx(np.mean(values))
    assert statistics.R_SQUARED.total(score.by_piece) == pytest.approx(score.accuracy), "errors are means over seeds"
    random = np.random.default_rng(0)
    truth, said = np.array(list(OUTCOMES[0].pieces.values())).T
    drawn = [random.integers(len(truth), size=len(truth)) for _ in range(1000)]
    expected = np.quantile([sk.r2_score(truth[rows], said[rows]) for rows in drawn], [0.025, 0.975])
    alone = table.Score.of(OUTCOMES[:1])
    assert alone.over_pieces == pytest.approx(expected, abs=0.03)
    assert alone.interval == alone.over_pieces
    assert (alone.wilson, alone.f1, alone.scored) == (None, None, 60)
    assert alone.mae == pytest.approx(np.abs(truth - said).mean())


def test_an_interval_of_average_precision() -> None:
    score = table.Score.of([item for item in OUTCOMES if (item.task, item.variant) == ("mood", "pretrained")])
    rows = score.by_piece
    assert rows.shape == (60, 3 + 2 * 3), "the truth, and the shares of two seeds"
    assert score.statistic.total(rows) == pytest.approx(score.accuracy)
    random = np.random.default_rng(0)
    draws = []
    for _ in range(150):
        some = rows[random.integers(60, size=60)]
        runs = (some[:, 3:6], some[:, 6:])
        draws.append(np.mean([sk.average_precision_score(some[:, :3], said, average="macro") for said in runs]))
    assert score.over_pieces == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.03)
    assert score.support == dict(zip(MOOD.classes, rows[:, :3].sum(axis=0).astype(int), strict=True))


def test_a_test_of_two_models_by_kind(made: table.ResultTable) -> None:
    for task in ("height", "mood"):
        p = made.cells[Key("clean", task, "scratch")].p
        assert p is not None
        assert p < 0.05
    same = table.Score.of(OUTCOMES[:1]).by_piece
    assert statistics.paired_p(same, same, statistics.R_SQUARED) == 1
    tags = table.Score.of(OUTCOMES[4:5])
    assert statistics.paired_p(tags.by_piece, tags.by_piece, tags.statistic) == 1
    shuffled = tags.by_piece.copy()  # the first five pieces are answered otherwise: 32 exchanges, all of them tried
    shuffled[:5, 3:] = 1 - shuffled[:5, 3:]
    p = statistics.paired_p(tags.by_piece, shuffled, tags.statistic)
    assert p * 32 == pytest.approx(round(p * 32))


# ------------------------------------------------------------------------------------ tables and pages


def test_a_table_of_both_says_what_it_measures(made: table.ResultTable) -> None:
    assert made.tasks == ("height", "mood")
    assert made.caption == (
        "Explained variance (R²) of height; mean average precision of mood on the test split in %; "
        "p against pretrained."
    )
    rows = list(csv.DictReader(io.StringIO(formats.to_csv([made]))))
    assert {row["f1"] == "" for row in rows if row["task"] == "height"} == {True}
    assert all(float(row["mae"]) > 0 for row in rows if row["task"] == "height")
    assert "pretrained" in formats.to_markdown([made])


def test_the_sections_of_a_report(made: table.ResultTable) -> None:
    study: Any = SimpleNamespace(outcomes=OUTCOMES, tables=[made])
    shown = [
        page.Section("Results", "table", made),
        page.Section("Beside accuracy", "beside", sections._scores(study)),
        page.Section("Numbers and tags", "answers", sections.answers(study)),
        page.Section("Hardest pieces", "pieces", sections.hardest_pieces(study)),
    ]
    text = check(page.document("own labels", shown, {}))
    assert "height: pretrained, clean" in text
    assert "mean absolute error" in text
    assert "20 of 60 pieces" in text
    assert sections.confusions(study) == []
    height, mood = sections.hardest_pieces(study)
    assert height["title"] == "height, protocol clean: pretrained"
    errors = [abs(float(row[1])) for row in height["rows"][1:]]
    assert errors == sorted(errors, reverse=True)
    pieces = [item.pieces for item in OUTCOMES[:2]]
    worst = max(pieces[0], key=lambda name: abs(np.mean([run[name][1] - run[name][0] for run in pieces])))
    assert height["rows"][1][0] == worst
    assert set(mood["rows"][1][2].split(", ")) <= {*MOOD.classes, "none"}


@pytest.mark.parametrize("result", [OUTCOMES[0], OUTCOMES[4]], ids=["number", "tags"])
def test_pictures(result: TrialResult) -> None:
    figure = plots.answers(result)
    (axes,) = figure.axes
    if result.kind == "number":
        truth, said = np.array(list(result.pieces.values())).T
        assert [line.get_xydata().shape for line in axes.lines] == [(2, 2), (60, 2)]
        np.testing.assert_allclose(axes.lines[1].get_xydata(), np.stack([truth, said], axis=1))
    else:
        rows = np.array(list(result.pieces.values()))
        each = [sk.average_precision_score(rows[:, tag], rows[:, 3 + tag]) for tag in range(3)]
        assert [bar.get_width() for bar in axes.patches] == pytest.approx([100 * value for value in each])


# ------------------------------------------------------------------------------------ baselines


def test_the_same_answer_to_every_number(config: Config, sample_pieces: list[Piece], tmp_path: Path) -> None:
    store = labelled(sample_pieces, HEIGHT, tmp_path)
    found = {item.name: item for item in baselines(config, store, HEIGHT)}
    assert list(found) == [MEAN, MEDIAN]
    train, test = ([float(store.label(row) or "") for row in store.select({name})] for name in ("train", "test"))
    assert found[MEAN].metrics["mae"] == pytest.approx(np.abs(np.array(test) - np.mean(train)).mean(), rel=1e-5)
    assert found[MEDIAN].metrics["mae"] == pytest.approx(np.abs(np.array(test) - np.median(train)).mean(), rel=1e-5)
    assert found[MEAN].accuracy == pytest.approx(sk.r2_score(test, [np.mean(train)] * len(test)), abs=1e-5)
    assert found[MEAN].accuracy <= 0
    assert found[MEAN].metrics["spearman"] == 0
    assert found[MEAN].note == f"for every piece the mean of the training split: {np.mean(train):.4g}"


def test_the_same_answer_to_every_tag(config: Config, sample_pieces: list[Piece], tmp_path: Path) -> None:
    store = labelled(sample_pieces, MOOD, tmp_path)
    (found,) = baselines(config, store, MOOD)
    test = [(store.label(row) or "").split(";") for row in store.select({"test"})]
    shares = [np.mean([tag in tags for tags in test]) for tag in MOOD.classes]
    assert found.name == PRIOR
    assert found.accuracy == pytest.approx(np.mean([share for share in shares if share])), "chance: how many have it"
    assert found.detail == {tag: sum(tag in tags for tags in test) for tag in MOOD.classes}


@pytest.mark.slow
@pytest.mark.parametrize("task", [HEIGHT, MOOD, BUSY, TASKS["melody"]], ids=lambda task: task.name)
def test_plain_features_are_learned(config: Config, sample_pieces: list[Piece], task: Task, tmp_path: Path) -> None:
    store = labelled(sample_pieces, task, tmp_path)
    (found,) = plain_features(TaskData(config, store, task))
    assert [found] == plain_features(TaskData(config, store, task)), "the same seed, the same metrics"
    low, high = found.interval or (1, 0)
    assert low <= found.accuracy <= high
    if task.name in ("height", "melody"):  # which the features tell, in eleven songs or more
        (constant, *_) = baselines(config, store, task)
        assert found.accuracy > constant.accuracy + 0.05
    assert set(found.pieces) == {store.piece_id(row) for row in store.select({"test"})}


def test_a_sentence_says_which_does_better(config: Config) -> None:
    plain = [outcome(task, "x", 9, noise) for task, noise in ((HEIGHT, 0.5), (MOOD, 0.4))]
    trivial = [baselines_of(item, note="ridge regression, alpha 1, chosen in validation, learned") for item in plain]
    made = table.build(OUTCOMES, {}, trivial)
    height, mood = findings.beside_plain(made)
    assert height.startswith(
        "height, protocol clean: the best row, pretrained, does worse than textbook models of plain features (ridge "
        "regression): "
    )
    assert "is not told from" in mood
    assert "mean average precision" in mood


def baselines_of(item: TrialResult, note: str) -> Baseline:
    """A trial's answers as those of plain features."""
    metrics = {key.removeprefix("test/"): value for key, value in item.metrics.items()}
    detail = dict.fromkeys(item.classes, 1)
    return Baseline(
        protocol="clean",
        task=item.task,
        name=PLAIN,
        correct=0,
        scored=60,
        detail=detail,
        note=note,
        kind=item.kind,
        metrics=metrics,
        pieces=item.pieces,
    )
