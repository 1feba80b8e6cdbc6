"""The main job as a user starts it: killed, and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest

from midibert_ray import storage, tracking
from midibert_ray.cli.main import execute
from midibert_ray.data.format import read_manifest
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import flatten, replace
from midibert_ray.settings.presets import preset
from midibert_ray.studies import result as results

Curves = dict[tuple[str, str], list[tuple[int, float]]]

ROOT = Path(__file__).parents[2]
TINY = {
    "tokens.segment": 128,
    "model.layers": 1,
    "model.hidden": 32,
    "model.heads": 2,
    "model.feed_forward": 64,
    "pretrain.epochs": 5,
    "pretrain.valid_every": 1,
    "finetune.epochs": 3,
    "finetune.batch": 24,
    "study.variants": ("pretrained", "scratch"),
}


def everything_below(root: Path) -> Config:
    """A pipeline of four trials, on a disk."""
    places = {"storage.root": str(root / "root"), "storage.cache": str(root / "cache")}
    return replace(preset("debug"), TINY | places)


def command(job: str, config: Config) -> list[str]:
    """The command line that describes a configuration."""
    base, changed = flatten(preset("debug")), flatten(config)
    words = [(key, value) for key, value in changed.items() if value != base[key]]
    texts = [f"{key}={','.join(value) if isinstance(value, tuple) else value}" for key, value in words]
    return ["python", f"jobs/{job}.py", "--preset", "debug", *texts]


def run(
    config: Config,
    *words: str,
    job: str = "pipeline",
    kill_when: Callable[[], object] | None = None,
    number: int = signal.SIGKILL,
    limit_s: float = 600,
) -> tuple[int, str]:
    """Exit code and output of a job; with `kill_when`, it is sent a signal as soon as that holds."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    arguments = [sys.executable, *command(job, config)[1:], *words]
    with subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        deadline = time.monotonic() + limit_s
        while kill_when and process.poll() is None and time.monotonic() < deadline and not kill_when():
            time.sleep(0.05)
        if kill_when:
            process.send_signal(number)
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, output


def done(job: str, *words: str) -> str:
    """The output of a job that needs no Ray, done in this process."""
    with redirect_stdout(StringIO()) as output, redirect_stderr(output):
        code = execute([job, *words])
    assert code == 0, output.getvalue()
    return output.getvalue()


def only(config: Config, folder: str) -> str:
    """The address of the one run, study or token store."""
    place = storage.join(config.storage.root, folder)
    (name,) = storage.names(place)
    return storage.join(place, name)


def came_to(config: Config) -> dict[str, Any]:
    """All that a pipeline has found out, wherever it lies."""
    study = only(config, "studies")
    trials = {name: results.find(storage.join(study, name)) for name in storage.names(study) if "seed" in name}
    pretraining = json.loads(storage.read_bytes(storage.join(only(config, "runs"), "result.json")))
    return {
        "digest": read_manifest(only(config, "tokens"))["digest"],
        "pre-training": {key: value for key, value in pretraining.items() if key != "checkpoint"},
        "trials": {name: (found[0].metrics, found[0].confusion) for name, found in trials.items() if found},
    }


def runs(config: Config) -> tuple[Curves, dict[str, str]]:
    """Every curve in MLflow whose values follow from the settings, and the status of every run, by name of the run."""
    tracker = tracking.Tracker(tracking.uris(config))
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


def kill_trials() -> None:
    """Kill the processes that run trials."""
    found = [child for child in psutil.Process().children(recursive=True) if "ray::ImplicitFunc" in child.name()]
    assert found
    for child in found:
        child.kill()


def ended_in_order(config: Config, number: int, when: Callable[[], object]) -> None:
    """A signal ends the job while Ray works for it, by its exit code and without a word about a crash."""
    code, output = run(config, kill_when=when, number=number)
    assert code == 128 + number, output
    unwanted = [word for word in ("Traceback", "error:", "Fatal", "stack trace", "majority class") if word in output]
    assert not unwanted, output


