from __future__ import annotations

import gc
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from midibert_ray.data.store import TokenStore
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from tests.s3 import KEYS, S3, serving
from tests.stores import Piece, sample, write_store

if TYPE_CHECKING:
    from tests.jobs.head import Cluster
    from tests.jobs.visit import Visit

# Tiny runs report many times a second, and a worker waits until Ray Train has taken its last report.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# Workers that Ray starts before it is asked for any take seconds of CPU, and most tests need fewer or others.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
# Tiny models gain nothing from threads, and threads that wait spin: here, and in all processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where a test makes a home of its own, matplotlib would look for all fonts of the machine again.
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache/matplotlib"))

# A fifth of all that importing takes is looking for garbage, of which there is none. What is imported stays.
gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share one Ray come first, as each of the others stops it."""
    items.sort(key=lambda item: not {"ray_cluster", "summaries"} & set(getattr(item, "fixturenames", ())))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The same for this process, which had read its environment before."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)


@pytest.fixture(scope="session")
def corpora_root() -> Path:
    """The folder that holds POP909, Pop1K7, asap-dataset, Pianist8 and EMOPIA_1.0, from MIDIBERT_CORPORA."""
    root = os.environ.get("MIDIBERT_CORPORA")
    if not root:
        pytest.skip("needs the real corpora: set MIDIBERT_CORPORA to the folder that holds POP909, EMOPIA_1.0, ...")
    if not Path(root).is_dir():
        pytest.skip(f"MIDIBERT_CORPORA={root} is not a folder")
    return Path(root)


def start_ray() -> Any:
    """One Ray with four logical CPUs for all tests that want one; it is started when the first of them runs.

    The dashboard stays on: without it, Ray Train does not free the workers of a run that Tune has stopped.
    """
    import ray

    from midibert_ray.cli.driver import OWN_RAY

    if not ray.is_initialized():
        for name, value in OWN_RAY.items():  # as jobs start theirs
            os.environ.setdefault(name, value)
        ray.init("local", num_cpus=4, include_dashboard=True, log_to_driver=False)
    return ray


@pytest.fixture
def ray_cluster() -> Any:
    """That Ray."""
    return start_ray()


@pytest.fixture
def no_ray() -> None:
    """Stop that Ray, for a test whose subprocesses start their own."""
    import ray

    ray.shutdown()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database before its first run: it is laid out in dozens of steps, once for all processes of xdist."""
    from midibert_ray import tracking

    folder = tmp_path_factory.getbasetemp()
    path = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "tracking" / "mlflow.db"
    tracking.Tracker(tracking.TrackingUris(f"sqlite:///{path}", ""))  # of several at once, one makes it
    return path


@pytest.fixture
def recorded(tmp_path: Path, empty_database: Path) -> Config:
    """A storage root with such a database."""
    root = tmp_path / "root"
    root.mkdir(mode=0o700)
    shutil.copy2(empty_database, root)
    return replace(Config(), {"storage.root": str(root)})


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Ray head with a token, for all who submit jobs."""
    import ray

    from tests.jobs.head import started

    ray.shutdown()
    with started(tmp_path_factory.mktemp("home")) as found:
        yield found


@pytest.fixture(scope="session")
def visit(head: Cluster) -> Visit:
    """A pipeline on that head, left and joined again by who submitted it."""
    from tests.jobs.visit import come_and_go

    return come_and_go(head)


@pytest.fixture(scope="session")
def undisturbed(visit: Visit) -> Config:
    """That pipeline, which knew nothing of it; what is killed or loses nodes or servers must come to the same."""
    return visit.config


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs the command mount")
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3]:
    """An S3 server of this machine."""
    with serving() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """The server, with its keys in the environment."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    yield s3_server
    s3_server.hook = None


@pytest.fixture(scope="session")
def sample_pieces() -> list[Piece]:
    """The 32 pieces that ship with the package, protocol clean: (id, split, label, tokens)."""
    return sample()


@pytest.fixture(scope="session")
def sample_store(sample_pieces: list[Piece], tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Their token store."""
    folder = tmp_path_factory.mktemp("sample")
    return TokenStore.open(write_store(folder / "sample-0", sample_pieces, "sample"), str(folder / "cache"))
