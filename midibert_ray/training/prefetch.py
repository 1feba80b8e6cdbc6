"""Batches made ahead of time, by a thread beside the training loop."""

import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Made = TypeVar("Made")

AHEAD = 2
"""Batches that are made, or being made, beside the one in use."""


class Prefetcher(Generic[Key, Made]):
    """Makes what is asked for next before it is.

    `make` is a function of its key alone, so that nothing depends on what was made when; its errors are raised by
    `take`. `after` tells the key that follows another, None behind the last.
    """

    def __init__(self, make: Callable[[Key], Made], after: Callable[[Key], Key | None]) -> None:
        self._make, self._after = make, after
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._made: deque[tuple[Key, Future[Made]]] = deque()
        self.waited = self.worked = 0.0
        """Seconds that `take` waited, and that the thread was at work, since `restart`."""

    def restart(self) -> None:
        """Count seconds from here on."""
        self.waited = self.worked = 0.0

    def take(self, key: Key) -> Made:
        """Give the batch of a key; it is made now, where another one was expected."""
        if not self._made or self._made[0][0] != key:
            self._made.clear()
            self._begin(key)
        while len(self._made) <= AHEAD and (following := self._after(self._made[-1][0])) is not None:
            self._begin(following)
        began = time.perf_counter()
        made = self._made.popleft()[1].result()
        self.waited += time.perf_counter() - began
        return made

    def _begin(self, key: Key) -> None:
        self._made.append((key, self._thread.submit(self._timed, key)))

    def _timed(self, key: Key) -> Made:
        began = time.perf_counter()
        made = self._make(key)
        self.worked += time.perf_counter() - began
        return made
