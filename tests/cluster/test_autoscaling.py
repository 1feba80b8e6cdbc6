"""A head that only drives, and an autoscaler that brings workers when a job wants them and lets them go."""

import json
import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray

from midibert_ray.settings.overrides import replace
from tests.cluster.listing import homes, listed
from tests.jobs.head import ROOT, TOKEN, Cluster, free_port, started
from tests.jobs.test_pipeline import command
from tests.tiny import tiny_study

pytestmark = [pytest.mark.ray, pytest.mark.cluster]

HEAD_ID = "f" * 51 + "00000"
MOST = 2


def fake_provider(port: int) -> dict[str, Any]:
    """Ray's provider of pretended nodes on this machine: two CPUs each, two of them at most."""
    provider = {
        "type": "fake_multinode",
        "gcs_address": f"127.0.0.1:{port}",
        "head_node_id": HEAD_ID,
        "launch_multiple": True,
        "use_node_id_as_ip": True,  # without these three no node ever leaves
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    kinds = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 2, "object_store_memory": 200_000_000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 8,
        },
    }
    lists = ["cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands"]
    lists += [f"{kind}_{stage}_commands" for kind in ("head", "worker") for stage in ("setup", "start_ray")]
    return {name: [] for name in lists} | {
        "cluster_name": "fake",
        "max_workers": MOST,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 0.15,
        "provider": provider,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "head_node_type": "ray.head.default",
        "available_node_types": kinds,
    }


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    ray.shutdown()  # that of the tests before
    port, config = free_port(), tmp_path / "autoscaler.json"
    config.write_text(json.dumps(fake_provider(port)))
    options = (f"--port={port}", "--num-cpus=0", f"--autoscaling-config={config}")
    (tmp_path / "home").mkdir()
    settings = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    with started(tmp_path / "home", *options, **settings) as found:
        yield found


class Watch:
    """Counts workers while it is open."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.counts = cluster, [workers(cluster)]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.5):
            with suppress(OSError):  # busy
                self.counts.append(workers(self.cluster))


def workers(cluster: Cluster) -> int:
    nodes = listed(cluster.get, "nodes")
    return sum(node["state"] == "ALIVE" and node["node_id"] != HEAD_ID for node in nodes)


def run(cluster: Cluster, words: list[str]) -> None:
    """Submit a job and wait for its end.

    It brings no code along: pretended nodes share the head's folder, and one that leaves removes jobs' code from it.
    """
    wish = {"entrypoint": f"cd {ROOT} && {shlex.join(words)}"}
    deadline = time.monotonic() + 900
    while cluster.status("POST", "/api/jobs/", TOKEN, wish) != 200:  # a head answers before it can run jobs
        assert time.monotonic() < deadline
        time.sleep(1)
    (name,) = cluster.jobs()
    while (state := cluster.jobs()[name]["status"]) in ("PENDING", "RUNNING"):
        assert time.monotonic() < deadline, cluster.get(f"/api/jobs/{name}/logs")["logs"]
        time.sleep(0.5)
    assert state == "SUCCEEDED", cluster.get(f"/api/jobs/{name}/logs")["logs"]


def test_workers_come_with_the_demand_and_go_when_they_are_idle(cluster: Cluster, tmp_path: Path) -> None:
    changes = {
        "pretrain.epochs": 2,
        "pretrain.valid_every": 1,
        "study.variants": ("pretrained",),
        "study.seeds": 3,
        "compute.cpus_per_trial": 2.0,  # a node each
        "compute.max_concurrent_trials": 0,
    }
    config = replace(tiny_study(tmp_path), changes)
    with Watch(cluster) as watch:
        run(cluster, command("pipeline", config))
        ran = homes(cluster.get)
        deadline = time.monotonic() + 600
        while watch.counts[-1] and time.monotonic() < deadline:
            time.sleep(0.5)
    assert watch.counts[0] == 0, "there was nothing but the head"
    assert max(watch.counts) == MOST, "three trials would have liked more"
    assert watch.counts[-1] == 0, "idle workers are given back"
    drivers = ("JobSupervisor", "TrainController", "_Lines")
    assert [ran[name] for name in drivers] == [{HEAD_ID}] * 3, "what drives a study is not lost with a worker"
    assert HEAD_ID not in ran["RayTrainWorker"]
    assert ran["ImplicitFunc"] > {HEAD_ID}, "the pre-training is driven from the head, trials run elsewhere"
