"""A worker that hangs is noticed by its silence, named, and killed, so that Ray Train goes on from the last checkpoint.

Ray Train by itself waits ten minutes for a process that does not answer, and for ever where a collective operation
does not end. It says nothing meanwhile.
"""

import asyncio
import math
import time
from typing import Any, NamedTuple

import ray

FACTOR = 50
"""How many times the slowest step so far a step may take."""

_BEAT_S = 1.0
_ANSWER_S = 5.0


class Sign(NamedTuple):
    """The last sign of one worker."""

    node: str
    actor: Any
    step: int
    allowed_s: float
    """Seconds until the next sign."""
    at: float
    """When it came, by the watch's clock."""


class Pulse:
    """A worker's side: gives a sign at its steps, once a second at most."""

    def __init__(self, watch: Any, rank: int, least_s: float) -> None:
        self._watch, self._rank, self._least = watch, rank, least_s or math.inf
        self._node, self._actor = ray.util.get_node_ip_address(), ray.get_runtime_context().current_actor
        self._slowest = self._told = 0.0
        self._last: float | None = None

    def beat(self, step: int) -> None:
        """Say that work goes on."""
        now = time.monotonic()
        self._slowest = max(self._slowest, now - (self._last or now))
        if self._last is None or now - self._told >= _BEAT_S:
            self._told = now
            self._tell(step, max(self._least, FACTOR * self._slowest))
        self._last = now

    def rest(self, step: int) -> None:
        """Say that nothing is to be expected until the next beat: a checkpoint takes as long as its storage does."""
        self._last = None
        self._tell(step, math.inf)

    def _tell(self, step: int, allowed_s: float) -> None:
        self._watch.beat.remote(self._rank, self._node, self._actor, step, allowed_s)


class Watch:
    """An actor that hears the workers of one run."""

    def __init__(self, key: str, console: Any) -> None:
        self._key, self._console = key, console
        self._signs: dict[int, Sign] = {}
        self._named = False
        self._task: asyncio.Task[None] | None = None

    async def beat(self, rank: int, node: str, actor: Any, step: int, allowed_s: float) -> None:
        """Take in a sign."""
        self._signs[rank] = Sign(node, actor, step, allowed_s, time.monotonic())
        self._task = self._task or asyncio.create_task(self._look())

    async def forget(self) -> None:
        """Expect nothing of workers that are being replaced."""
        self._signs.clear()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            now = time.monotonic()
            late = {rank: sign for rank, sign in self._signs.items() if now - sign.at > sign.allowed_s}
            if not late:
                self._named = False
            elif not self._named:
                self._named = True
                await self._name(late, now)
            elif any(now - sign.at > 2 * sign.allowed_s for sign in late.values()):
                for sign in (await self._mute() or late).values():
                    ray.kill(sign.actor)
                self._signs.clear()

    async def _name(self, late: dict[int, Sign], now: float) -> None:
        """Say which workers hang: where some do not answer at all, the others only wait for them."""
        mute, left = await self._mute(), max(sign.allowed_s for sign in late.values())
        for rank, sign in (mute or late).items():
            await self._console.put.remote(
                f"worker {rank} of {self._key} on {sign.node} gave no sign for {now - sign.at:.0f} s, since step "
                f"{sign.step:,}{', and does not answer' if mute else ''}; after {left:.0f} s more "
                "(compute.watchdog_s) it is killed, and the run goes on from its last checkpoint"
            )

    async def _mute(self) -> dict[int, Sign]:
        """The workers whose process does not answer."""
        probes = {asyncio.ensure_future(sign.actor.__ray_ready__.remote()): rank for rank, sign in self._signs.items()}
        waiting = (await asyncio.wait(probes, timeout=_ANSWER_S))[1] if probes else ()
        return {probes[task]: self._signs[probes[task]] for task in waiting if probes[task] in self._signs}
