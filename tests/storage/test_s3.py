"""Storage on a real S3 server: odd names, whole objects, and what is said where a bucket cannot be used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from midibert_ray import pipeline, storage
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.presets import preset
from midibert_ray.settings.validators import ConfigError
from tests.s3 import S3

pytestmark = pytest.mark.slow

MIB = 2**20


def test_what_is_written_is_read_whatever_its_name(s3: S3) -> None:
    bucket = s3.bucket()
    root = s3.address(f"{bucket}/My Music/ü+(1)")
    place = storage.join(root, "a b", "c=d&e~f'ü.json")
    assert not storage.exists(root)
    storage.write_bytes(place, b"one")
    storage.write_bytes(place, b"two")
    assert storage.read_bytes(place) == b"two"
    assert storage.exists(place) and storage.exists(root) and not storage.exists(storage.join(root, "a"))
    assert storage.names(root) == ["a b"] and storage.names(storage.join(root, "none")) == []
    assert s3.keys(bucket) == ["My Music/ü+(1)/a b/c=d&e~f'ü.json"]
    assert storage.basename(place) == "c=d&e~f'ü.json"
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(root, "none"))


def test_a_failed_write_leaves_the_old_object(s3: S3) -> None:
    place = s3.address(f"{s3.bucket()}/x")
    storage.write_bytes(place, b"old")
    with pytest.raises(TypeError):
        storage.write_bytes(place, None)  # type: ignore[arg-type]
    s3.hook = lambda request: request.startswith(("PUT", "POST"))
    for content in (b"new", bytes(11 * MIB)):
        with pytest.raises(OSError, match="ACCESS_DENIED"):
            storage.write_bytes(place, content)
    s3.hook = None
    assert storage.read_bytes(place) == b"old"


@pytest.mark.parametrize("part", [1, 2])
def test_an_object_whose_writer_is_killed_does_not_appear(s3: S3, part: int) -> None:
    bucket = s3.bucket()
    code = "import sys; from midibert_ray import storage; storage.write_bytes(sys.argv[1], bytes(25 * 2**20))"
    place = s3.address(f"{bucket}/x")
    storage.write_bytes(place, b"old")

    def kill(request: str) -> bool:
        if f"partNumber={part}" in request:
            writer.kill()
        return False

    s3.hook = kill
    writer = subprocess.Popen([sys.executable, "-c", code, place])
    assert writer.wait(timeout=60) == -9
    s3.hook = None
    assert s3.count(f"PUT /{bucket}/x?partNumber={part}")
    assert storage.read_bytes(place) == b"old"


def test_a_folder_is_uploaded_in_order(s3: S3, tmp_path: Path) -> None:
    bucket = s3.bucket()
    for name in ("a", "b", "last"):
        (tmp_path / name).write_text(name)
    s3.hook = lambda request: request.startswith(f"PUT /{bucket}/x/b")
    with pytest.raises(OSError):
        storage.upload(tmp_path, s3.address(f"{bucket}/x"), ["a", "b", "last"])
    assert s3.keys(f"{bucket}/x") == ["a"]
    s3.hook = None
    storage.upload(tmp_path, s3.address(f"{bucket}/x"), ["b", "last"])
    assert s3.keys(f"{bucket}/x") == ["a", "b", "last"]


@pytest.mark.parametrize("key", ["storage.root", "corpora.root"])
def test_a_job_asks_for_its_buckets_before_it_starts(s3: S3, tmp_path: Path, key: str) -> None:
    places = {"storage.root": str(tmp_path), key: s3.address("no-such-bucket/x")}
    with pytest.raises(ConfigError, match=rf"^{key}=s3://no-such-bucket/x cannot be used"):
        pipeline.plan(replace(preset("debug"), places))


def test_a_bucket_that_cannot_be_used_is_one_error(s3: S3) -> None:
    bucket = s3.bucket()
    storage.require_bucket("storage.root", s3.address(f"{bucket}/not/there/yet"))
    storage.require_bucket("storage.root", "/not/there/yet")
    with pytest.raises(ConfigError, match=r"^corpora\.root=s3://no-such-bucket/x cannot be used: there is no such"):
        storage.require_bucket("corpora.root", s3.address("no-such-bucket/x"))
    s3.hook = lambda request: request == f"HEAD /{bucket}"  # whose rights end at a prefix
    storage.require_bucket("storage.root", s3.address(f"{bucket}/x"))
    s3.hook = lambda request: True
    with pytest.raises(ConfigError, match=r"ACCESS_DENIED.*AWS_ACCESS_KEY_ID") as caught:
        storage.require_bucket("storage.root", s3.address(f"{bucket}/x"))
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
    with pytest.raises(ConfigError, match="Could not connect to server"):
        storage.require_bucket("storage.root", "s3://bucket/x?endpoint_override=127.0.0.1:1&scheme=http")


def test_a_bucket_that_may_only_be_read_is_one_error(s3: S3) -> None:
    root = s3.address(f"{s3.bucket()}/out")
    storage.root.require_writable(root)
    assert storage.names(root) == []
    s3.hook = lambda request: request.startswith("PUT")
    with pytest.raises(ConfigError, match=r"^storage\.root=s3://[^?]* cannot be written to: .*ACCESS_DENIED"):
        storage.root.require_writable(root)
