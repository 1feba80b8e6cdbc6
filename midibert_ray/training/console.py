"""Progress lines of other processes, printed by the driver.

Ray can echo everything that its processes write, but then a dozen libraries talk at once. Jobs switch that
off and pass on only the lines meant for a reader; all the rest stays in Ray's own log files.
"""

import asyncio
import logging
import threading
from types import TracebackType
from typing import Any

import ray

logger = logging.getLogger(__name__)

HEAD = {"node:__internal_head__": 0.001}
"""A place on the head node, which every Ray cluster has: what stands there is not lost with a spot node."""


class _Lines:
    """An actor that holds lines until the driver fetches them."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()

    async def put(self, line: str | None) -> None:
        await self._lines.put(line)

    async def get(self) -> str | None:
        return await self._lines.get()


class Console:
    """While it is open, lines put by any process that holds `console.handle` appear in the driver's log, in order."""

    def __init__(self) -> None:
        self.handle: Any = ray.remote(num_cpus=0, resources=HEAD)(_Lines).remote()
        """Actor handle; `handle.put.remote(line)` does not wait."""
        self._thread = threading.Thread(target=self._follow, name="console", daemon=True)

    def __enter__(self) -> "Console":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Print what is still on its way, and stop."""
        self.handle.put.remote(None)
        self._thread.join(timeout=10)

    def _follow(self) -> None:
        while (line := ray.get(self.handle.get.remote())) is not None:
            logger.info(line)
