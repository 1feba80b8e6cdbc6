"""Records in a folder: in order, sent by one process at a time, and never lost."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from pyarrow import fs

from midibert_ray import storage
from midibert_ray.tracking import sender, spool
from midibert_ray.tracking.sender import Sender
from midibert_ray.tracking.spool import Record, RejectedError, Spool, UnreachableError, batches


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"STALE_S": 1.0, "BEAT_S": 0.05, "SETTLE_S": 0.02, "POLL_S": 0.01, "LONGEST_PAUSE_S": 0.02}
    for name, value in times.items():
        monkeypatch.setattr(sender, name, value)


@pytest.fixture(params=["local", "object store"])
def box(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    """A spool on a disk, and in a store that pyarrow keeps in memory."""
    if request.param == "local":
        return Spool(str(tmp_path / "spool"))
    memory = fs.FileSystem.from_uri("mock:///")[0]
    memory.create_dir(f"spool/{spool.REFUSED}")  # a bucket needs no folders
    monkeypatch.setattr(storage.files, "filesystem", lambda uri: (memory, uri.removeprefix("mock://")))
    return Spool("mock://spool")


def record(number: int, run: str = "a", points: int = 1) -> Record:
    return Record(run, points, {"number": number})


class Desk:
    """Takes what is sent, as far as it is open."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.calls = 0
        self.trouble: UnreachableError | None = None
        self.poison: set[int] = set()

    def take(self, records: Sequence[Record]) -> None:
        self.calls += 1
        if self.trouble:
            raise self.trouble
        numbers = [item.content["number"] for item in records]
        if self.poison & set(numbers):
            raise RejectedError("no such curve")
        self.taken += numbers

    def sender(self, box: Spool) -> Sender:
        return Sender(box, lambda: self.take, "the desk")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_written_is_sent_once_and_in_order(box: Spool) -> None:
    desk = Desk()
    for number in range(60):
        box.append(record(number, points=1 if number % 7 else 0))
    assert spool.points(box.names()) == sum(1 for number in range(60) if number % 7)
    one = desk.sender(box)
    assert one.step()
    assert desk.taken == list(range(60))
    assert box.names() == [] and one.step()
    one.close()


def test_a_process_writes_behind_those_before_it_whatever_its_clock_says(
    box: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: clock() + 10**13)  # a node that is hours ahead
    box.append(record(1))
    box.append(record(2))
    monkeypatch.setattr(time, "time_ns", clock)
    box._last = 0  # as in another process
    box.append(record(3))
    assert [item.content["number"] for item in box.read(box.names()).values()] == [1, 2, 3]


def test_points_of_a_run_go_together_and_all_else_alone(tmp_path: Path) -> None:
    box = Spool(str(tmp_path))
    written = [("parent", 0), ("a", 0), ("a", 4), ("b", 0), ("a", 4), ("b", 2), ("a", 4), ("a", 0), ("a", 4)]
    for number, (run, points) in enumerate(written):
        box.append(record(number, run, points))
    found = [[item.content["number"] for item in box.read(batch).values()] for batch in batches(box.names(), limit=2)]
    assert found == [[0], [1], [2, 4], [6], [7], [8], [3], [5]]


