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
from midibert_ray.config import Config
from midibert_ray.overrides import replace
from midibert_ray.presets import preset
from midibert_ray.spool import Spool
from tests.jobs.head import places_of
from tests.jobs.test_pipeline import ROOT, TINY, command
from tests.mlflow_server import ACCOUNT, PASSWORD, Relay, serving

Curves = dict[tuple[str, str], list[tuple[int, float]]]


@pytest.fixture
def relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    for name, value in ACCOUNT.items():
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


def runs(config: Config) -> tuple[Curves, dict[str, str]]:
    """Every curve in MLflow whose values follow from the settings, and the status of every run, by name of the run."""
    tracker = tracking.Tracker(tracking.address(config))
    (parent,) = tracker.parents(tracking.study_experiment(config.study.name))
    children = tracker.children(tracking.study_experiment(config.study.name), parent.info.run_id)
    found = [*tracker.parents(tracking.PRETRAINING), parent, *children]
    curves = {
        (run.info.run_name, key): tracker.curve(run.info.run_id, key) for run in found for key in run.data.metrics
    }
    for curve in curves.values():
        steps = [step for step, _ in curve]
        assert steps == sorted(set(steps)), "each point once"
    same = {name: curve for name, curve in curves.items() if name[1].startswith(("train/", "valid/", "test/", "epoch"))}
    return same, {run.info.run_name: run.info.status for run in found}


@pytest.mark.ray
def test_a_study_goes_on_while_its_server_is_away(no_ray: None, tmp_path: Path, relay: Relay) -> None:
    places = {"storage.root": str(tmp_path / "calm"), "storage.cache": str(tmp_path / "cache")}
    calm = replace(preset("debug"), TINY | places | {"pretrain.epochs": 6})
    with job(*command("study", calm)) as process:
        finish(process)
    expected, status = runs(calm)
    assert len(status) == 6 and set(status.values()) == {"FINISHED"}

    root = tmp_path / "root"
    config = replace(calm, {"storage.root": str(root), "tracking.uri": relay.uri})
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
