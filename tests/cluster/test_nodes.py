"""Several real Ray nodes: jobs spread over them, and lose one, or its cable, without a trace in their results.

Each fault comes in the middle of a job, when something of it is done and something is not.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.local.hosts import Cluster, own_name
from cluster.local.network import obstacle
from midibert_ray import tracking
from midibert_ray.data.format import read_manifest
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.studies.result import OUTCOME, newest
from tests.cluster import reference
from tests.cluster.listing import homes, listed
from tests.cluster.reference import CURVES, Curves
from tests.jobs.head import ROOT, command_lines, places_of
from tests.jobs.test_pipeline import command
from tests.tiny import tiny_study
from tests.tokenizing.test_tokenize import midi_folder
from tests.training.layouts import Pair

pytestmark = [pytest.mark.ray, pytest.mark.cluster]

COPIES = 40
"""Of the sample, in the corpus that is tokenized: 20 parts."""

CUT_S = 10.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head, and two workers of one CPU each, so that two of anything need both of them."""
    if reason := obstacle():
        pytest.skip(reason)
    ray.shutdown()  # that of the tests before
    with Cluster(own_name("mt"), {"1": 1, "2": 1}) as found:
        yield found


def addresses(cluster: Cluster) -> set[str]:
    return {cluster.network.hosts[worker].address for worker in cluster.workers}


class Job:
    """A job that is driven from the head."""

    def __init__(self, cluster: Cluster, job: str, config: Config) -> None:
        self.log = Path(config.storage.root) / f"{job}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = cluster.start("head", command(job, config), stdout=log, stderr=subprocess.STDOUT)

    def until(self, condition: Callable[[], object], limit_s: float = 150) -> None:
        """Wait for a moment in the middle of it."""
        deadline = time.monotonic() + limit_s
        while not condition():
            assert self.process.poll() is None, f"it ended too soon\n{self.log.read_text()}"
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def wait(self) -> None:
        """Until it has ended, and that well."""
        assert self.process.wait(timeout=240) == 0, self.log.read_text()


def places(root: Path) -> dict[str, str]:
    """Where a job keeps things: on what all nodes see, but for the cache, which is each node's own."""
    return {"storage.root": str(root / "root"), "storage.cache": "~/cache"}


# ------------------------------------------------------------------------------------------- tokenizing


@pytest.fixture
def music(tmp_path: Path) -> str:
    return f"folder:{midi_folder(tmp_path / 'music', copies=COPIES)}"


def manifest(root: Path) -> dict[str, Any]:
    (place,) = root.glob("root/tokens/folder-*")
    return read_manifest(str(place))


def test_tokenizing_spreads_over_the_nodes_and_outlives_a_lost_one_and_a_pulled_cable(
    cluster: Cluster, music: str, tmp_path: Path
) -> None:
    def made() -> int:
        return len(list(tmp_path.glob("root/tokens/*/part-*.parquet")))

    config = replace(tiny_study(tmp_path), {"corpora.names": (music,), **places(tmp_path)})
    job = Job(cluster, "tokenize", config)
    job.until(lambda: made() >= 3)
    cluster.kill("1")
    cluster.join("1")
    before = made()
    job.until(lambda: made() > before)
    cluster.cut("2")
    assert not list(tmp_path.glob("root/tokens/*/manifest.json"))
    time.sleep(CUT_S)
    cluster.join("2")
    job.wait()
    content = manifest(tmp_path)
    assert content["digest"] == reference.digest(music, tmp_path / "alone")
    assert content["nodes"].keys() == addresses(cluster)
    assert sum(content["nodes"].values()) == content["counts"]["pieces"] == COPIES * 32


# ------------------------------------------------------------------------------------------- a study


def studying(root: Path) -> Config:
    """A study of six trials, and the pre-training that three of them start from, a worker on each node."""
    changes = {
        "pretrain.epochs": 6,
        "pretrain.valid_every": 1,
        "pretrain.batch": 24,
        "finetune.epochs": 4,
        "finetune.patience": 0,
        "study.variants": ("pretrained", "scratch"),
        "study.seeds": 3,
        "compute.workers": 2,
        "compute.placement": "STRICT_SPREAD",
        "compute.max_concurrent_trials": 0,
    }
    return replace(tiny_study(root), changes | places(root))


