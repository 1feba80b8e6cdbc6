"""Several real Ray nodes: jobs spread over them, and lose one, or its cable, without a trace in their results."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.local.hosts import Cluster, own_name
from cluster.local.network import obstacle
from midibert_ray import tracking
from midibert_ray.config import Config
from midibert_ray.data.columns import store_digest
from midibert_ray.data.layout import read_manifest
from midibert_ray.data.part import Part, make_part
from midibert_ray.data.plan import plan_corpus
from midibert_ray.overrides import replace
from tests.cluster.listing import homes, listed
from tests.data.test_tokenize import midi_folder
from tests.jobs.head import ROOT, command_lines, places_of
from tests.jobs.test_pipeline import command
from tests.tiny import tiny_study

pytestmark = [pytest.mark.ray, pytest.mark.cluster]

COPIES = 40
CUT_S = 20.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if reason := obstacle():
        pytest.skip(reason)
    ray.shutdown()  # that of the tests before
    with Cluster(own_name("mt"), {"1": 2, "2": 2}) as found:
        yield found


class Job:
    """A job that is driven from the head."""

    def __init__(self, cluster: Cluster, job: str, config: Config) -> None:
        root = Path(config.storage.root)
        root.mkdir(parents=True, exist_ok=True)
        self.log = root / f"{job}.log"
        with self.log.open("wb") as log:
            self.process = cluster.start("head", command(job, config), stdout=log, stderr=subprocess.STDOUT)

    def until(self, condition: Callable[[], object], limit_s: float = 150) -> None:
        """Wait for a moment in the middle of it."""
        deadline = time.monotonic() + limit_s
        while not condition():
            assert self.process.poll() is None, f"it ended too soon\n{self.log.read_text()}"
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def wait(self, code: int = 0) -> str:
        """What it has said at its end."""
        found = self.process.wait(timeout=240)
        assert found == code, self.log.read_text()
        return self.log.read_text()


# ------------------------------------------------------------------------------------------- tokenizing


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A corpus of some 40 parts, in a folder that all nodes see."""
    return f"folder:{midi_folder(tmp_path_factory.mktemp('music'), copies=COPIES)}"