@pytest.mark.ray
def test_a_pipeline_ended_at_every_point_ends_as_an_undisturbed_one(
    no_ray: None, config: Config, undisturbed: Config
) -> None:
    """Ctrl-C while it tokenizes, SIGTERM in its pre-training, and killed trials.

    `test_bucket.py` kills the driver in its pre-training, `test_own_labels.py` among the trials.
    """
    root = Path(config.storage.root)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore Ctrl-C for what runs in the background

    ended_in_order(config, signal.SIGINT, lambda: list(root.glob("tokens/*")))
    assert not list(root.glob("runs/*/step_*"))
    ended_in_order(config, signal.SIGTERM, lambda: list(root.glob("runs/*/step_*/progress.json")))
    assert not list(root.glob("runs/*/result.json"))

    struck = False

    def strike() -> bool:
        nonlocal struck
        if not struck and list(root.glob("studies/*/*/checkpoint_*/trial.pt")):
            kill_trials()
            struck = True
        return False

    code, output = run(config, kill_when=strike)
    assert struck and code == 0, output
    assert "found" in output, "the token store was made again"
    assert came_to(config) == came_to(undisturbed)
    assert len(came_to(config)["trials"]) == 4
    assert runs(config) == runs(undisturbed), "no curve has a gap, or a point that it has not"
    check_mlflow(config)
    assert [path for path in root.rglob("*") if path.stat().st_mode & 0o077] == [], "results are their owner's alone"
    reports = list(root.glob("reports/*/report.html"))
    assert len(reports) == 1
    assert reports[0].read_text().count("data:image/png") >= 4
    assert len(list(root.glob("reports/*/song.html"))) == 1
    assert all(f"trial {number} of 4 is done" in output for number in (1, 2, 3, 4)) and "\nlisten  " in output
    assert all(word in output for word in ("majority class", "report.html", "mlflow ui --backend-store-uri sqlite:///"))


def check_mlflow(config: Config) -> None:
    """One run a thing, all finished, each curve with every step once."""
    tracker = tracking.Tracker(tracking.uris(config))
    (pretraining,) = tracker.parents(tracking.PRETRAINING)
    steps = [step for step, _ in tracker.curve(pretraining.info.run_id, "valid/loss")]
    assert len(steps) == config.pretrain.epochs
    assert sorted(set(steps)) == steps

    experiment = tracking.study_experiment(config.study.name)
    (parent,) = tracker.parents(experiment)
    children = tracker.children(experiment, parent.info.run_id)
    assert len(children) == 4
    assert {run.info.status for run in (pretraining, parent, *children)} == {"FINISHED"}
    for child in children:
        epochs = [step for step, _ in tracker.curve(child.info.run_id, "valid/accuracy")]
        assert epochs == list(range(1, len(epochs) + 1))
        assert {name for name in child.data.metrics if name.startswith("test/")} == {"test/accuracy"}
        assert child.data.params["finetune.task"] == child.data.tags["task"]
        names = ("confusion_matrix.png", "confusion_matrix.json", "predictions.parquet", "outcome.json")
        assert all(tracker.artifact(child.info.run_id, name) for name in names)
    assert all(tracker.artifact(parent.info.run_id, name) for name in ("results.csv", "results.md", "results.png"))
    for run in (pretraining, *children):
        assert [len(run.outputs.model_outputs), len(run.inputs.dataset_inputs)] == [1, 1 if run is pretraining else 3]
        assert {"hardware", "library.torch", tracking.NOTE, "mlflow.source.name"} <= run.data.tags.keys()
        assert any(name.startswith("system/worker_0/") for name in run.data.metrics)
    workers = {name.split("/")[1] for name in pretraining.data.metrics if name.startswith("system/")}
    assert workers == {f"worker_{rank}" for rank in range(config.compute.workers)}
    groups = {f"{child.data.tags['protocol']}/{child.data.tags['task']}" for child in children}
    assert parent.data.metrics.keys() == {f"{group}/{name}_accuracy" for group in groups for name in ("best", "mean")}