def curves(config: Config) -> Curves:
    tracker = tracking.Tracker(tracking.uris(config))
    (run,) = tracker.parents(tracking.PRETRAINING)
    assert run.info.status == "FINISHED"
    return {name: tracker.curve(run.info.run_id, name) for name in CURVES}


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that was submitted from this machine, through the bridge."""
    root = tmp_path_factory.mktemp("study")
    words = [sys.executable, "jobs/submit.py", *command("pipeline", studying(root))[1:]]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | cluster.access(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.fixture(scope="module")
def one_node(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Curves:
    """The curves of two workers on one node."""
    (store,) = undisturbed.glob("root/tokens/sample-*")
    pair = Pair(tmp_path_factory.mktemp("meeting") / "point")
    run = reference.Run(studying(undisturbed), str(store), str(tmp_path_factory.mktemp("cache")))
    first, second = pair.run(reference.curves, run)
    pair.close()
    assert first == second
    return dict(first)


@pytest.fixture
def root(undisturbed: Path, tmp_path: Path) -> Path:
    """Where the sample has been tokenized, and nothing else done."""
    shutil.copytree(undisturbed / "root/tokens", tmp_path / "root/tokens")
    return tmp_path


def newest_step(root: Path) -> str:
    """The name of the newest checkpoint; empty where there is none."""
    return max((path.parent.name for path in root.glob("root/runs/*/step_*/progress.json")), default="")


def test_pretraining_outlives_a_lost_node_and_a_pulled_cable(cluster: Cluster, root: Path, one_node: Curves) -> None:
    job = Job(cluster, "pretrain", studying(root))
    job.until(lambda: newest_step(root))
    cluster.kill("2")
    cluster.join("2")
    before = newest_step(root)
    job.until(lambda: newest_step(root) > before)
    cluster.cut("1")
    time.sleep(CUT_S)
    cluster.join("1")
    job.wait()
    assert "failed" in job.log.read_text(), "it went on without starting again"
    assert curves(studying(root)) == one_node


def outcomes(root: Path) -> dict[str, tuple[int, Any]]:
    """Trial that has finished -> when its outcome was written, and its metrics and confusion counts."""
    found = {}
    for folder in root.glob("root/studies/*/*/"):
        path = folder / (newest(str(folder)) or "none") / OUTCOME
        if path.exists():
            content = json.loads(path.read_text())
            found[folder.name] = path.stat().st_mtime_ns, (content["figures"], content["confusion"])
    return found


def table(root: Path) -> Mapping[str, Any]:
    return {name: content for name, (_, content) in outcomes(root).items()}


def test_a_study_trains_on_both_nodes_as_on_one(cluster: Cluster, undisturbed: Path, one_node: Curves) -> None:
    assert curves(studying(undisturbed)) == one_node
    assert len(one_node["valid/loss"]) == 6
    assert len(table(undisturbed)) == 6
    where = {node["node_id"]: node["node_ip"] for node in listed(cluster.ask, "nodes")}
    ran = {name: {where[node] for node in nodes} for name, nodes in homes(cluster.ask).items()}
    assert ran["RayTrainWorker"] == addresses(cluster)
    assert ran["ImplicitFunc"] == addresses(cluster) | {cluster.head}, "trials on both, driver of workers on the head"
    assert ran["TrainController"] == ran["_Lines"] == {cluster.head}


def check_study(root: Path, undisturbed: Path, before: dict[str, tuple[int, Any]]) -> None:
    """It has ended as the undisturbed one, nothing that was done before the fault was done again, MLflow is whole."""
    after = outcomes(root)
    assert 1 <= len(before) < len(after) == 6
    assert {name: after[name] for name in before} == before, "what was finished was run again"
    assert table(root) == table(undisturbed)
    tracker = tracking.Tracker(tracking.uris(studying(root)))
    experiment = tracking.study_experiment(studying(root).study.name)
    (parent,) = tracker.parents(experiment)
    children = tracker.children(experiment, parent.info.run_id)
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 7
    for child in children:
        assert [step for step, _ in tracker.curve(child.info.run_id, "valid/accuracy")] == [1, 2, 3, 4]
        assert len(tracker.curve(child.info.run_id, "test/accuracy")) == 1


def test_a_study_outlives_a_lost_node_and_a_pulled_cable(cluster: Cluster, root: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed / "root/runs", root / "root/runs")
    job = Job(cluster, "study", studying(root))
    job.until(lambda: outcomes(root))
    cluster.kill("1")
    before = outcomes(root)
    cluster.join("1")
    job.until(lambda: len(outcomes(root)) > len(before))
    cluster.cut("2")
    before |= outcomes(root)
    time.sleep(CUT_S)
    cluster.join("2")
    job.wait()
    check_study(root, undisturbed, before)


# ------------------------------------------------------------------------------------------- what was seen of it


def test_every_node_has_a_copy_of_its_own(cluster: Cluster, undisturbed: Path) -> None:
    for worker in cluster.workers:
        assert list((cluster.network.hosts[worker].disk / "home/cache").glob("sample-*"))
    assert not list(cluster.network.own.iterdir())


def test_the_token_stays_in_its_file(cluster: Cluster, undisturbed: Path) -> None:
    token = cluster.token.read_text()
    assert cluster.token.stat().st_mode & 0o777 == 0o600
    assert places_of(token, cluster.network.folder, undisturbed) == [cluster.token]
    assert not [line for line in command_lines() if token in line]
    assert token not in json.dumps(cluster.ask("/api/jobs/"))


AGENT_PORT = 52365
"""Where every node takes jobs from the head."""


@pytest.mark.parametrize(("headers", "status"), [({}, 401), ({"Authorization": f"Bearer {'f' * 64}"}, 403)])
def test_no_node_takes_jobs_from_strangers(cluster: Cluster, headers: dict[str, str], status: int) -> None:
    for host in cluster.network.hosts.values():
        place = f"http://{host.address}:{AGENT_PORT}/api/job_agent/jobs/"
        wish = urllib.request.Request(place, data=b'{"entrypoint": "true"}', headers=headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(wish, timeout=10)
        assert refused.value.code == status
        refused.value.close()
    assert "true" not in {job["entrypoint"] for job in cluster.ask("/api/jobs/")}