@pytest.fixture(scope="module")
def digest(music: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """That of the store of one process."""
    folder = tmp_path_factory.mktemp("alone")
    plan = plan_corpus(music, corpora_root="", storage_root=str(folder), protocol="clean")
    part = Part(
        corpus=plan.corpus.name,
        root=plan.root,
        protocol=plan.protocol,
        segment=plan.segment,
        order=plan.order,
        number=0,
        pieces=plan.pieces,
        files=dict(plan.files),
        staging=str(folder),
    )
    return store_digest((report["piece"], report["digest"]) for report in make_part(part))


def tokenizing(root: Path, *names: str) -> Config:
    return replace(tiny_study(root, storage__cache="~/cache"), {"corpora.names": names, "tokens.segment": 512})


def manifest(root: Path, name: str = "folder") -> dict[str, Any]:
    (place,) = root.glob(f"root/tokens/{name}-*")
    return read_manifest(str(place))


def addresses(cluster: Cluster) -> set[str]:
    return {cluster.network.hosts[worker].address for worker in cluster.workers}


def test_tokenizing_spreads_over_the_nodes(cluster: Cluster, music: str, digest: str, tmp_path: Path) -> None:
    """Submitted from this machine, through the bridge."""
    words = [sys.executable, "jobs/submit.py", *command("tokenize", tokenizing(tmp_path, music))[1:]]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | cluster.access(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    made = manifest(tmp_path)
    assert made["digest"] == digest
    assert made["nodes"].keys() == addresses(cluster)
    assert sum(made["nodes"].values()) == made["counts"]["pieces"] == COPIES * 32


def test_tokenizing_outlives_a_node(cluster: Cluster, music: str, digest: str, tmp_path: Path) -> None:
    job = Job(cluster, "tokenize", tokenizing(tmp_path, music))
    job.until(lambda: len(list(tmp_path.glob("root/tokens/.*/part-*.parquet"))) >= 4)
    cluster.kill("1")
    assert not list(tmp_path.glob("root/tokens/*/manifest.json")), "it was over before"
    cluster.join("1")
    job.wait()
    made = manifest(tmp_path)
    assert made["digest"] == digest
    assert sum(made["nodes"].values()) == COPIES * 32


def test_a_folder_of_one_node_is_named(cluster: Cluster, tmp_path: Path) -> None:
    place = cluster.network.own / "music"
    midi_folder(cluster.network.hosts["head"].disk / "music", copies=1)
    said = Job(cluster, "tokenize", tokenizing(tmp_path, f"folder:{place}")).wait(code=2)
    assert said.startswith(f"error: {place} is not on this node; corpora.root must be visible from every node")
    assert len(said.splitlines()) == 1


# ------------------------------------------------------------------------------------------- pre-training


def pretraining(root: Path, placement: str) -> Config:
    changes = {
        "pretrain.epochs": 8,
        "pretrain.valid_every": 1,
        "compute.workers": 2,
        "compute.placement": placement,
        "compute.log_every": 4,
        "storage.cache": "~/cache",
    }
    return replace(tiny_study(root), changes)


Curves = dict[str, list[tuple[int, float]]]


def curves(config: Config) -> Curves:
    tracker = tracking.Tracker(tracking.address(config))
    (run,) = tracker.parents(tracking.PRETRAINING)
    assert run.info.status == "FINISHED"
    return {name: tracker.curve(run.info.run_id, name) for name in ("train/loss", "valid/loss", "valid/accuracy")}


@pytest.fixture(scope="module")
def tokens(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokens")
    Job(cluster, "tokenize", replace(tiny_study(root), {"storage.cache": "~/cache"})).wait()
    return root / "root" / "tokens"


@pytest.fixture
def root(tokens: Path, tmp_path: Path) -> Path:
    shutil.copytree(tokens, tmp_path / "root" / "tokens")
    return tmp_path


@pytest.fixture(scope="module")
def one_node(cluster: Cluster, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Curves:
    root = tmp_path_factory.mktemp("one-node")
    shutil.copytree(tokens, root / "root" / "tokens")
    config = pretraining(root, "STRICT_PACK")
    Job(cluster, "pretrain", config).wait()
    return curves(config)


def checkpoints(root: Path) -> list[Path]:
    return list(root.glob("root/runs/*/step_*/progress.json"))


def test_two_nodes_train_as_one(cluster: Cluster, root: Path, one_node: Curves) -> None:
    config = pretraining(root, "STRICT_SPREAD")
    Job(cluster, "pretrain", config).wait()
    assert curves(config) == one_node
    assert len(one_node["valid/loss"]) == config.pretrain.epochs


def test_pretraining_outlives_a_node(cluster: Cluster, root: Path, one_node: Curves) -> None:
    config = pretraining(root, "STRICT_SPREAD")
    job = Job(cluster, "pretrain", config)
    job.until(lambda: len(checkpoints(root)) >= 2)
    cluster.kill("2")
    cluster.join("2")
    assert "failed" in job.wait()
    assert curves(config) == one_node


def test_pretraining_outlives_a_pulled_cable(cluster: Cluster, root: Path, one_node: Curves) -> None:
    config = pretraining(root, "STRICT_SPREAD")
    job = Job(cluster, "pretrain", config)
    job.until(lambda: len(checkpoints(root)) >= 2)
    cluster.cut("2")
    time.sleep(CUT_S)
    cluster.join("2")
    job.wait()
    assert curves(config) == one_node


# ------------------------------------------------------------------------------------------- a study


def studying(root: Path) -> Config:
    changes = {
        "pretrain.epochs": 2,
        "pretrain.valid_every": 1,
        "finetune.epochs": 4,
        "finetune.patience": 0,
        "study.variants": ("pretrained", "scratch"),
        "study.seeds": 3,
        "compute.workers": 2,
        "compute.placement": "STRICT_SPREAD",
        "compute.max_concurrent_trials": 0,
        "storage.cache": "~/cache",
    }
    return replace(tiny_study(root), changes)


def outcomes(root: Path) -> dict[str, tuple[int, Any]]:
    """Trial -> when its outcome was written, and its figures and confusion counts."""
    found = {}
    for path in root.glob("root/studies/*/*/checkpoint_*/outcome.json"):
        content = json.loads(path.read_text())
        assert path.parts[-3] not in found, "a trial has one outcome"
        found[path.parts[-3]] = path.stat().st_mtime_ns, (content["figures"], content["confusion"])
    return found


def table(found: Mapping[str, tuple[int, Any]]) -> dict[str, Any]:
    return {name: content for name, (_, content) in found.items()}


def trial_nodes(cluster: Cluster) -> set[str]:
    """Addresses of the nodes on which trials have run."""
    places = {node["node_id"]: node["node_ip"] for node in listed(cluster.ask, "nodes")}
    return {places[node] for node in homes(cluster.ask)["ImplicitFunc"]}


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    shutil.copytree(tokens, root / "root" / "tokens")
    Job(cluster, "study", studying(root)).wait()
    return root


def test_a_study_runs_trials_on_both_nodes(cluster: Cluster, undisturbed: Path) -> None:
    assert len(outcomes(undisturbed)) == 6
    assert trial_nodes(cluster) >= addresses(cluster)


def test_a_study_outlives_a_node(cluster: Cluster, root: Path, undisturbed: Path) -> None:
    job = Job(cluster, "study", studying(root))
    job.until(lambda: len(outcomes(root)) >= 1)
    cluster.kill("1")
    before = outcomes(root)
    assert len(before) < 6
    cluster.join("1")
    job.wait()
    after = outcomes(root)
    assert {name: after[name] for name in before} == before, "what was finished was run again"
    assert table(after) == table(outcomes(undisturbed))


def test_a_study_outlives_a_pulled_cable(cluster: Cluster, root: Path, undisturbed: Path) -> None:
    job = Job(cluster, "study", studying(root))
    job.until(lambda: len(outcomes(root)) >= 1)
    cluster.cut("1")
    time.sleep(CUT_S)
    cluster.join("1")
    job.wait()
    assert table(outcomes(root)) == table(outcomes(undisturbed))


def test_the_token_stays_in_its_file(cluster: Cluster, undisturbed: Path) -> None:
    token = cluster.token.read_text()
    assert cluster.token.stat().st_mode & 0o777 == 0o600
    assert places_of(token, cluster.network.folder, undisturbed) == [cluster.token]
    assert not [line for line in command_lines() if token in line]
    assert token not in json.dumps(cluster.ask("/api/jobs/"))
