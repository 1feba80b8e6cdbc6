"""One at a time works on a folder, on a disk and in a bucket; who comes second waits, says so, or takes over."""

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from midibert_ray import storage
from midibert_ray.storage import lease as leases

ROOT = Path(__file__).parents[2]

HOLD = """
import sys
from midibert_ray.storage.lease import lease
with lease(sys.argv[1], what="work", report=print):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(params=["disk", pytest.param("bucket", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of a folder that is not there yet."""
    if request.param == "disk":
        return str(tmp_path / "runs" / "a")
    s3 = request.getfixturevalue("s3")
    return str(s3.address(f"{s3.bucket()}/runs/a"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BEAT_S": 0.02, "LOOK_S": 0.01}.items():
        monkeypatch.setattr(leases, name, value)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def start(folder: str) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    """Starts processes that hold the lease until they read a line."""
    with contextlib.ExitStack() as stack:

        def begin() -> "subprocess.Popen[str]":
            command = [sys.executable, "-c", HOLD, folder]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            return process

        yield begin


def claim_of(folder: str, host: str, seconds_ago: float = 0) -> str:
    """A claim of a process on another machine; only a local one can be as old as one likes."""
    claim = storage.join(folder, f"lease.{host}-0123abcd-7-00000000")
    storage.write_bytes(claim, b"2026-01-01 00:00:00")
    if seconds_ago:
        os.utime(claim, (time.time() - seconds_ago,) * 2)
    return claim


def test_a_claim_stands_as_long_as_the_work_and_leaves_nothing(folder: str) -> None:
    with leases.lease(folder, what="work", report=pytest.fail) as held:
        assert storage.names(folder) == [storage.basename(held.claim)]
        held.check()
    assert storage.names(folder) == []
    assert not (storage.is_local(folder) and storage.exists(folder))


def test_what_was_made_stays(folder: str) -> None:
    with pytest.raises(KeyError), leases.lease(folder, what="work", report=pytest.fail):
        storage.write_bytes(storage.join(folder, "made"), b"")
        raise KeyError
    assert storage.names(folder) == ["made"]


def test_the_second_says_for_whom_it_waits_and_follows(
    folder: str, start: Callable[[], "subprocess.Popen[str]"], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start()
    monkeypatch.setattr(leases, "SAY_S", 0.1)

    def report(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            assert first.stdin is not None
            first.stdin.write("\n")
            first.stdin.flush()

    with leases.lease(folder, what="pre-training x", report=report) as held:
        assert storage.names(folder) == [storage.basename(held.claim)]
    expected = rf"pre-training x: held by .+:{first.pid} since 20..-..-.. ..:..:.. UTC, last sign \d+ s ago; waiting .*"
    assert len(said) >= 2 and all(re.fullmatch(expected, line) for line in said[:2]), "later the first may be leaving"


def test_who_is_killed_is_succeeded_at_once(
    folder: str, start: Callable[[], "subprocess.Popen[str]"], said: list[str]
) -> None:
    first = start()
    first.kill()
    first.wait()
    assert leases.abandoned(folder.replace("runs/a", "runs")) == [folder]
    with leases.lease(folder, what="work", report=said.append) as held:
        assert storage.names(folder) == [storage.basename(held.claim)]
    assert len(said) == 1 and re.fullmatch(rf"work: .+:{first.pid} has ended without a word, taking over", said[0])


def test_a_holder_elsewhere_is_gone_when_its_claim_is_not_touched(
    folder: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen by the waiter's own clock: those of other machines may be hours wrong."""
    claim_of(folder, "far-away", 7200 if storage.is_local(folder) else 0)
    monkeypatch.setattr(leases, "GONE_S", 0.3)
    began = time.monotonic()
    with leases.lease(folder, what="work", report=said.append):
        assert time.monotonic() - began >= 0.3
    assert "held by far-away:7 since 2026-01-01" in said[0]
    assert said[1] == "work: far-away:7 has ended without a word, taking over"


def test_a_claim_that_is_touched_is_waited_for(folder: str, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever time the touches tell: here a clock that is two hours late."""
    if not storage.is_local(folder):
        pytest.skip("a bucket's own clock stamps all objects, in whole seconds")
    claim = claim_of(folder, "far-away", 7200)
    monkeypatch.setattr(leases, "GONE_S", 0.3)
    monkeypatch.setattr(leases, "SAY_S", 0.2)

    def report(line: str) -> None:
        said.append(line)
        if len(said) == 5:
            storage.remove(claim)

    looks = iter(range(10**6))

    def touched(_: float) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.utime(claim, (time.time() - 7200 + next(looks),) * 2)

    monkeypatch.setattr(leases.time, "sleep", touched)
    with leases.lease(folder, what="work", report=report):
        pass
    assert len(said) == 5 and all("waiting for its end" in line for line in said)


def test_a_claim_that_is_a_day_old_is_void(tmp_path: Path) -> None:
    claim_of(str(tmp_path / "old"), "far-away", 2 * 86400)
    claim_of(str(tmp_path / "new"), "far-away", 7200)
    assert leases.abandoned(str(tmp_path)) == [str(tmp_path / "old")]


def test_who_was_succeeded_is_told_and_does_not_come_back(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 1e6)
    with leases.lease(folder, what="work", report=pytest.fail) as held:
        storage.write_bytes(storage.join(folder, "made"), b"")
        storage.remove(held.claim)
        with pytest.raises(leases.LeaseLostError, match="another process has taken over"):
            held.check()
        monkeypatch.setattr(leases, "BEAT_S", 0.01)
        held.beat(threading.Event())  # ends by itself
    assert storage.names(folder) == ["made"]


def test_the_claim_is_touched(folder: str) -> None:
    system, path = storage.filesystem(folder)
    with leases.lease(folder, what="work", report=pytest.fail) as held:
        first = system.get_file_info(f"{path}/{storage.basename(held.claim)}").mtime_ns
        content = storage.read_bytes(held.claim)
        deadline = time.monotonic() + 30
        while system.get_file_info(f"{path}/{storage.basename(held.claim)}").mtime_ns == first:
            assert time.monotonic() < deadline
        assert storage.read_bytes(held.claim) == content


def test_no_two_at_once(folder: str) -> None:
    inside, most, done = [0], [0], []

    def work() -> None:
        for _ in range(3):
            with leases.lease(folder, what="work", report=lambda line: None):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.002)
                inside[0] -= 1
                done.append(1)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most[0], len(done)) == (1, 15)
    assert storage.names(folder) == []
    assert not (storage.is_local(folder) and storage.exists(folder))
