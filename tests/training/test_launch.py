"""Ray Train, DeepSpeed and MLflow for real: a killed worker, a broken checkpoint, a full disk. Drivers: tests/jobs."""

import json
import logging
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
from pyarrow.fs import LocalFileSystem
from pytest import LogCaptureFixture
from ray.train import TrainingFailedError

from midibert_ray import tracking
from midibert_ray.data.store import TokenStore
from midibert_ray.model.midibert import MidiBertModel
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.training import launch
from midibert_ray.training.checkpoints import (
    BOOKS,
    PREFIX,
    CheckpointError,
    drop_broken_books,
    newest_sound,
    remove_unfinished,
    verify,
)
from midibert_ray.training.engine import PROGRESS_FILE
from midibert_ray.training.launch import _scaling, pretrain
from midibert_ray.training.runs import RESULT_FILE, finished, run_key, run_uri
from midibert_ray.training.worker import FINISHED
from tests.training.layouts import Pair, Task, train_to_the_end
from tests.training.test_checkpoints import written
from tests.training.test_pretrain import run as train_alone


@pytest.fixture
def config(two_workers: Config) -> Config:
    return replace(
        two_workers,
        {"model.dropout": 0.1, "pretrain.epochs": 6, "compute.keep_checkpoints": 3, "compute.watchdog_s": 3},
    )


def test_workers_are_as_many_and_where_the_config_says(config: Config) -> None:
    scaling = _scaling(replace(config, {"compute.cpus_per_worker": 3}))
    assert (scaling.num_workers, scaling.use_gpu, scaling.placement_strategy) == (2, False, "PACK")
    assert scaling._resources_per_worker_not_none == {"CPU": 3}
    wanted = {"compute.workers": 8, "compute.gpu": True, "compute.accelerator": "H100", "compute.placement": "SPREAD"}
    scaling = _scaling(replace(config, {"pretrain.batch": 16, **wanted}))
    assert (scaling.num_workers, scaling.use_gpu, scaling.placement_strategy) == (8, True, "SPREAD")
    assert scaling._resources_per_worker_not_none == {"CPU": 1, "GPU": 1, "accelerator_type:H100": 0.001}


CURVES = ("train/loss", "valid/loss", "valid/accuracy/pitch")


def curves(config: Config, key: str) -> dict[str, list[tuple[int, float]]]:
    tracker = tracking.Tracker(tracking.uris(config))
    run = tracker.find(tracking.PRETRAINING, key)
    assert run is not None
    assert run.info.status == "FINISHED"
    assert len(tracker.parents(tracking.PRETRAINING)) == 1
    return {name: tracker.curve(run.info.run_id, name) for name in CURVES}


def when(condition: Callable[[], bool], action: Callable[[], None], limit_s: float = 600) -> threading.Thread:
    """Do something once, in another thread, as soon as something holds; nothing where it never does.

    On a busy machine a worker may take minutes to import what it needs.
    """

    def watch() -> None:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if condition():
                action()
                return
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def train_workers() -> list[psutil.Process]:
    """Those of the Ray that this process has started, and no other's."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any("ray::RayTrainWorker" in part for part in process.cmdline()):
                found.append(process)
    return found


def test_a_run_whose_worker_has_lost_its_error_is_no_finished_run(
    config: Config, sample_store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train asks a worker for its error, then whether it runs: one that fails in between passes for finished."""
    monkeypatch.setattr(launch, "_trainer", lambda *_: Mock(fit=lambda: Mock(return_value=None)))
    with pytest.raises(TrainingFailedError, match="Ray Train lost its error; start the run again"):
        pretrain(config, [sample_store.uri], console=Mock())
    key = run_key(config, [sample_store.uri])
    assert finished(config, key) is None
    run = tracking.Tracker(tracking.uris(config)).find(tracking.PRETRAINING, key)
    assert run is not None and run.info.status == "FAILED"


@pytest.mark.parametrize("problem", [CheckpointError, FloatingPointError])
def test_an_error_that_would_come_again_ends_the_run_at_once(
    config: Config, sample_store: TokenStore, monkeypatch: pytest.MonkeyPatch, problem: type[Exception]
) -> None:
    monkeypatch.setattr(launch, "_trainer", lambda *_: Mock(fit=lambda: Mock(return_value=problem("why"))))
    key = run_key(config, [sample_store.uri])
    with pytest.raises(problem, match=f"pre-training {key}: why"):
        pretrain(config, [sample_store.uri], console=Mock())
    run = tracking.Tracker(tracking.uris(config)).find(tracking.PRETRAINING, key)
    assert run is not None and run.info.status == "FAILED"


