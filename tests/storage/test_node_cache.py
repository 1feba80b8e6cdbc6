"""A node's copies of token stores: made once, checked by digest, removed when they take too much."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from midibert_ray.storage import node_cache
from midibert_ray.storage.node_cache import COMPARED, COPY, NodeCache

MIB = 2**20


@pytest.fixture
def cache(tmp_path: Path) -> NodeCache:
    return NodeCache(tmp_path / "cache", 0)


class Builder:
    """Writes two files of a MiB together, and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, folder: Path) -> None:
        self.count += 1
        (folder / "a.npy").write_bytes(bytes(range(256)) * 3 * 1024)
        (folder / "b.npy").write_bytes(b"b" * (MIB // 4))


@pytest.fixture
def build() -> Builder:
    return Builder()


def names(cache: NodeCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir() if not path.name.startswith("."))


def keeping_times(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file and put its times back."""
    about = path.stat()
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def test_a_copy_is_made_once_and_compared_once(
    cache: NodeCache, build: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cache.get("x", MIB, build)
    assert sorted(path.name for path in first.folder.iterdir()) == ["a.npy", "b.npy", COMPARED, COPY]
    monkeypatch.setattr(node_cache.digests, "compare", None)  # reading it all again would fail
    assert cache.get("x", MIB, build).folder == first.folder
    assert build.count == 1


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("a.npy", lambda content: content[:-1], "a.npy has 786431 bytes instead of 786432"),
        ("a.npy", lambda content: content + b"x", "a.npy has 786433 bytes"),
        ("b.npy", lambda content: b"b" * 99 + b"c" + content[100:], "the content of b.npy is not what was written"),
        ("b.npy", None, "cannot be read: FileNotFoundError"),
        (COPY, None, "cannot be read: FileNotFoundError"),
        (COPY, lambda content: content[:50], "cannot be read: JSONDecodeError"),
        (COPY, lambda content: b"[1]", "cannot be read: AttributeError"),
    ],
)
def test_a_damaged_copy_is_noticed_and_made_again(
    cache: NodeCache,
    build: Builder,
    caplog: pytest.LogCaptureFixture,
    name: str,
    change: Callable[[bytes], bytes] | None,
    told: str,
) -> None:
    held = cache.get("x", MIB, build)
    before = {path.name: path.read_bytes() for path in held.folder.iterdir() if path.name != COMPARED}
    if change:
        keeping_times(held.folder / name, change)
    else:
        (held.folder / name).unlink()
    again = cache.get("x", MIB, build)
    assert told in caplog.text and build.count == 2
    assert {path.name: path.read_bytes() for path in again.folder.iterdir() if path.name != COMPARED} == before
    assert names(cache) == ["x"] and cache.get("x", MIB, build) and build.count == 2


def test_a_copy_is_compared_again_after_a_boot(
    cache: NodeCache, build: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = tmp_path / "boot_id"
    boot.write_text("first\n")
    monkeypatch.setattr(node_cache, "_BOOT", boot)
    folder = cache.get("x", MIB, build).folder
    keeping_times(folder / "a.npy", lambda content: b"\xff" + content[1:])
    (folder / COMPARED).write_text(json.dumps(node_cache._state(folder)))  # as if the disk had changed it by itself
    cache.get("x", MIB, build)
    assert build.count == 1, "while the node runs, a file that nothing has written to is trusted"
    boot.write_text("second\n")
    cache.get("x", MIB, build)
    assert build.count == 2


def test_the_longest_unused_copies_go(build: Builder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cache = NodeCache(tmp_path / "cache", 3.5 * MIB / 2**30)
    for name in ("a", "b", "c"):
        cache.get(name, MIB, build).close()
    cache.get("a", MIB, build).close()  # now b is the one
    cache.get("d", MIB, build).close()
    assert names(cache) == ["a", "c", "d"]
    in_use = cache.get("c", MIB, build), cache.get("a", MIB, build)
    cache.get("e", MIB, build).close()
    assert names(cache) == ["a", "c", "e"]
    assert "storage.cache_gib" not in caplog.text
    assert all(copy.folder.exists() for copy in in_use)


def test_copies_in_use_stay_and_it_is_said(build: Builder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = NodeCache(tmp_path / "cache", 1.5 * MIB / 2**30)
    held = cache.get("a", MIB, build)
    other = cache.get("b", MIB, build)
    assert names(cache) == ["a", "b"] and "those in use stay" in caplog.text
    held.close()
    other.close()
    cache.get("c", MIB, build)
    assert names(cache) == ["c"]


def test_one_that_is_larger_than_the_bound_is_kept_alone(
    build: Builder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = NodeCache(tmp_path / "cache", 0.5 * MIB / 2**30)
    cache.get("a", MIB, build).close()
    copy = cache.get("b", MIB, build)
    assert names(cache) == ["b"] and copy.folder.exists()
    assert "more than storage.cache_gib=0.000488281: this one alone is larger; raise it" in caplog.text


def test_a_bound_of_nothing_is_none(cache: NodeCache, build: Builder) -> None:
    for name in ("a", "b", "c"):
        cache.get(name, MIB, build).close()
    assert names(cache) == ["a", "b", "c"]


def test_copies_make_room_on_a_full_disk(build: Builder, small_disk: Path) -> None:
    cache = NodeCache(small_disk / "cache", 0)
    for name in ("a", "b", "c"):
        cache.get(name, MIB, build).close()
    assert names(cache) == ["b", "c"]


def test_what_is_not_the_caches_own_stays(build: Builder, tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, 0.1 * MIB / 2**30)
    for other in ("music", ".hidden.folder"):
        (tmp_path / other).mkdir()
        (tmp_path / other / "x").write_bytes(bytes(MIB))
    cache.get("a", MIB, build).close()
    cache.get("b", MIB, build).close()
    assert names(cache) == ["b", "music"] and (tmp_path / ".hidden.folder" / "x").exists()


def test_a_failed_build_leaves_nothing(cache: NodeCache, build: Builder) -> None:
    def failing(folder: Path) -> None:
        build(folder)
        raise ValueError("no store")

    with pytest.raises(ValueError, match="no store"):
        cache.get("x", MIB, failing)
    assert [path.name for path in cache.folder.iterdir()] == [".lock"]


def test_a_full_disk_is_named(cache: NodeCache) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"no room in storage\.cache=.* about 1 MiB; free some there") as caught:
        cache.get("x", MIB, full)
    assert caught.value.errno == errno.ENOSPC


PROCESS = """
import sys, time
from pathlib import Path
from midibert_ray.storage.node_cache import NodeCache

def build(folder):
    Path(sys.argv[2]).open("a").write("built\\n")
    (folder / "a.npy").write_bytes(bytes(2**20))
    time.sleep(float(sys.argv[4]))

copy = NodeCache(Path(sys.argv[1]), 0).get(sys.argv[3], 2**20, build)
print((copy.folder / "a.npy").stat().st_size, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(cache: NodeCache, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts a process that gets a copy, tells its size, and holds it until its input ends."""
    processes: list[subprocess.Popen[str]] = []

    def process(name: str = "x", build_s: float = 0.3) -> "subprocess.Popen[str]":
        words = [sys.executable, "-c", PROCESS, str(cache.folder), str(tmp_path / "built"), name, str(build_s)]
        processes.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield process
    for one in processes:
        one.kill()
        one.communicate()


@pytest.mark.slow
def test_processes_of_a_node_share_one_copy(
    start: Callable[..., "subprocess.Popen[str]"], cache: NodeCache, build: Builder, tmp_path: Path
) -> None:
    readers = [start() for _ in range(4)]
    assert [reader.stdout.readline() for reader in readers if reader.stdout] == [f"{MIB}\n"] * 4
    assert (tmp_path / "built").read_text() == "built\n"
    bounded = NodeCache(cache.folder, 0.5 * MIB / 2**30)
    for reader in readers[1:]:
        reader.communicate()
    bounded.get("y", MIB, build).close()
    assert names(cache) == ["x", "y"], "one process still has it"
    readers[0].kill()
    readers[0].communicate()
    bounded.get("z", MIB, build).close()
    assert names(cache) == ["z"], "the lock of a killed process is void"


@pytest.mark.slow
def test_a_killed_builder_leaves_nothing_that_stays(
    start: Callable[..., "subprocess.Popen[str]"], cache: NodeCache, build: Builder, tmp_path: Path
) -> None:
    builder = start(build_s=60)
    while not (tmp_path / "built").exists():
        assert builder.poll() is None
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    assert names(cache) == [] and len(list(cache.folder.iterdir())) == 2
    assert cache.get("x", MIB, build).folder.exists()
    assert sorted(path.name for path in cache.folder.iterdir()) == [".lock", "x"]
