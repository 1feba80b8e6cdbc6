"""A study whose tracking server is away: its results wait, and are named."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from midibert_ray import pipeline, tracking
from midibert_ray.report.publish import publish, unpublished
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.studies.plan import make
from midibert_ray.studies.recorder import Recorder
from midibert_ray.studies.study import StudyResult
from midibert_ray.tracking import sender
from midibert_ray.tracking.spool import Spool, UnreachableError
from tests.mlflow_server import free_port
from tests.tiny import tiny_study


def locate(config: Config, names: Iterable[str]) -> dict[str, str]:
    return {name: f"/root/tokens/{name}-{config.tokens.protocol}" for name in names}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Records on a port at which nobody listens."""
    monkeypatch.setattr(sender, "POLL_S", 0.01)
    monkeypatch.setattr(sender, "SETTLE_S", 0.01)
    monkeypatch.setattr("midibert_ray.tracking.delivery.PATIENCE_S", 0.1)
    return tiny_study(tmp_path, tracking__uri=f"http://127.0.0.1:{free_port()}")


def test_results_wait_for_the_server(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    plan = make(config, locate)
    recorder = Recorder(plan)
    recorder.leave_stored()  # nobody answers, and nothing is lost by that
    recorder.fail(next(iter(plan.trials)), "its process died")
    written = len(Spool(recorder.log.tracker.address.spool).names())
    assert written == 5, "two runs, the cells of the study, the reason and the end of the trial"

    assert publish(recorder.log, plan) is False
    assert "does not answer ([Errno 111] Connection refused)" in caplog.text
    assert unpublished(config) == [plan.config]
    elsewhere = replace(config, {"tracking.uri": "http://moved:5000"})
    assert unpublished(elsewhere) == [replace(plan.config, {"tracking.uri": "http://moved:5000"})]
    assert len(Spool(recorder.log.tracker.address.spool).names()) == written

    ending = pipeline.outcome(config, StudyResult(plan.key, [], {}, []))
    command = tracking.flush_command(config, plan.key)
    assert command.startswith(f"python jobs/report.py {plan.key} --flush ")
    assert "Nothing is lost" in ending and command in ending
    assert pipeline.flush_plan(config).splitlines() == [
        f"records         0 points of curves (5 records) wait in {recorder.log.tracker.address.spool}",
        f"studies         {plan.key}",
    ]
    with pytest.raises(UnreachableError, match="does not answer"):
        pipeline.flush(config)
    with pytest.raises(UnreachableError, match="does not answer"):
        pipeline.report(config, plan.key)
