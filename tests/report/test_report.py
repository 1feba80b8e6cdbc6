"""The report is made from MLflow alone: a study recorded as studies are, but with made-up outcomes, without Ray."""

import io
import shutil
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from midibert_ray import tracking
from midibert_ray.report import load, page, report, sections, table_one
from midibert_ray.report.baselines import Baseline
from midibert_ray.report.load import LoadedStudy
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import flatten
from midibert_ray.studies.plan import TrialSpec, make
from midibert_ray.studies.recorder import StudyLog
from tests.report.pages import check
from tests.studies.made import outcome
from tests.tiny import tiny_study

SHARES = {"pretrained": 0.9, "pretrained-by-pitch": 0.7, "rnn": 0.8}
SKYLINE = Baseline(
    protocol="paper",
    task="melody",
    name="skyline",
    correct=3,
    scored=4,
    detail={"TP": 1, "FP": 0, "FN": 1, "TN": 2},
    note="the highest",
)
ASAP = table_one.CorpusRow(
    corpus="asap",
    protocol="paper",
    pieces=65,
    bars_per_piece=95.88,
    notes_per_bar=23.14,
    mean_pitch=63.11,
    mean_duration=2.914,
)


def locate(config: Config, names: Iterable[str]) -> dict[str, str]:
    return {
        name: f"/root/tokens/{name}-{config.tokens.protocol}-{config.protocol_in_force.describe()}" for name in names
    }