def test_an_outage_is_said_once_and_so_is_its_end(box: Spool, caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    one = desk.sender(box)
    desk.trouble = UnreachableError("the desk is closed")
    for number in range(20):
        box.append(record(number, points=3))
    with one.running():
        wait_for(lambda: desk.calls > 5)
        assert len(box.names()) == 20
        desk.trouble = None
        wait_for(lambda: not box.names())
        box.append(record(20))
        wait_for(lambda: not box.names())
    one.close()
    assert desk.taken == list(range(21))
    lines = [line.message for line in caplog.records]
    assert lines == [
        f"the desk is closed; what is recorded waits in {box.uri}, and work goes on",
        "the desk answers again: 60 points arrived late",
    ]


def test_what_is_refused_does_not_hold_up_the_rest(box: Spool, caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    desk.poison = {3, 4, 11}
    for number in range(12):
        box.append(record(number, run="a" if number < 10 else "b"))
    one = desk.sender(box)
    assert one.step()
    assert desk.taken == [number for number in range(12) if number not in desk.poison]
    place = f"{box.uri}/refused"
    assert [line.message for line in caplog.records] == [
        f"a record of {run} was not taken, and is kept in {place}: no such curve" for run in ("a", "b")
    ]
    desk.poison = {4}
    box.bring_back()
    assert len(box.names()) == 3
    assert one.step()
    assert desk.taken[-2:] == [3, 11]
    one.close()


def test_a_record_that_was_cut_off_is_set_aside(box: Spool) -> None:
    box.append(record(1))
    (name,) = box.names()
    box.append(record(2))
    box.put(name, b'{"run": "a", "poi')
    desk = Desk()
    assert desk.sender(box).step()
    assert desk.taken == [2]
    assert box.get(f"{spool.REFUSED}/{name}")


def test_one_process_sends_and_the_next_takes_over(box: Spool) -> None:
    first, second = Desk(), Desk()
    one, two = first.sender(box), second.sender(box)
    box.append(record(1))
    assert one.step()
    box.append(record(2))
    assert not two.step()
    for _ in range(3):
        before = box.get("sender")
        while box.get("sender") == before:
            time.sleep(sender.BEAT_S)
        two._lease._since -= 2 * sender.STALE_S  # as if so long had passed
        assert not two.step(), "the first one is alive"
    one.close()
    assert two.step()
    assert (first.taken, second.taken) == ([1], [2])
    two.close()


def test_a_dead_sender_is_replaced(box: Spool, caplog: pytest.LogCaptureFixture) -> None:
    dead, alive = Desk(), Desk()
    one, two = dead.sender(box), alive.sender(box)
    box.append(record(1))
    assert one.step()
    one._lease._stop.set()  # as if its process had been killed
    one._lease._thread.join()
    for number in range(2, 6):
        box.append(record(number))
    assert not two.step(), "it may be alive"
    assert two.drain(patience_s=10 * sender.STALE_S) == []
    assert alive.taken == [2, 3, 4, 5]
    box.append(record(6))
    assert not one.step(), "it finds that it has been replaced"
    two.close()


def test_waiting_for_another_process_ends(box: Spool) -> None:
    desk = Desk()
    one = desk.sender(box)
    desk.trouble = UnreachableError("closed")
    box.append(record(1))
    assert one.drain(patience_s=0.1) == box.names() != []
    one.close()
    assert box.get("sender") == b"nobody"


def test_an_outage_that_has_lasted_long_enough_is_not_waited_for(box: Spool, caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    one = desk.sender(box)
    desk.trouble = UnreachableError("closed")
    box.append(record(1))
    assert not one.step()
    one._since -= 60  # as if that was a minute ago
    began = time.monotonic()
    assert one.drain(patience_s=50) == box.names() != []
    assert desk.calls == 2 and time.monotonic() - began < 40
    desk.trouble = None
    assert one.drain(patience_s=50) == []
    one.close()


def test_nobody_waits_for_what_others_write_in_the_meantime(box: Spool) -> None:
    """Another job sends, and there is always something new of its own."""
    desk, other = Desk(), Desk()
    busy, one = other.sender(box), desk.sender(box)
    box.append(record(0))
    assert busy.step()
    for number in range(1, 4):
        box.append(record(number))

    def work() -> bool:
        box.append(record(100 + len(other.taken)))
        busy.step()
        box.append(record(200 + len(other.taken)))
        return False

    one.step = work  # type: ignore[method-assign]
    assert one.drain(patience_s=60) == []
    assert box.names() and desk.calls == 0
    busy.close()


def test_a_storage_that_fails_is_an_outage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    desk, box = Desk(), Spool(str(tmp_path / "spool"))
    box.append(record(1))
    one = desk.sender(box)
    assert one.step()
    place = tmp_path / "spool"
    place.rename(tmp_path / "away")
    place.write_text("no folder")
    assert not one.step()
    place.unlink()
    (tmp_path / "away").rename(place)
    box.append(record(2))
    assert one.drain(patience_s=20 * sender.STALE_S) == []
    assert desk.taken == [1, 2]
    assert "records cannot be read or removed" in caplog.text
    one.close()
