"""What a trial left in its folder, on a disk and in a bucket: which checkpoint counts, and what of it is read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from midibert_ray import storage
from midibert_ray.studies import result as results
from midibert_ray.studies.result import Provenance
from midibert_ray.training.checkpoints import remove_unfinished, write_digests
from tests.s3 import S3
from tests.studies import made

WEIGHTS = "model.safetensors"

Keep = Callable[..., str]


@pytest.fixture(params=["disk", pytest.param("bucket", marks=pytest.mark.slow)])
def trial(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a trial's folder."""
    if request.param == "disk":
        return str(tmp_path / "trial")
    s3: S3 = request.getfixturevalue("s3")
    return s3.address(f"{s3.bucket()}/studies/x/trial")


@pytest.fixture
def keep(trial: str, tmp_path: Path) -> Keep:
    """Puts a checkpoint into the trial's folder, without some of its files; its address is given."""

    def write(
        number: int, epoch: int, *, done: bool = False, without: tuple[str, ...] = (), by: str | None = None
    ) -> str:
        folder = tmp_path / f"{number}-{epoch}"
        folder.mkdir()
        (folder / WEIGHTS).write_bytes(bytes(1000))
        (folder / results.EPOCH).write_text(json.dumps({"epoch": epoch}))
        if done:
            origin = Provenance(study="s", encoder="", config={})
            results.write(folder, made.outcome("scratch", 0.8), origin, {results.PREDICTIONS: b"parquet"})
        write_digests(folder, 0, 1, storage.basename(trial) if by is None else by)
        address = storage.join(trial, f"checkpoint_{number:06d}")
        storage.upload(folder, address, sorted({path.name for path in folder.iterdir()} - {*without}))
        return address

    return write


def change(address: str, name: str) -> None:
    """Another content of the same size."""
    content = storage.read_bytes(storage.join(address, name))
    storage.write_bytes(storage.join(address, name), content[:-1] + bytes([content[-1] ^ 1]))


def test_the_latest_whole_checkpoint_counts_whatever_its_number(trial: str, keep: Keep) -> None:
    assert results.newest(trial) is None and not results.settled(trial)
    keep(3, epoch=4)
    keep(0, epoch=5)
    keep(1, epoch=6, without=("digests-00000.json",))
    keep(2, epoch=7, without=(WEIGHTS,))
    change(keep(4, epoch=8), WEIGHTS)
    assert results.newest(trial) == "checkpoint_000000"
    assert results.find(trial) is None and not results.settled(trial)
    assert remove_unfinished(trial, results.CHECKPOINT) == ["checkpoint_000002", "checkpoint_000001"]
    assert storage.names(trial) == ["checkpoint_000000", "checkpoint_000003", "checkpoint_000004"]


def test_an_outcome_counts_before_all_and_is_read_alone(trial: str, keep: Keep, request: pytest.FixtureRequest) -> None:
    keep(5, epoch=9)
    address = keep(1, epoch=3, done=True)
    change(address, WEIGHTS)  # whoever opens them compares them
    found = results.find(trial)
    assert found == (made.outcome("scratch", 0.8), address)
    assert storage.read_bytes(storage.join(address, results.PREDICTIONS)) == b"parquet"
    assert results.newest(trial) == "checkpoint_000001" and results.settled(trial)
    if not storage.is_local(trial):
        s3: S3 = request.getfixturevalue("s3")
        gets = [
            line for line in s3.requests if line.startswith("GET") and f"{storage.basename(address)}/{WEIGHTS}" in line
        ]
        assert len(gets) == 1, "by `change` alone"


@pytest.mark.parametrize("name", [results.OUTCOME, results.PREDICTIONS])
def test_an_outcome_that_was_changed_does_not_count(trial: str, keep: Keep, name: str) -> None:
    keep(0, epoch=2)
    change(keep(1, epoch=3, done=True), name)
    assert results.newest(trial) == "checkpoint_000000" and results.find(trial) is None


def test_an_outcome_without_its_weights_does_not_count(trial: str, keep: Keep) -> None:
    keep(1, epoch=3, done=True, without=(WEIGHTS,))
    assert results.newest(trial) is None


def test_the_checkpoint_of_another_trial_does_not_count(trial: str, keep: Keep) -> None:
    keep(0, epoch=5, by="trial")
    keep(1, epoch=6, done=True, by="another")
    assert results.newest(trial) == "checkpoint_000000" and not results.settled(trial)


def test_a_draw_that_was_stopped_is_settled(trial: str) -> None:
    results.stop(trial, {"valid/best": 0.5})
    assert results.settled(trial) and results.newest(trial) is None


def test_files_keep_the_names_of_their_fields() -> None:
    result = made.outcome("scratch", 0.8)
    stored = json.loads(result.to_json())
    assert stored["figures"] == result.metrics and "metrics" not in stored, "as stores of earlier versions have it"
    assert results.TrialResult.from_json(result.to_json()) == result
