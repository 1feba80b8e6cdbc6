"""Tables from made-up outcomes: what is in a cell, what it is compared with, and how it is written down."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from midibert_ray.report import findings, formats, page, plots, statistics, table
from midibert_ray.report.baselines import MAJORITY, NO_MELODY, Baseline
from midibert_ray.report.table import Key, ResultTable
from midibert_ray.studies.result import TrialResult
from midibert_ray.studies.trials import Trial
from tests.studies.made import outcome

OUTCOMES = [
    *(outcome("pretrained", 0.9, seed=seed) for seed in (1, 2, 3)),
    *(outcome("scratch", 0.7, seed=seed) for seed in (1, 2, 3)),
    outcome("rnn", 0.89),
]
PAPER = [
    outcome(variant, share, task=task, protocol=protocol, seed=seed, size=1 if task == "emotion" else 40)
    for protocol in ("clean", "paper")
    for task in ("emotion", "melody")
    for variant, share in {"pretrained": 0.9, "scratch": 0.6, "rnn": 0.7, "pretrained-by-pitch": 0.8}.items()
    for seed in (2, 1)
]
FAILED = {
    Trial(task="melody", variant="freeze-backbone", protocol="paper", seed=1): "out of memory",
    Trial(task="melody", variant="freeze-backbone", protocol="paper", seed=2): "out of memory",
    Trial(task="melody", variant="scratch", protocol="paper", seed=3): "loss is not finite",
}
COUNTS = {"TP": 17_351, "FP": 18_644, "FN": 11_942, "TN": 94_640}
SKYLINE = Baseline(
    protocol="paper", task="melody", name="skyline", correct=111_991, scored=142_577, detail=COUNTS, note="the highest"
)
SONG = Baseline(
    protocol="paper", task="emotion", name="label of the song", correct=79, scored=107, detail={}, note="by clip"
)


@pytest.fixture(scope="module")
def plain() -> ResultTable:
    (only,) = table.build(OUTCOMES, {})
    return only


@pytest.fixture(scope="module")
def tables() -> list[ResultTable]:
    return table.build(PAPER, FAILED, [SKYLINE, SONG], ("3", "leak", "1"))


def test_a_cell_is_the_mean_of_its_seeds(plain: ResultTable) -> None:
    assert (plain.name, plain.title, plain.tasks, plain.protocols) == (
        "results",
        "All variants",
        ("melody",),
        ("clean",),
    )
    assert [row.variant for row in plain.rows] == ["pretrained", "scratch", "rnn"]
    score = plain.cells[Key("clean", "melody", "pretrained")].score
    assert score is not None
    mine = OUTCOMES[:3]
    assert score.accuracy == pytest.approx(np.mean([item.accuracy for item in mine]))
    assert score.f1 == pytest.approx(np.mean([item.metrics["test/f1"] for item in mine]))
    assert (score.seeds, score.scored, score.piece_accuracy) == (3, mine[0].scored, None)
    assert score.over_seeds == statistics.over_seeds([item.accuracy for item in mine])
    correct, scored = np.array(list(score.tally.values())).sum(axis=0)
    assert correct / scored == pytest.approx(score.accuracy)
    assert (score.seconds, score.device_hours) == (270, 3 * 90 * 2 / 3600)


def test_the_interval_to_believe_is_over_pieces_unless_each_is_one_segment(tables: list[ResultTable]) -> None:
    scores = table.scores(tables)
    notes, clips = scores[Key("paper", "melody", "pretrained")], scores[Key("paper", "emotion", "pretrained")]
    assert notes.interval == notes.over_pieces != notes.wilson
    assert notes.over_pieces[1] - notes.over_pieces[0] > notes.wilson[1] - notes.wilson[0]
    assert clips.interval == clips.wilson
    assert clips.piece_accuracy is not None
    (alone,) = table.build([outcome("scratch", 0.7, pieces=1)], {})
    score = alone.cells[Key("clean", "melody", "scratch")].score
    assert score and score.interval == score.wilson and score.over_seeds is None


def test_rows_are_tested_against_the_baseline_of_their_table(plain: ResultTable) -> None:
    p = {key.variant: cell.p for key, cell in plain.cells.items()}
    scores = {key.variant: cell.score for key, cell in plain.cells.items()}
    raw = [statistics.paired_p(*table.tallies(scores[name], scores["pretrained"])) for name in ("scratch", "rnn")]
    assert [p["scratch"], p["rnn"]] == statistics.holm(raw)
    assert p["pretrained"] is None
    assert p["scratch"] < 0.001
    draws = [replace(item, variant=item.variant.replace("pretrained", "draw000")) for item in OUTCOMES]
    assert all(cell.p is None for cell in table.build(draws, {})[0].cells.values()), "nothing to test against"


def test_models_that_cut_pieces_differently_are_compared_over_the_pieces_that_both_have() -> None:
    short = outcome("scratch", 0.7)
    short = replace(short, pieces=dict(list(short.pieces.items())[:-1]))
    (made,) = table.build([*OUTCOMES[:1], short], {})
    first, second = table.tallies(*(cell.score for cell in made.cells.values() if cell.score))
    assert first.shape == second.shape == (19, 2)


def test_the_majority_class_stands_in_every_column(tables: list[ResultTable]) -> None:
    ablation = tables[0]
    for each in [*tables, *table.build(PAPER, {}, [ablation.baselines[0]], ("3",))]:
        found = sorted((item.protocol, item.task) for item in each.baselines if item.name == MAJORITY)
        assert found == [(protocol, task) for protocol in ("clean", "paper") for task in ("emotion", "melody")]
    trivial = ablation.trivial("paper", "melody", MAJORITY)
    support = np.sum(next(item for item in PAPER if item.trial == "melody-rnn-paper-seed1").confusion, axis=1)
    assert trivial is not None
    assert (trivial.correct, trivial.scored) == (support.max(), support.sum())
    share = support.max() / support.sum()
    assert table.majority_f1(trivial) == pytest.approx(2 * share / (1 + share) / 3), "padding is no class that occurs"
    assert ablation.trivial("paper", "emotion", SONG.name) == SONG
    assert ablation.baseline_names() == [MAJORITY, SONG.name], "skyline answers another question"


def test_the_tables_of_a_paper_study(tables: list[ResultTable]) -> None:
    ablation, leak = tables
    assert [each.name for each in tables] == ["3", "leak"]
    assert (ablation.tasks, ablation.protocols) == (("melody", "emotion"), ("paper", "clean"))
    cell = ablation.cells[Key("paper", "melody", "pretrained")]
    assert cell.printed == 96.37 and cell.score
    assert cell.difference == pytest.approx(100 * cell.score.accuracy - 96.37)
    lost = ablation.cells[Key("paper", "melody", "freeze-backbone")]
    assert lost.score is None and list(lost.failed.values()) == ["out of memory"] * 2
    part = ablation.cells[Key("paper", "melody", "scratch")]
    assert part.score and part.score.seeds == 2 and list(part.failed.values()) == ["loss is not finite"]
    assert Key("clean", "melody", "freeze-backbone") not in ablation.cells
    tested = {key.variant for key, cell in leak.cells.items() if cell.p is not None}
    assert tested == {"pretrained-by-pitch"}, "a row by pitch is tested against the same model"
    more = table.build([*PAPER, outcome("rnn-remi", 0.5)], FAILED, (), ("3", "leak"))
    assert [(each.name, each.title) for each in more][2:] == [("results", "Other variants")]
    assert table.labels(more)["pretrained"] == "MidiBERT + CP"


def test_what_the_leaks_are_worth(tables: list[ResultTable]) -> None:
    order, songs = findings.leaks(tables)
    track, pitch = (
        table.scores(tables)[Key("paper", "melody", name)] for name in ("pretrained", "pretrained-by-pitch")
    )
    worth = 100 * (track.accuracy - pitch.accuracy)
    assert "Under protocol paper the order of notes gives the melody away: MidiBERT scores" in order
    assert f"the leak is worth {worth:.1f} points [" in order
    assert "clips of one song" in songs and "Without any model: label of the song, 73.8 %." in songs
    assert findings.leaks(table.build(OUTCOMES, {})) == []


def test_an_order_that_gives_nothing_away_is_said_to() -> None:
    track = outcome("pretrained", 0.9, protocol="paper")
    same = replace(track, variant="pretrained-by-pitch", trial="melody-pretrained-by-pitch-paper-seed1")
    (sentence,) = findings.leaks(table.build([track, same], {}, (), ("leak",)))
    assert "does not measurably give the melody away" in sentence and "0.0 points [0.0, 0.0]" in sentence


def test_melody_or_not(tables: list[ResultTable]) -> None:
    rows = findings.melody_or_not(PAPER, [SKYLINE, SONG], tables)
    assert [(row.protocol, row.name) for row in rows] == [
        ("paper", NO_MELODY),
        ("paper", "skyline"),
        ("paper", "MidiBERT + CP"),
        ("paper", "RNN + CP"),
        ("clean", NO_MELODY),
        ("clean", "MidiBERT + CP"),
        ("clean", "RNN + CP"),
    ]
    skyline = next(row for row in rows if row.name == "skyline")
    assert round(100 * skyline.accuracy, 3) == 78.548 and skyline.printed == 78.54
    model = next(row for row in rows if (row.protocol, row.name) == ("paper", "MidiBERT + CP"))
    seeds = [np.array(item.confusion) for item in PAPER if item.trial.startswith("melody-pretrained-paper")]
    right = [matrix[1, 1] + matrix[2:, 2:].sum() for matrix in seeds]
    assert model.accuracy == pytest.approx(np.mean(right) / seeds[0].sum())
    assert model.printed == 97.09
    assert findings.melody_or_not([item for item in PAPER if item.task == "emotion"], [], tables) == []


def test_csv_has_everything(tables: list[ResultTable]) -> None:
    rows = list(csv.DictReader(io.StringIO(formats.to_csv(tables))))
    assert len(rows) == sum(len(each.cells) + len(each.baselines) for each in tables)
    (row,) = [
        row
        for row in rows
        if (row["table"], row["protocol"], row["variant"], row["task"]) == ("3", "paper", "scratch", "melody")
    ]
    cell = tables[0].cells[Key("paper", "melody", "scratch")]
    assert cell.score
    assert (float(row["accuracy"]), float(row["p"]), row["seeds"]) == (cell.score.accuracy, cell.p, "2")
    assert (float(row["low"]), float(row["high"])) == cell.score.interval == cell.score.over_pieces
    assert float(row["seeds_low"]) <= cell.score.accuracy <= float(row["seeds_high"])
    assert row["failed"] == "melody-scratch-paper-seed3: loss is not finite"
    (lost,) = [row for row in rows if row["variant"] == "freeze-backbone"]
    assert lost["accuracy"] == "" and lost["printed"] == "92.5"


def test_markdown_and_text(tables: list[ResultTable], plain: ResultTable) -> None:
    markdown = formats.to_markdown(tables, findings.leaks(tables), findings.melody_or_not(PAPER, [SKYLINE], tables))
    assert "### Table III: without pre-training, or partly frozen, protocol paper" in markdown
    assert "p against MidiBERT + CP." in markdown and "p against the row above it." in markdown
    assert "| freeze BERT | failed | – |" in markdown
    assert "- failed: melody-scratch-paper-seed3: loss is not finite" in markdown
    assert "| skyline | paper | 78.55 | 78.54 |" in markdown
    cell = plain.cells[Key("clean", "melody", "pretrained")]
    assert cell.score
    low, high = cell.score.interval
    shown = f"{100 * cell.score.accuracy:.2f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert f"| pretrained | {shown} |" in formats.to_markdown([plain])
    lines = formats.to_text([plain]).splitlines()
    assert lines[2].split() == ["pretrained", *shown.split()]
    assert lines[-1].startswith(MAJORITY)
    assert {line.find("[") for line in lines[2:5]} == {lines[2].find("[")}, "columns are aligned"
    assert formats.to_text([]) == "No trial has finished."


def test_html_shows_failures_in_red_with_their_reason(tables: list[ResultTable]) -> None:
    content = page.to_html(tables, findings.leaks(tables))
    reason = "melody-freeze-backbone-paper-seed1: out of memory; melody-freeze-backbone-paper-seed2: out of memory"
    assert f'<td class="failed inner" title="{reason}">failed</td>' in content
    assert "1 failed</small>" in content
    assert "<th colspan=3 class=group>melody</th>" in content, "the paper's figure and both protocols"


def test_a_study_of_failures_alone_is_a_table_too() -> None:
    (only,) = table.build([], {Trial(task="melody", variant="scratch", protocol="clean", seed=1): "lost"})
    assert formats.to_markdown([only]).rstrip().endswith("- failed: melody-scratch-clean-seed1: lost")
    assert "failed" in page.to_html([only])
    assert table.build([], {}) == []


def test_a_sweep_is_of_the_validation_split() -> None:
    scores = {name.replace("test", "valid"): value for name, value in OUTCOMES[0].metrics.items()}
    draws = [replace(OUTCOMES[0], variant=f"draw{number:03d}", split="valid", metrics=scores) for number in (1, 0)]
    (only,) = table.build(draws, {})
    assert [row.variant for row in only.rows] == ["draw000", "draw001"]
    assert only.caption == "Accuracy on the valid split in %."


def test_outcomes_survive_json() -> None:
    assert TrialResult.from_json(OUTCOMES[0].to_json()) == OUTCOMES[0]


def test_confusions_are_means_of_what_occurs() -> None:
    mine = [item for item in PAPER if item.trial.startswith("melody-pretrained-paper")]
    true, said, shares = plots.in_percent(mine)
    assert true == said == ["melody", "bridge", "accompaniment"], "nothing is padding"
    assert shares.sum(axis=1) == pytest.approx([100, 100, 100])
    counts = np.mean([item.confusion for item in mine], axis=0)[1:, 1:]
    assert shares[0] == pytest.approx(100 * counts[0] / counts[0].sum())


def test_ticks_of_curves_are_whole_epochs() -> None:
    (axes,) = plots.curves({"a": [(1, 2.0), (2, 3.0), (4, 2.5)]}, x="epoch", y="accuracy").axes
    ticks = axes.get_xticks()
    assert len(ticks) > 2 and (ticks == ticks.round()).all()


def test_pictures_are_drawn_without_a_display(tables: list[ResultTable]) -> None:
    lines = {"a": [(1, 2.0), (300, 3.0)], "b": [(1, 1.0)], "c": []}
    curves = plots.curves(lines, x="epoch", y="accuracy")
    for drawn in (plots.confusion(OUTCOMES[0]), *map(plots.accuracies, tables), curves):
        assert page.picture(drawn, "<x>").startswith('<img alt="&lt;x&gt;" width=')
