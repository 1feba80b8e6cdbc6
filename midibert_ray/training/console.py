"""Progress lines of other processes, printed by the driver.

Ray can echo everything that its processes write, but then a dozen libraries talk at once. Jobs switch that
off and pass on only the lines meant for a reader; all the rest stays in Ray's own log files.
"""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

logger = logging.getLogger(__name__)

HEAD = {"node:__internal_head__": 0.001}
"""A place on the head node, which every Ray cluster has: an actor there is not lost with a spot node."""


class _Lines:
    """An actor that holds lines until the driver fetches them."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()

    async def put(self, *lines: str | None) -> None:
        for line in lines:
            await self._lines.put(line)

    async def get(self) -> str | None:
        return await self._lines.get()


@contextmanager
def open_console() -> Iterator[Any]:
    """Print lines of any process in the driver's log, in order; at the end also those still on their way.

    Yields:
        an actor handle that every process may hold; `console.put.remote(*lines)` does not wait, and the
        lines of one call stay in order; calls may overtake each other.
    """
    console: Any = ray.remote(num_cpus=0, resources=HEAD)(_Lines).remote()

    def follow() -> None:
        while (line := ray.get(console.get.remote())) is not None:
            logger.info(line)

    thread = threading.Thread(target=follow, name="console", daemon=True)
    thread.start()
    try:
        yield console
    finally:
        console.put.remote(None)
        thread.join(timeout=10)