def predictions(classes: list[str]) -> bytes:
    """Notes of two pieces, in the columns of `outcome.predictions_table`."""
    random = np.random.default_rng(0)
    onset = np.sort(random.integers(0, 16 * 40, size=400))
    label = random.integers(0, len(classes), size=400)
    columns = {
        "piece": pa.array(["007"] * 200 + ["343"] * 200).dictionary_encode(),
        "label": label.astype(np.uint8),
        "prediction": np.where(random.random(400) < 0.9, label, 1).astype(np.uint8),
        "onset": onset.astype(np.int32),
        "pitch": random.integers(40, 90, size=400).astype(np.uint8),
        "duration": random.integers(1, 17, size=400).astype(np.uint8),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def record(log: StudyLog, key: str, entry: TrialSpec) -> None:
    """What the recorder does while a trial runs and when it ends; some fail."""
    trial = entry.trial
    run = log.trial(key)
    if trial.variant not in SHARES:
        run.tag(failure="loss is not finite; lower finetune.lr")
        run.finish("FAILED")
        return
    for epoch in (1, 2):
        run.log({"valid/accuracy": 0.4 * epoch}, epoch)
    result = outcome(trial.variant, SHARES[trial.variant], task=trial.task, protocol=trial.protocol, seed=trial.seed)
    log.complete(run, result, {"predictions.parquet": predictions(result.classes)})


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Config:
    folder = tmp_path_factory.mktemp("report")
    (folder / "root").mkdir()
    shutil.copy2(empty_database, folder / "root")
    return tiny_study(folder, study__tables=("1", "leak"), study__variants=(), study__protocols=("paper",))


@pytest.fixture(scope="module")
def key(config: Config) -> str:
    """The leak's table, one row of which has failed, with all that a study leaves in MLflow."""
    plan = make(config, locate)
    log = StudyLog(plan)
    for name, entry in plan.pretrainings.items():
        run = log.tracker.open(tracking.PRETRAINING, name, f"run of {name}", params=flatten(entry.config), tags={})
        for step in (10, 20):
            run.log({"train/loss": 3 / step, "valid/loss": 4 / step, "valid/accuracy": step / 40}, step)
    for name, entry in plan.trials.items():
        if entry.trial.variant in (*SHARES, "scratch"):
            record(log, name, entry)
    log.parent.json([asdict(SKYLINE)], load.BASELINES)
    log.parent.json(table_one.table([ASAP]), load.CORPORA)
    log.parent.finish("FAILED")
    return plan.key


@pytest.fixture
def found(config: Config, key: str) -> LoadedStudy:
    return load.load(config, key)


def test_a_report_is_whole_and_carries_everything_with_it(config: Config, key: str) -> None:
    assert load.load(config, config.study.name).parent.info == load.load(config, key).parent.info
    content = Path(report.write(config, config.study.name)).read_text()
    text = check(content)
    words = [
        "What the order of notes gives away",
        "Under protocol paper the order of notes gives the melody away",
        "majority class",
        "failed",
        "skyline paper 75.00 78.54",
        "asap paper 65 (65) 95.9 (95.9) 23.1 (23.0)",
        "melody MidiBERT + CP, notes track by track, protocol paper, seed 2021",
        "Every test piece with its truth",
        "343 0:",
        "Fig. 3 of the paper",
        "notes by pitch 20 0.200 50.00 1",
        "melody-scratch-paper-seed2021 loss is not finite; lower finetune.lr",
        "model.hidden = 16",
        "3 finished, 1 failed",
    ]
    assert [word for word in words if word not in text] == []
    assert "<th>skyline</th>" in content
    tracker = tracking.Tracker(tracking.uris(config))
    (parent,) = tracker.parents(tracking.study_experiment(config.study.name))
    assert tracker.artifact(parent.info.run_id, "report.html") == content.encode()
    for name in ("curves-pretraining-accuracy.png", "curves-melody-paper.png"):
        assert tracker.artifact(parent.info.run_id, name).startswith(b"\x89PNG")


def test_an_unknown_study_names_those_there_are(config: Config, key: str) -> None:
    with pytest.raises(LookupError, match=r"no study 'ablatoin'.*there are: ablation"):
        report.write(config, "ablatoin")


def test_what_is_not_there_is_left_out(found: LoadedStudy) -> None:
    everything = {section.heading: section.data for section in sections.all_sections(found)}
    assert not everything.pop("Numbers and tags") and all(everything.values())
    found.parent.data.tags["encoder"] = ""
    for run in found.children.values():
        run.data.tags["encoder"] = ""
    less = replace(found, baselines=[], corpora=[], outcomes=[item for item in found.outcomes if item.variant == "rnn"])
    left = {section.heading: section.data for section in sections.all_sections(less) if section.data}
    assert everything.keys() - left.keys() == {"Corpora", "Pre-training"}
    first = {name: [row[0] for row in shown["Melody or not"]] for name, shown in (("all", everything), ("left", left))}
    assert "skyline" in first["all"] and "skyline" not in first["left"]
    content = report.render(less)
    check(content)
    assert "<th>skyline</th>" not in content
    assert 'id="corpora"' not in content and 'id="pre-training"' not in content


def test_a_study_without_a_finished_trial_says_so(found: LoadedStudy) -> None:
    text = check(report.render(replace(found, outcomes=[], children={})))
    assert "No trial has finished." in text
    broken = check(report.render(replace(found, outcomes=[])))
    assert "lower finetune.lr" in broken


@pytest.mark.slow
def test_other_studies_have_one_table(tmp_path: Path) -> None:
    plan = make(
        tiny_study(tmp_path, study__variants=("pretrained", "rnn"), study__tasks=("emotion",), finetune__corpus=""),
        locate,
    )
    log = StudyLog(plan)
    for name, entry in plan.trials.items():
        record(log, name, entry)
    content = report.render(load.load(plan.config, plan.key))
    text = check(content)
    assert "All variants Accuracy on the test split in %; p against pretrained." in text
    assert "Melody or not" not in text and "Pre-training" not in text
    assert "pieces" in text.partition("Beside accuracy")[2]


def test_names_are_escaped(found: LoadedStudy) -> None:
    mark = "<script>alert(1)</script>"
    found.parent.data.params["corpora.names"] = mark
    hostile = replace(found, corpora=[found.corpora[0] | {"note": mark}])
    next(iter(run for run in found.children.values() if run.info.status == "FAILED")).data.tags["failure"] = mark
    assert mark not in report.render(hostile)
    assert mark not in page.to_html(hostile.tables, [mark])


def test_encoders_are_named_by_what_they_differ_in(found: LoadedStudy) -> None:
    assert sorted(sections.encoder_names(found.encoders).values()) == ["notes by pitch", "the protocol's order"]
    key, run = next(iter(found.encoders.items()))
    assert sections.encoder_names({key: run}) == {key: run.info.run_name}
