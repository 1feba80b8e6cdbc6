"""The jobs with everything in a bucket of a real S3 server, whose keys stand in the environment and nowhere else."""

import json
import re
import signal
import threading
from pathlib import Path

import pytest
import torch

from midibert_ray import storage, tracking
from midibert_ray.model.folder import load_checkpoint
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.training.checkpoints import weights
from tests.jobs.test_pipeline import came_to, only, run
from tests.s3 import KEYS, S3

pytestmark = pytest.mark.ray


@pytest.fixture
def bucket(config: Config, s3: S3, tmp_path: Path) -> Config:
    """Everything in a bucket."""
    places = {
        "storage.root": s3.address(f"{s3.bucket()}/some where/out"),
        "storage.cache": str(tmp_path / "cache of the bucket"),
        "tracking.uri": f"sqlite:///{tmp_path}/tracking/mlflow.db",
    }
    return replace(config, places)


class BreakOff:
    """A hook of the server: while the weights of the third checkpoint come in, all writing ends."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.steps: list[str] = []

    def __call__(self, request: str) -> bool:
        if not request.startswith(("PUT", "POST", "DELETE")):
            return False
        if (found := re.search(r"/(step_\d+)/", request)) and found[1] not in self.steps:
            self.steps.append(found[1])
        if len(self.steps) == 3 and "model.safetensors" in request:
            self.reached.set()
        return self.reached.is_set()


def halve(address: str) -> None:
    """Cut off an object."""
    content = storage.read_bytes(address)
    storage.write_bytes(address, content[: len(content) // 2])


def best(config: Config) -> str:
    """The best checkpoint of the pre-training."""
    folder = only(config, "runs")
    result = json.loads(storage.read_bytes(storage.join(folder, "result.json")))
    return storage.join(folder, storage.basename(result["checkpoint"]))


def tensors(config: Config) -> dict[str, torch.Tensor]:
    with weights(best(config)) as folder:
        return load_checkpoint(folder).state_dict()


def test_a_pipeline_in_a_bucket_comes_to_what_one_on_a_disk_does(
    no_ray: None, undisturbed: Config, bucket: Config, s3: S3, tmp_path: Path
) -> None:
    """Killed in an upload, and with its last whole checkpoint cut off."""
    s3.hook = hook = BreakOff()
    code, said = run(bucket, kill_when=hook.reached.is_set)
    assert code == -signal.SIGKILL and hook.reached.is_set(), said
    s3.hook = None
    folder = only(bucket, "runs")
    first, second, third = sorted(hook.steps)
    assert [name for name in storage.names(folder) if name.startswith("step_")] == [first, second, third]
    halve(storage.join(folder, second, "model.safetensors"))

    code, said = run(bucket)
    assert code == 0, said
    assert "found" in said, "the token store was made again"
    assert f"the checkpoint {third} of {storage.basename(folder)} is removed, as its writing was broken off" in said
    assert f"a broken checkpoint is passed over, the run goes on from {first}" in said
    assert came_to(bucket) == came_to(undisturbed)
    assert len(came_to(bucket)["trials"]) == 4
    assert all(torch.equal(tensor, tensors(undisturbed)[name]) for name, tensor in tensors(bucket).items())
    check_tracking(bucket)
    nothing_twice(bucket, s3)
    check_export(bucket)
    assert storage.exists(storage.join(only(bucket, "reports"), "report.html"))
    texts = [said.encode(), *(path.read_bytes() for path in tmp_path.glob("tracking/**/*") if path.is_file())]
    assert not any(value.encode() in text for name, value in KEYS.items() if "KEY" in name for text in texts)


def check_tracking(config: Config) -> None:
    """One pre-training, with a point for every epoch."""
    tracker = tracking.Tracker(tracking.address(config))
    (pretraining,) = tracker.parents(tracking.PRETRAINING)
    assert pretraining.info.status == "FINISHED"
    steps = [step for step, _ in tracker.curve(pretraining.info.run_id, "valid/loss")]
    assert len(steps) == config.pretrain.epochs and sorted(set(steps)) == steps
    (parent,) = tracker.parents(tracking.study_experiment(config.study.name))
    assert tracker.artifact(parent.info.run_id, "results.md")


def nothing_twice(config: Config, s3: S3) -> None:
    """The same command again writes no token, no checkpoint and no outcome."""
    before = len(s3.requests)
    code, said = run(config)
    assert code == 0 and "goes on where it stopped: 4 of 4 trials are done, 1 of 1 pre-trainings" in said, said
    path = storage.without_query(config.storage.root).removeprefix("s3:/")
    writes = [request for request in s3.requests[before:] if request.startswith(("PUT", "POST", "DELETE"))]
    assert {request.partition(f"{path}/")[2].partition("/")[0] for request in writes} <= {"reports"}


def check_export(config: Config) -> None:
    """An export in the bucket is the best checkpoint."""
    place = storage.join(config.storage.root, "exports", "mine")
    code, said = run(config, f"output={place}", job="export")
    assert code == 0 and "config.json, model.safetensors" in said, said
    with weights(place) as folder:
        exported = load_checkpoint(folder).state_dict()
    assert all(torch.equal(tensor, tensors(config)[name]) for name, tensor in exported.items())
