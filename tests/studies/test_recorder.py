"""What the driver says of a study while its trials run."""

import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

from midibert_ray.data.store import TokenStore
from midibert_ray.studies.plan import make
from midibert_ray.studies.recorder import Recorder
from tests.studies.made import leave
from tests.tiny import tiny_study


def test_each_end_of_a_trial_says_how_far_the_study_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of four trials one was done before; the second takes ten seconds from its first to its last epoch."""
    config = tiny_study(tmp_path, study__variants=("pretrained", "scratch"), study__seeds=2)
    plan = make(config, lambda config, names: dict.fromkeys(names, "/store"))
    first, *others = plan.trials
    recorder = Recorder(plan, done={first})
    clock = iter([100.0, 105.0, 110.0, 111.0, 112.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    caplog.set_level("INFO")
    recorder._advance(others[0], 0.5)
    recorder._advance(others[1], 0.5)
    recorder._advance(others[0], 1.0)
    recorder._advance(others[0], 1.0)
    # In ten seconds a whole trial's worth, half of one each; one and a half are left.
    assert [record.message for record in caplog.records] == ["trial 2 of 4 is done │ eta 0:15"]
    again = recorder.__reduce__()
    assert again == (Recorder, (plan, None, {first}))


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the methods of MLflow's client that are called from now on; not of those that it calls itself."""
    calls, within = list[str](), list[str]()

    def counted(name: str, method: Any) -> Any:
        def call(*args: Any, **settings: Any) -> Any:
            if not within:
                calls.append(name)
            within.append(name)
            try:
                return method(*args, **settings)
            finally:
                within.pop()

        return call

    for name, method in list(vars(MlflowClient).items()):
        if callable(method) and not name.startswith("_"):
            monkeypatch.setattr(MlflowClient, name, counted(name, method))
    return calls


def test_what_ends_at_once_is_written_at_once(
    tmp_path: Path, empty_database: Path, sample_store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request to MLflow costs more than what is in it: one a report, and one for all figures at a trial's end."""
    config = tiny_study(tmp_path, study__variants=("scratch",), study__seeds=2)
    Path(config.storage.root).mkdir()
    shutil.copy2(empty_database, config.storage.root)
    plan = make(config, lambda config, names: dict.fromkeys(names, sample_store.uri))
    (first, key), recorder = plan.trials, Recorder(plan)
    trial: Any = SimpleNamespace(config={"spec": plan.trials[key]}, last_result={})
    epoch = {"train/loss": 1.0, "valid/loss": 1.0, "system/cpu_percent": 50.0, "hardware": "a machine", "epoch": 1}
    recorder.log.trial(first)
    calls = count_calls(monkeypatch)
    recorder.on_trial_result(1, [], trial, epoch)
    opened = ["get_experiment_by_name", "search_runs", "create_run", "log_batch"]
    assert calls == [*opened, "log_batch", "log_inputs"]

    calls.clear()
    recorder.on_trial_result(2, [], trial, epoch | {"epoch": 2})
    recorder.on_trial_result(2, [], trial, {"test/accuracy": 0.5, "system/cpu_percent": 50.0, "epoch": 2})
    assert calls == ["log_batch"], "a trial's last report has no new point"

    result = leave(plan, key, 0.8)
    calls.clear()
    recorder.on_trial_complete(2, [], trial)
    model = [
        "search_logged_models",
        "create_logged_model",
        "log_model_artifacts",
        "log_outputs",
        "finalize_logged_model",
    ]
    files = ["log_artifacts", "log_artifacts"]
    assert calls == [*model, *files, "log_batch", "set_terminated", "log_batch"], (
        "the last one is the study's own curve"
    )
    run = recorder.log.tracker.find(recorder.log.experiment, f"{plan.key}/{key}")
    assert (
        run is not None
        and run.data.metrics["test/accuracy"] == result.accuracy
        and run.data.tags["hardware"] == "a machine"
    )
    assert "figures.json" in run.data.tags["mlflow.loggedArtifacts"] and run.info.status == "FINISHED"
