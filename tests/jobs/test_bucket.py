"""The main job with everything in a bucket, and its runs on a tracking server: both break off, and nothing is lost.

Both are real servers, whose keys stand in the environment and nowhere else.
"""

import json
import re
import shlex
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from midibert_ray import storage, tracking
from midibert_ray.model.folder import load_checkpoint
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.tracking.spool import Spool
from midibert_ray.training.checkpoints import weights
from tests.jobs.test_pipeline import came_to, command, done, only, run, runs
from tests.mlflow_server import ACCOUNT, PASSWORD, Relay, serving
from tests.s3 import KEYS, S3

pytestmark = pytest.mark.ray


@pytest.fixture
def relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """The way to a tracking server."""
    quick = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    for name, value in (ACCOUNT | quick).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "server").mkdir()
    with serving(tmp_path / "server") as server:
        relay = Relay(server.port)
        yield relay
        relay.set("closed")


@pytest.fixture
def bucket(config: Config, s3: S3, relay: Relay, tmp_path: Path) -> Config:
    """Everything in a bucket."""
    places = {
        "storage.root": s3.address(f"{s3.bucket()}/some where/out"),
        "storage.cache": str(tmp_path / "cache of the bucket"),
        "tracking.uri": relay.uri,
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


def below(config: Config, folder: str) -> list[str]:
    return list(storage.names(storage.join(config.storage.root, folder)))


def path(config: Config) -> str:
    """The bucket and what stands behind it."""
    return storage.without_query(config.storage.root).removeprefix("s3://")


def test_a_pipeline_in_a_bucket_comes_to_what_one_on_a_disk_does(
    no_ray: None, undisturbed: Config, bucket: Config, s3: S3, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed in an upload, with its last whole checkpoint cut off, and then twice without its tracking server."""
    box = Spool(tracking.uris(bucket).spool)
    first, third = kill_in_an_upload(bucket, s3)
    box.put("sender", b"nobody")  # as the next job finds when the killed one has given no sign of life for a while
    said = finish_while_the_server_is_away_twice(bucket, s3, relay)
    assert "found" in said, "the token store was made again"
    assert f"the checkpoint {third} of {storage.basename(only(bucket, 'runs'))} is removed, as its writing was" in said
    assert f"a broken checkpoint is passed over, the run goes on from {first}" in said
    assert came_to(bucket) == came_to(undisturbed)
    assert len(came_to(bucket)["trials"]) == 4, "trials do not wait"
    assert all(torch.equal(tensor, tensors(undisturbed)[name]) for name, tensor in tensors(bucket).items())
    assert box.names() and below(bucket, f"reports/{storage.basename(only(bucket, 'studies'))}") == ["song.html"]
    no_secret(bucket, s3, said)

    relay.set("open")
    send_what_is_left(said, bucket)
    assert box.names() == below(bucket, "unpublished") == []
    assert runs(bucket) == runs(undisturbed), "no curve has a gap, or a point that it has not"
    tracker = tracking.Tracker(tracking.uris(bucket))
    (parent,) = tracker.parents(tracking.study_experiment(bucket.study.name))
    files = ("results.csv", "results.md", "results.png", "report.html", "baselines.json")
    assert all(tracker.artifact(parent.info.run_id, name) for name in files)
    nothing_twice(bucket, s3, caplog)
    check_export(bucket)


def kill_in_an_upload(config: Config, s3: S3) -> tuple[str, str]:
    """Leave one whole checkpoint, the first, one that is cut off, and one, the third, that is not all there."""
    s3.hook = hook = BreakOff()
    code, said = run(config, kill_when=hook.reached.is_set)
    assert code == -signal.SIGKILL and hook.reached.is_set(), said
    s3.hook = None
    folder = only(config, "runs")
    first, second, third = sorted(hook.steps)
    assert [name for name in storage.names(folder) if name.startswith("step_")] == [first, second, third]
    halve(storage.join(folder, second, "model.safetensors"))
    return first, third


def finish_while_the_server_is_away_twice(config: Config, s3: S3, relay: Relay) -> str:
    """Its answers are lost in the pre-training, and it hangs from a trial's end until the job's."""
    box, before, outages = Spool(tracking.uris(config).spool), len(s3.requests), 0

    def wrote(pattern: str) -> bool:
        return any(re.match(f"PUT .*/out/{pattern}", request) for request in s3.requests[before:])

    def disturb() -> Iterator[bool]:
        nonlocal outages
        while not wrote("runs/.*/step_"):
            yield False
        relay.set("deaf")
        while not (relay.lost and (late := set(box.names()))):
            yield False
        relay.set("open")
        while late & set(box.names()):  # others may follow them at any time
            yield False
        outages += 1
        while not wrote("studies/.*/outcome.json"):
            yield False
        relay.set("silent")
        outages += 1
        while True:
            yield False

    code, said = run(config, kill_when=disturb().__next__)
    assert code == 0, said
    assert outages == 2, "the first one's records had not arrived before the end"
    assert "has not got all results. Nothing is lost; when it answers:" in said
    return said


def send_what_is_left(said: str, config: Config) -> None:
    """By the command that the job has named."""
    (later,) = [
        line.strip() for line in said.splitlines() if line.strip().startswith("python jobs/report.py ablation-")
    ]
    said = done("report", *shlex.split(later)[2:])
    page = storage.join(only(config, "reports"), "report.html")
    assert storage.exists(page) and page in said
    assert PASSWORD not in said


def no_secret(config: Config, s3: S3, said: str) -> None:
    texts = {"output": said.encode()}
    for key in s3.keys(path(config)):
        with s3.client().open_input_file(f"{path(config)}/{key}") as file:
            texts[key] = file.read()
    secrets = [value.encode() for name, value in KEYS.items() if "KEY" in name] + [PASSWORD.encode()]
    assert [name for name, text in texts.items() if any(secret in text for secret in secrets)] == []


def nothing_twice(config: Config, s3: S3, caplog: pytest.LogCaptureFixture) -> None:
    """The same command again needs no Ray, and writes no token, no checkpoint and no outcome: its claim to the study,
    and the books.
    """
    before = len(s3.requests)
    with caplog.at_level("INFO"):
        assert "report.html" in done("pipeline", *command("pipeline", config)[2:])
    assert "goes on where it stopped: 4 of 4 trials are done, 1 of 1 pre-trainings" in caplog.text
    assert not ray.is_initialized()
    writes = [request for request in s3.requests[before:] if request.startswith(("PUT", "POST", "DELETE"))]
    written = [request.partition(f"{path(config)}/")[2] for request in writes]
    books = re.compile(
        r"$|\.midibert-write-check(\?|$)|(reports|spool)(/|$)|studies/[^/]+/(lease\.[^/?]+|\w+\.json)?(\?|$)"
    )
    assert not [name for name in written if not books.match(name)]


def check_export(config: Config) -> None:
    """An export in the bucket is the best checkpoint."""
    place = storage.join(config.storage.root, "exports", "mine")
    assert "config.json, model.safetensors" in done("export", *command("export", config)[2:], f"output={place}")
    with weights(place) as folder:
        exported = load_checkpoint(folder).state_dict()
    assert all(torch.equal(tensor, tensors(config)[name]) for name, tensor in exported.items())