def test_the_same_run_started_twice_at_once_is_done_once(
    config: Config, sample_store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = run_key(config, [sample_store.uri])
    begun, go_on = threading.Event(), threading.Event()

    def fit() -> Mock:
        begun.set()
        assert go_on.wait(60)
        written(Path(run_uri(config, key)) / "step_000000010", run=key)
        return Mock(return_value=FINISHED)

    trainer = Mock(fit=Mock(side_effect=fit))
    monkeypatch.setattr(launch, "_trainer", lambda *_: trainer)
    second_console = Mock()
    second_console.put.remote.side_effect = lambda line: go_on.set() if "held by" in line else None
    with ThreadPoolExecutor() as pool:
        first = pool.submit(pretrain, config, [sample_store.uri], console=Mock())
        assert begun.wait(60)
        second = pool.submit(pretrain, config, [sample_store.uri], console=second_console)
        assert first.result(120) == second.result(120) == finished(config, key)
    assert trainer.fit.call_count == 1
    assert not list(Path(run_uri(config, key)).glob("lease.*"))


@pytest.mark.ray
def test_kills_and_broken_checkpoints_leave_no_trace_in_the_curves(
    ray_cluster: object, pair: Pair, sample_store: TokenStore, config: Config, tmp_path: Path, caplog: LogCaptureFixture
) -> None:
    """The oracle is the same run, undisturbed, in two processes without Ray."""
    task = Task(config, sample_store.uri, str(tmp_path / "cache"))
    calm, _ = pair.run(train_to_the_end, task)
    key = run_key(config, [sample_store.uri])
    folder = Path(run_uri(config, key))
    killed: list[int] = []
    stopped: list[int] = []
    first_group: set[int] = set()

    def are_new() -> bool:
        return first_group.isdisjoint(worker.pid for worker in train_workers())

    def kill() -> None:
        worker = train_workers()[0]
        first_group.update(worker.pid for worker in train_workers())
        killed.append(worker.pid)
        os.kill(worker.pid, signal.SIGKILL)

    def stop() -> None:
        worker = train_workers()[0]
        stopped.append(worker.pid)
        os.kill(worker.pid, signal.SIGSTOP)

    def steps() -> int:
        return len(list(folder.glob("step_*")))

    watchers = [
        when(lambda: steps() >= 1, kill),
        when(lambda: steps() >= 2 and bool(killed) and len(train_workers()) == 2 and are_new(), stop),
    ]
    caplog.set_level(logging.INFO)
    run = pretrain(config, [sample_store.uri])
    for watcher in watchers:
        watcher.join()

    assert killed and stopped
    assert re.search(
        rf"worker \d of {key} on \S+ gave no sign for \d+ s, since step \d+, and does not answer", caplog.text
    )
    assert run.key == key
    best = max((report for report in calm if "valid/score" in report), key=lambda report: report["valid/score"])
    assert run.metrics == {name: value for name, value in best.items() if name.startswith("valid/")}
    disturbed = curves(config, key)
    assert disturbed == {name: [(report["step"], report[name]) for report in calm if name in report] for name in CURVES}
    assert MidiBertModel.from_pretrained(run.checkpoint).config.num_hidden_layers == 1
    kept = sorted(folder.glob("step_*"))
    booked = {entry["checkpoint_dir_name"] for entry in json.loads((folder / BOOKS).read_text())["checkpoint_results"]}
    assert 2 <= len(booked) <= config.compute.keep_checkpoints
    # Each disturbance may leave one that Ray Train has never heard of.
    assert len({path.name for path in kept} - booked) <= len(killed) + len(stopped)
    assert pretrain(config, [sample_store.uri]) == run, "a finished run is found, not run again"

    # As if the driver had been killed before its last line, and what was written last had been cut off.
    (folder / RESULT_FILE).unlink()
    shard = next(kept[-1].glob("engine/*optim_states.pt"))
    os.truncate(shard, shard.stat().st_size // 2)
    os.truncate(folder / BOOKS, 10)  # Ray Train's own list of checkpoints
    caplog.clear()
    again = pretrain(replace(config, {"compute.workers": 1}), [sample_store.uri])
    lines = re.findall(r"a broken checkpoint is passed over, the run goes on from (step_\d+): (.*)", caplog.text)
    assert lines and all(start == kept[-2].name for start, _ in lines)
    assert any(f"{kept[-1].name}: engine/{shard.name} has" in problem for _, problem in lines)
    verify(LocalFileSystem(), again.checkpoint)
    written_again = json.loads((folder / f"{kept[-1].name}-again" / PROGRESS_FILE).read_text())
    assert (written_again["workers"], written_again["step"]) == (1, calm[-1]["step"])
    assert curves(config, key) == disturbed


@pytest.mark.ray
def test_a_run_whose_storage_is_full_says_so_and_goes_on_once_there_is_room(
    ray_cluster: object, process_group: None, sample_store: TokenStore, config: Config, small_disk: Path, tmp_path: Path
) -> None:
    """A start of Ray Train is all that takes time here, so the second one is left to the test above."""
    changes = {"storage.root": str(small_disk), "tracking.uri": f"sqlite:///{tmp_path}/mlflow.db"}
    config = replace(config, changes | {"compute.max_failures": 0, "compute.workers": 1})
    folder = Path(run_uri(config, run_key(config, [sample_store.uri])))
    with pytest.raises(TrainingFailedError, match=rf"the disk of {folder} is too full for a checkpoint"):
        pretrain(config, [sample_store.uri])
    first, second = sorted(folder.glob("step_*"))
    assert newest_sound(LocalFileSystem(), str(folder)).name == first.name
    # The disk may have been full for Ray Train's own list, too.
    assert (reason := drop_broken_books(str(folder))) is None or "it was cut off" in reason
    assert drop_broken_books(str(folder)) is None
    assert remove_unfinished(str(folder), PREFIX) == [second.name]
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    reports = train_alone(config, sample_store, resume=first, save=second)
    steps = [f"{PREFIX}{metrics['step']:09d}" for metrics, checkpoint in reports if checkpoint]
    assert steps[0] == second.name and steps[-1] > second.name
    verify(LocalFileSystem(), str(second))
