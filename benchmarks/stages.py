"""Clocks around the functions of a job, and the CPU seconds of its processes; needs psutil alone."""

import functools
import importlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Places = dict[str, str]
"""`module:attribute` -> stage."""


_plain: dict[str, Callable[..., Any]] = {}
"""The functions of this process that have clocks around them."""


def resolve(place: str) -> tuple[Any, str]:
    """The module or class of a place, and the name of its attribute; raises AttributeError where it is not there."""
    module, _, path = place.partition(":")
    *within, name = path.split(".")
    holder: Any = importlib.import_module(module)
    try:
        holder = functools.reduce(getattr, within, holder)
        getattr(holder, name)
    except AttributeError as error:
        raise AttributeError(f"{place}: {error}; name the function that does its work now") from error
    return holder, name


class Clock:
    """Seconds and CPU seconds by stage, each counted once; of one thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._open: list[str] = []
        self._last = (0.0, 0.0)

    def _charge(self) -> None:
        now = (time.perf_counter(), time.thread_time())
        if self._open:
            for at in (0, 1):
                self.seconds[self._open[-1]][at] += now[at] - self._last[at]
        self._last = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge what passes to a stage, but for the stages within it."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def watch(self, places: Places) -> None:
        """Put this clock around functions; only the thread that calls this is counted."""
        owner = threading.get_ident()
        for place, stage in places.items():
            holder, name = resolve(place)
            plain = _plain.setdefault(place, getattr(holder, name))  # a later clock takes the place of an earlier one
            setattr(holder, name, self._around(plain, stage, owner))

    def _around(self, function: Callable[..., Any], stage: str, owner: int) -> Callable[..., Any]:
        @functools.wraps(function, updated=())
        def timed(*args: Any, **settings: Any) -> Any:
            if threading.get_ident() != owner:
                return function(*args, **settings)
            with self.stage(stage):
                return function(*args, **settings)

        return timed


class Processes:
    """The CPU seconds of this process and all below it, by kind, sampled while it is open."""

    def __init__(self) -> None:
        self.found: dict[int, tuple[str, float]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Processes":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        own = psutil.Process()
        while not self._over.wait(0.5):
            for process in [own, *own.children(recursive=True)]:
                try:
                    used, words = process.cpu_times(), process.cmdline()
                except psutil.Error:
                    continue
                name = "driver" if process == own else _kind(words)
                if name != "an idle worker" or process.pid not in self.found:
                    self.found[process.pid] = (name, used.user + used.system)

    def table(self) -> dict[str, tuple[int, float]]:
        """Kind -> processes of it, and their CPU seconds together."""
        kinds: dict[str, list[float]] = defaultdict(list)
        for name, seconds in self.found.values():
            kinds[name].append(seconds)
        return {name: (len(seconds), sum(seconds)) for name, seconds in kinds.items()}


def _kind(words: Sequence[str]) -> str:
    """The kind of a process by its command line."""
    line = " ".join(words)
    if line.startswith("ray::"):
        name = line.removeprefix("ray::").split(".")[0].split("(")[0].strip()
        return "an idle worker" if name == "IDLE" else name
    known = ("gcs_server", "raylet", "log_monitor", "dashboard", "monitor", "runtime_env", "default_worker", "sandbox")
    return next((name for name in known if name in line), "others")
