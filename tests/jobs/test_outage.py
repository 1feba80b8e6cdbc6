"""Jobs whose tracking server goes away: nothing waits for it, and nothing is lost."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from midibert_ray import tracking
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.tracking.spool import Spool
from tests.jobs.head import places_of
from tests.jobs.test_pipeline import ROOT, command, runs
from tests.mlflow_server import ACCOUNT, PASSWORD, Relay, serving


@pytest.fixture
def relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    quick = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    for name, value in (ACCOUNT | quick).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "server").mkdir()
    with serving(tmp_path / "server") as server:
        relay = Relay(server.port)
        yield relay
        relay.set("closed")


@contextmanager
def job(*words: str) -> Iterator["subprocess.Popen[str]"]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([sys.executable, *words[1:]], cwd=ROOT, env=environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: "subprocess.Popen[str]") -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert PASSWORD not in output
    return output


@pytest.mark.ray
def test_a_study_goes_on_while_its_server_is_away(
    no_ray: None, config: Config, undisturbed: Config, relay: Relay
) -> None:
    """Away in the pre-training, back, and hanging from the first trial's end until the job's."""
    expected, status = runs(undisturbed)
    assert len(status) == 6 and set(status.values()) == {"FINISHED"}

    root = Path(config.storage.root)
    config = replace(config, {"tracking.uri": relay.uri})
    box = Spool(tracking.address(config).spool)
    with job(*command("study", config)) as process:

        def until(condition: Callable[[], object]) -> None:
            deadline = time.monotonic() + 240
            while not condition():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)

        until(lambda: list(root.glob("runs/*/step_*")))
        relay.set("closed")
        until(lambda: list(root.glob("runs/*/result.json")) and box.names())
        relay.set("open")
        until(lambda: list(root.glob("studies/*/*/checkpoint_*/outcome.json")))
        relay.set("silent")
        output = finish(process)
    assert output.count("does not answer") == 2 and output.count("points arrived late") == 1
    assert len(list(root.glob("studies/*/*/checkpoint_*/outcome.json"))) == 4, "trials do not wait"
    assert box.names() and not list(root.glob("reports/*/*"))
    assert places_of(PASSWORD, root) == []

    (later,) = [
        line.strip() for line in output.splitlines() if line.strip().startswith("python jobs/report.py ablation-")
    ]
    relay.set("open")
    with job(*shlex.split(later)) as process:
        output = finish(process)
    assert box.names() == []
    (page,) = root.glob("reports/*/report.html")
    assert output.splitlines()[-1] != "" and str(page) in output
    found, statuses = runs(config)
    assert statuses == status
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert not list(root.glob("unpublished/*"))
    tracker = tracking.Tracker(tracking.address(config))
    (parent,) = tracker.parents(tracking.study_experiment(config.study.name))
    files = ("results.csv", "results.md", "results.png", "report.html", "baselines.json")
    assert all(tracker.artifact(parent.info.run_id, name) for name in files)
