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
from collections.abc import Callable, Iterator
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
from tests.jobs.head import ROOT, command_lines, places_of
from tests.jobs.test_pipeline import came_to, command, everything_below, runs
from tests.tokenizing.test_tokenize import midi_folder

pytestmark = [pytest.mark.ray, pytest.mark.cluster]

COPIES = 24
"""Of the sample, in the corpus that is tokenized: 12 parts."""

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
    """A job that is driven from the head, or submitted to it from this machine, through the bridge."""

    def __init__(self, cluster: Cluster, job: str, config: Config, *, submitted: bool = False) -> None:
        self.log = Path(config.storage.root) / f"{job}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        words = command(job, config)
        with self.log.open("wb") as log:
            streams: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT}
            if submitted:
                words, environment = [sys.executable, "jobs/submit.py", *words[1:]], os.environ | cluster.access()
                self.process = subprocess.Popen(words, cwd=ROOT, env=environment, **streams)
            else:
                self.process = cluster.start("head", words, **streams)

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


def spread(root: Path) -> Config:
    """The pipeline of `undisturbed` with a worker on each node, on what all nodes see, but for the caches."""
    changes = {
        "storage.cache": "~/cache",  # each node's own
        "compute.placement": "STRICT_SPREAD",
        "compute.max_concurrent_trials": 0,
    }
    return replace(everything_below(root), changes)


def disturb(cluster: Cluster) -> None:
    """Pull a cable, and lose the other node while it is out."""
    cluster.cut("2")
    back = time.monotonic() + CUT_S
    cluster.kill("1")
    cluster.join("1")
    time.sleep(max(0.0, back - time.monotonic()))
    cluster.join("2")


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

    config = replace(spread(tmp_path), {"corpora.names": (music,)})
    job = Job(cluster, "tokenize", config, submitted=True)
    job.until(lambda: made() >= 3)
    disturb(cluster)
    assert not list(tmp_path.glob("root/tokens/*/manifest.json"))
    job.wait()
    content = manifest(tmp_path)
    assert content["digest"] == reference.digest(music, tmp_path / "alone")
    assert content["nodes"].keys() == addresses(cluster)
    assert sum(content["nodes"].values()) == content["counts"]["pieces"] == COPIES * 32


# ------------------------------------------------------------------------------------------- a study


def newest_step(root: Path) -> str:
    """The name of the newest checkpoint; empty where there is none."""
    return max((path.parent.name for path in root.glob("root/runs/*/step_*/progress.json")), default="")


@pytest.fixture(scope="module")
def pretrained(cluster: Cluster, undisturbed: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a pre-training has lost a node, and later its other one for a while."""
    root = tmp_path_factory.mktemp("nodes")
    shutil.copytree(Path(undisturbed.storage.root, "tokens"), root / "root/tokens")
    job = Job(cluster, "pretrain", spread(root))
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
    return root


def losses(config: Config) -> list[tuple[int, float]]:
    tracker = tracking.Tracker(tracking.uris(config))
    (run,) = tracker.parents(tracking.PRETRAINING)
    assert run.info.status == "FINISHED"
    return tracker.curve(run.info.run_id, "train/loss")


def test_pretraining_outlives_a_lost_node_and_a_pulled_cable(pretrained: Path, undisturbed: Config) -> None:
    """And trains on two nodes as on one."""
    found = losses(spread(pretrained))
    assert len(found) > undisturbed.pretrain.epochs
    assert found == losses(undisturbed)


def test_every_node_has_a_copy_of_its_own(cluster: Cluster, pretrained: Path) -> None:
    """Of the corpus: the last steps needed a worker on each. A study need not come back to a node that was lost."""
    for worker in cluster.workers:
        assert list((cluster.network.hosts[worker].disk / "home/cache").glob("sample-*"))
    assert not list(cluster.network.own.iterdir())


def outcomes(root: Path) -> dict[str, tuple[int, Any]]:
    """Trial that has finished -> when its outcome was written, and its metrics and confusion counts."""
    found = {}
    for folder in root.glob("root/studies/*/*/"):
        path = folder / (newest(str(folder)) or "none") / OUTCOME
        if path.exists():
            content = json.loads(path.read_text())
            found[folder.name] = path.stat().st_mtime_ns, (content["figures"], content["confusion"])
    return found


def test_a_study_outlives_a_lost_node_and_a_pulled_cable(
    cluster: Cluster, pretrained: Path, undisturbed: Config
) -> None:
    job = Job(cluster, "study", spread(pretrained))
    job.until(lambda: outcomes(pretrained))
    disturb(cluster)
    before = outcomes(pretrained)
    job.wait()
    after = outcomes(pretrained)
    assert 1 <= len(before) < len(after) == 4
    assert {name: after[name] for name in before} == before, "what was finished was run again"
    assert came_to(spread(pretrained)) == came_to(undisturbed)
    assert runs(spread(pretrained)) == runs(undisturbed), "no curve has a gap, or a point that it has not"
    where = {node["node_id"]: node["node_ip"] for node in listed(cluster.ask, "nodes")}
    ran = {name: {where[node] for node in nodes} for name, nodes in homes(cluster.ask).items()}
    assert ran["RayTrainWorker"] == ran["ImplicitFunc"] == addresses(cluster), "workers and trials"
    assert ran["TrainController"] == ran["_Lines"] == {cluster.head}


# ------------------------------------------------------------------------------------------- what was seen of it


def test_the_token_stays_in_its_file(cluster: Cluster, pretrained: Path) -> None:
    token = cluster.token.read_text()
    assert cluster.token.stat().st_mode & 0o777 == 0o600
    assert places_of(token, cluster.network.folder, pretrained) == [cluster.token]
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
