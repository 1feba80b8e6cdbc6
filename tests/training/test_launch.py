"""Ray Train, DeepSpeed and MLflow for real: two workers, one of them killed. Killed drivers: tests/jobs."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from midibert_ray import tracking
from midibert_ray.data.store import TokenStore
from midibert_ray.model.midibert import MidiBertModel
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.training.launch import _scaling, pretrain
from midibert_ray.training.runs import RESULT_FILE, run_address, run_key


@pytest.fixture
def config(two_workers: Config) -> Config:
    return replace(two_workers, {"model.dropout": 0.1, "pretrain.epochs": 4})


def test_workers_are_as_many_and_where_the_config_says(config: Config) -> None:
    scaling = _scaling(replace(config, {"compute.cpus_per_worker": 3}))
    assert (scaling.num_workers, scaling.use_gpu, scaling.placement_strategy) == (2, False, "PACK")
    assert scaling._resources_per_worker_not_none == {"CPU": 3}
    wanted = {"compute.workers": 8, "compute.gpu": True, "compute.accelerator": "H100", "compute.placement": "SPREAD"}
    scaling = _scaling(replace(config, {"pretrain.batch": 16, **wanted}))
    assert (scaling.num_workers, scaling.use_gpu, scaling.placement_strategy) == (8, True, "SPREAD")
    assert scaling._resources_per_worker_not_none == {"CPU": 1, "GPU": 1, "accelerator_type:H100": 0.001}


def curves(config: Config, key: str) -> dict[str, list[tuple[int, float]]]:
    tracker = tracking.Tracker(tracking.address(config))
    run = tracker.find(tracking.PRETRAINING, key)
    assert run is not None
    assert run.info.status == "FINISHED"
    assert len(tracker.parents(tracking.PRETRAINING)) == 1
    return {name: tracker.curve(run.info.run_id, name) for name in ("train/loss", "valid/loss", "valid/accuracy/pitch")}


def when(condition: Callable[[], bool], action: Callable[[], None], limit_s: float = 120) -> threading.Thread:
    """Do something once, in another thread, as soon as something holds."""

    def watch() -> None:
        deadline = time.monotonic() + limit_s
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.05)
        action()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def train_workers() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any("ray::RayTrainWorker" in part for part in process.info["cmdline"] or []):
            found.append(process)
    return found


@pytest.mark.ray
def test_a_killed_worker_leaves_no_trace_in_the_curves(
    ray_cluster: object, sample_store: TokenStore, config: Config, tmp_path: Path
) -> None:
    undisturbed = replace(config, {"storage.root": str(tmp_path / "undisturbed")})
    calm = pretrain(undisturbed, [sample_store.uri])

    key = run_key(config, [sample_store.uri])
    folder = Path(run_address(config, key))
    killed: list[int] = []

    def kill() -> None:
        worker = train_workers()[0]
        killed.append(worker.pid)
        os.kill(worker.pid, signal.SIGKILL)

    watcher = when(lambda: len(list(folder.glob("step_*"))) >= 1, kill)
    run = pretrain(config, [sample_store.uri])
    watcher.join()

    assert killed
    assert run.key == calm.key == key
    assert run.metrics == calm.metrics
    disturbed = curves(config, key)
    assert disturbed == curves(undisturbed, key)
    assert MidiBertModel.from_pretrained(run.checkpoint).config.num_hidden_layers == 1
    kept = list(folder.glob("step_*"))
    assert 1 <= len(kept) <= config.compute.keep_checkpoints + 1
    assert pretrain(config, [sample_store.uri]) == run, "a finished run is found, not run again"
    (folder / RESULT_FILE).unlink()  # as if the driver had been killed before it could write its last line
    assert pretrain(config, [sample_store.uri]) == run
    assert curves(config, key) == disturbed
