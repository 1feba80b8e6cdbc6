"""What a study leaves in MLflow, made from its own folder; and what waits for a tracking server that is away."""

import json
from pathlib import Path

import pytest

from midibert_ray import pipeline, tracking
from midibert_ray.cli import dry_run
from midibert_ray.data.store import TokenStore
from midibert_ray.report.baselines import MAJORITY, NO_MELODY, PLAIN, SKYLINE, TOP_NOTE, TRAINING
from midibert_ray.report.load import load
from midibert_ray.report.publish import PUBLISHED, postponed_reports, publish
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.studies.plan import Locate, StudyPlan, make
from midibert_ray.studies.recorder import RECORDED, Recorder, StudyLog
from midibert_ray.studies.study import StudyResult
from midibert_ray.tracking import Tracker, sender
from midibert_ray.tracking.spool import Spool, UnreachableError
from tests.mlflow_server import free_port
from tests.studies.made import leave
from tests.tiny import tiny_study


@pytest.fixture
def locate(sample_store: TokenStore) -> Locate:
    return lambda config, names: dict.fromkeys(names, sample_store.uri)


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Records on a port at which nobody listens."""
    monkeypatch.setattr(sender, "POLL_S", 0.01)
    monkeypatch.setattr(sender, "SETTLE_S", 0.01)
    monkeypatch.setattr("midibert_ray.tracking.delivery.PATIENCE_S", 0.1)
    return tiny_study(tmp_path, tracking__uri=f"http://127.0.0.1:{free_port()}")


@pytest.mark.slow
def test_a_report_waits_for_the_server_and_nothing_else_does(
    away: Config, locate: Locate, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make(away, locate)
    recorder = Recorder(plan)
    trial = next(iter(plan.trials))
    recorder.fail(trial, "its process died")
    spool = Spool(recorder.log.tracker.uris.spool)
    assert len(spool.names()) == 5, "two runs, the cells of the study, the reason and the end of the trial"

    result = StudyResult(plan.key, [], {plan.trials[trial].trial: "its process died"}, [])
    publish(plan, result)
    written = len(spool.names())
    assert written > 5 and postponed_reports(away) == []
    assert "does not answer" not in caplog.text, "nothing is asked of the server"

    ending = pipeline.outcome(away, result)
    assert "does not answer ([Errno 111] Connection refused)" in caplog.text
    assert postponed_reports(away) == [plan.key]
    assert postponed_reports(replace(away, {"tracking.uri": "http://moved:5000"})) == [plan.key]
    assert len(spool.names()) == written
    command = tracking.flush_command(away, plan.key)
    assert command.startswith(f"python jobs/report.py {plan.key} --flush ")
    assert "Nothing is lost" in ending and command in ending
    assert dry_run.describe_flush(away).splitlines() == [
        f"records         0 points of curves ({written} records) wait in {recorder.log.tracker.uris.spool}",
        f"studies         {plan.key}",
    ]
    with pytest.raises(UnreachableError, match="does not answer"):
        pipeline.flush(away)
    with pytest.raises(UnreachableError, match="does not answer"):
        pipeline.report(away, plan.key)
    assert postponed_reports(away) == [plan.key]


def names(plan: StudyPlan) -> dict[str, str]:
    return {entry.trial.variant: key for key, entry in plan.trials.items()}


@pytest.mark.slow
def test_a_later_start_adds_to_the_tables_without_asking_mlflow(
    tmp_path: Path, locate: Locate, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_study(tmp_path, study__variants=("scratch", "rnn"), study__tables=("3",))
    first = make(config, locate)
    result = leave(first, names(first)["scratch"], 0.8)
    failed = first.trials[names(first)["rnn"]].trial
    publish(first, StudyResult(first.key, [result], {failed: "out of memory"}, []))

    second = make(replace(config, {"study.variants": ("pretrained",), "study.tables": ()}), locate)
    assert second.key == first.key
    more = leave(second, names(second)["pretrained"], 0.9)
    with monkeypatch.context() as patch:
        for question in ("find", "children", "artifact", "parents"):
            patch.setattr(Tracker, question, None)
        publish(second, StudyResult(second.key, [more], {}, []))

    found = load(config, first.key)
    content = {
        name: (found.tracker.artifact(found.parent.info.run_id, name) or b"").decode()
        for name in ("results.json", "failed.json", "baselines.json", "results.md")
    }
    assert {item["trial"] for item in json.loads(content["results.json"])} == {result.trial, more.trial}
    assert json.loads(content["failed.json"]) == {failed.name: "out of memory"}
    assert {item["name"] for item in json.loads(content["baselines.json"])} == {
        MAJORITY,
        TRAINING,
        SKYLINE,
        TOP_NOTE,
        NO_MELODY,
        PLAIN,
    }
    assert "Table III" in content["results.md"]
    assert found.parent.info.status == "FAILED"

    publish(first, StudyResult(first.key, [result, leave(first, names(first)["rnn"], 0.7)], {}, []))
    assert load(config, first.key).parent.info.status == "FINISHED", "a trial that has finished since is no failure"


@pytest.mark.slow
def test_a_result_is_recorded_once_wherever_runs_are_recorded(tmp_path: Path, locate: Locate) -> None:
    config = tiny_study(tmp_path, study__variants=("scratch",))
    plan = make(config, locate)
    (key,) = plan.trials
    recorded: list[str] = []

    class Noting(Recorder):
        @property
        def log(self) -> StudyLog:
            log = super().log
            log.complete = lambda run, result, predictions: recorded.append(result.trial)  # type: ignore[method-assign]
            return log

    assert Noting(plan).store(key) is None
    result = leave(plan, key, 0.8)
    for _ in range(2):
        assert Noting(plan).store(key) == result, "by each start of the study"
    assert len(recorded) == 1
    elsewhere = replace(config, {"tracking.uri": f"sqlite:///{tmp_path}/other.db"})
    Noting(make(elsewhere, locate)).store(key)
    assert len(recorded) == 2
    (tmp_path / "root" / "studies" / plan.key / key / "checkpoint_000001").rename(tmp_path / "gone")
    leave(plan, key, 0.9)
    Noting(plan).store(key)
    assert len(recorded) == 3, "another result of the same trial"


@pytest.mark.slow
@pytest.mark.parametrize("left", ["", '{"tables": ["3"'])
def test_books_that_are_empty_or_cut_are_named_and_made_again(
    tmp_path: Path, locate: Locate, caplog: pytest.LogCaptureFixture, left: str
) -> None:
    plan = make(tiny_study(tmp_path, study__variants=("scratch",)), locate)
    (key,) = plan.trials
    result = leave(plan, key, 0.8)
    books = [Path(plan.uri(name)) for name in (PUBLISHED, RECORDED)]
    for book in books:
        book.write_text(left)
    Recorder(plan).store(key)
    publish(plan, StudyResult(plan.key, [result], {}, []))
    assert all(str(book) in caplog.text for book in books)
    assert all(json.loads(book.read_text()) for book in books)


@pytest.mark.slow
def test_a_study_has_curves_and_its_best_models_have_names(tmp_path: Path, locate: Locate) -> None:
    """The best is that of the validation split, whatever it scores in the test."""
    config = tiny_study(tmp_path, study__variants=("scratch", "pretrained", "rnn"), tracking__register="mine")
    plan = make(config, locate)
    keys, found = names(plan), []
    recorder = Recorder(plan)
    for variant, share in (("scratch", 0.6), ("pretrained", 0.7), ("rnn", 0.9)):
        found.append(leave(plan, keys[variant], share))
        assert recorder.store(keys[variant]) == found[-1]
        recorder.store(keys[variant])
    publish(plan, StudyResult(plan.key, found, {}, []))
    tracker = recorder.log.tracker
    (parent,) = tracker.parents(recorder.log.experiment)
    first, second, third = (result.accuracy for result in found)
    best, mean = (tracker.curve(parent.info.run_id, f"clean/melody/{name}_accuracy") for name in ("best", "mean"))
    assert best == [(1, first), (2, second), (3, third)]
    assert mean == [
        (1, first),
        (2, pytest.approx((first + second) / 2)),
        (3, pytest.approx(sum((first, second, third)) / 3)),
    ]
    (version,) = tracker._client.search_model_versions("name = 'mine'")
    children = {run.info.run_name: run for run in tracker.children(recorder.log.experiment, parent.info.run_id)}
    assert version.run_id == children[found[1].trial].info.run_id, "a recurrent baseline is no model"
    assert children[found[2].trial].outputs.model_outputs == []
    for result in found:
        run = children[result.trial]
        assert run.data.metrics == {"test/accuracy": pytest.approx(result.accuracy)}
        table = json.loads(tracker.artifact(run.info.run_id, "figures.json") or b"")
        assert dict(table["data"]) | result.metrics == dict(table["data"])
        assert run.data.tags["mlflow.note.content"].startswith(f"melody by {result.variant}, from ")
        uses = {each.dataset.name: each.tags[0].value for each in run.inputs.dataset_inputs}
        assert uses == {"sample:train": "training", "sample:valid": "validation", "sample:test": "testing"}
