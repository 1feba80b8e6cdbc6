"""A worker that gives no sign is named, then killed; one that still answers is told from one that does not."""

import asyncio
import math
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from midibert_ray.training import watchdog
from midibert_ray.training.watchdog import FACTOR, Pulse, Watch


class Console:
    """Takes lines as the real actor does."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.put = SimpleNamespace(remote=self._put)

    async def _put(self, line: str) -> None:
        self.lines.append(line)


def actor(answers: bool) -> Any:
    """The handle of a worker."""

    async def ready() -> None:
        await asyncio.sleep(0 if answers else 100)

    return SimpleNamespace(__ray_ready__=SimpleNamespace(remote=ready))


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(watchdog.ray, "kill", found.append)
    monkeypatch.setattr(watchdog, "_BEAT_S", 0.01)
    monkeypatch.setattr(watchdog, "_ANSWER_S", 0.05)
    return found


@pytest.mark.parametrize("answers", [True, False])
def test_the_worker_that_does_not_answer_is_named_and_killed(killed: list[Any], answers: bool) -> None:
    console, first, second = Console(), actor(True), actor(answers)

    async def run() -> None:
        watch = Watch("pretrain-a", console)
        await watch.beat(0, "10.0.0.1", first, 17, 0.2)
        await watch.beat(1, "10.0.0.2", second, 17, 0.2)
        await until(lambda: killed)

    asyncio.run(run())
    assert killed == ([first, second] if answers else [second])
    named = [line for line in console.lines if "worker 1 of pretrain-a on 10.0.0.2 gave no sign" in line]
    assert len(named) == 1 and "since step 17" in named[0] and ("does not answer" in named[0]) != answers
    assert any("worker 0 of" in line for line in console.lines) == answers


def test_a_worker_that_was_stopped_while_it_rested_is_named_by_those_that_wait_for_it(killed: list[Any]) -> None:
    console, first, second = Console(), actor(True), actor(False)

    async def run() -> None:
        watch = Watch("pretrain-a", console)
        await watch.beat(1, "10.0.0.2", second, 17, math.inf)
        await watch.beat(0, "10.0.0.1", first, 18, 0.2)
        await until(lambda: killed)

    asyncio.run(run())
    assert killed == [second]
    (line,) = console.lines
    assert "worker 1 of pretrain-a on 10.0.0.2 gave no sign" in line and "since step 17, and does not answer" in line


@pytest.mark.slow
def test_a_worker_that_goes_on_rests_or_is_replaced_is_left_alone(killed: list[Any]) -> None:
    console = Console()

    async def run() -> None:
        watch = Watch("pretrain-a", console)
        await watch.beat(0, "10.0.0.1", actor(True), 1, math.inf)
        await watch.beat(1, "10.0.0.2", actor(True), 1, 0.5)
        await until(lambda: console.lines)
        await watch.beat(1, "10.0.0.2", actor(True), 2, 100)
        await watch.beat(2, "10.0.0.3", actor(True), 2, 0.01)
        await watch.forget()
        await asyncio.sleep(1.5)

    asyncio.run(run())
    assert len(console.lines) == 1 and not killed


def test_the_time_that_is_allowed_grows_with_the_slowest_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now)
    monkeypatch.setattr(watchdog.ray, "get_runtime_context", Mock())
    monkeypatch.setattr(watchdog.ray.util, "get_node_ip_address", lambda: "10.0.0.1")
    watch = Mock()
    pulse = Pulse(watch, 3, 60)

    def told() -> list[tuple[int, float]]:
        calls = [(call.args[3], call.args[4]) for call in watch.beat.remote.call_args_list]
        watch.beat.remote.reset_mock()
        return calls

    for step, seconds in ((0, 0.0), (1, 0.5), (2, 2.0), (3, 1.0)):
        now += seconds
        pulse.beat(step)
    assert told() == [(0, 60), (2, FACTOR * 2.0), (3, FACTOR * 2.0)]
    pulse.rest(4)
    now += 1000
    pulse.beat(4)
    assert told() == [(4, math.inf), (4, FACTOR * 2.0)], "a checkpoint is no step"
    Pulse(watch, 0, 0).beat(1)
    assert told() == [(1, math.inf)], "0: never"
