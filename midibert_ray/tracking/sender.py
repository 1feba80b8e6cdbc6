"""A single process sends the records of a spool, in order, as long as there is a server that takes them.

The sender names itself in a file of the spool, which it writes anew every few seconds. Another process takes over when
it has seen no change for a while: that needs neither locks, which object stores and some network file systems lack,
nor clocks that agree. Should two processes ever send for a moment, they send the same records, each of which may
arrive twice without harm.
"""

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from midibert_ray.tracking.spool import REFUSED, Record, RejectedError, Spool, UnreachableError, batches, points

logger = logging.getLogger(__name__)

STALE_S = 20.0  # without a sign of life after which a sender is taken to be dead
BEAT_S = 4.0  # between two signs of life of a sender
SETTLE_S = 1.0  # to see whether another process took the lease at the same moment
POLL_S = 2.0  # between two looks into the spool, each of which is a request where it lies in a bucket
LONGEST_PAUSE_S = 10.0  # the same during an outage
PATIENCE_S = 30.0  # that the end of a job waits without progress; longer than STALE_S

Send = Callable[[Sequence[Record]], None]
"""Writes points of one run, or a single other record; raises UnreachableError, or RejectedError where no try helps."""


class Lease:
    """The right to send, which one process has at a time; one that is dead or hangs loses it."""

    _FILE, _FREE = "sender", b"nobody"

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._mine = b""
        self._seen: bytes | None = None
        self._since = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def held(self) -> bool:
        """True where this process has the lease: as long as its thread gives signs of life."""
        return self._thread is not None and self._thread.is_alive()

    def take(self) -> bool:
        """Take the lease, if nobody else has it; lasts `SETTLE_S` where it was free."""
        content = self._spool.get(self._FILE)
        if content != self._seen:
            self._seen, self._since = content, time.monotonic()
        if content not in (None, self._FREE) and time.monotonic() - self._since < STALE_S:
            return False
        self._beat()
        time.sleep(SETTLE_S)
        if self._spool.get(self._FILE) != self._mine:
            return False
        self._stop.clear()
        self._thread = threading.Thread(target=self._keep, name="tracking-lease", daemon=True)
        self._thread.start()
        return True

    def release(self) -> None:
        """Leave the lease to others, at once."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        if self._spool.get(self._FILE) == self._mine:
            # Not removed: a network file system shows a new content of an old file sooner than a new file.
            self._spool.put(self._FILE, self._FREE)

    def _beat(self) -> None:
        self._mine = f"process {os.getpid()} on {socket.gethostname()}, {uuid.uuid4().hex}".encode()
        self._spool.put(self._FILE, self._mine)

    def _keep(self) -> None:
        with suppress(OSError):  # it must not send when it cannot say that it does
            while not self._stop.wait(BEAT_S) and self._spool.get(self._FILE) == self._mine:
                self._beat()


class Sender:
    """Sends the records of a spool; one line says that an outage has begun, and one that it is over."""

    def __init__(self, spool: Spool, connect: Callable[[], Send], server: str) -> None:
        """`connect` makes what sends, anew whenever something may have been sent that the old one does not know of."""
        self.spool = spool
        self._lease = Lease(spool)
        self._connect = connect
        self._server = server
        self._send: Send | None = None
        self._turn = threading.Lock()
        self._problem: UnreachableError | None = None
        self._since = 0.0  # when the outage began, if there is one
        self._late = 0
        self._rejected: set[str] = set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send in a thread while the context is open."""
        stop = threading.Event()

        def follow() -> None:
            while not stop.wait(LONGEST_PAUSE_S if self._problem else POLL_S):
                self.step()

        thread = threading.Thread(target=follow, name="tracking", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def drain(self, patience_s: float) -> list[str]:
        """Send all records now in the spool; returns those left after `patience_s` seconds without progress.

        Progress is a record that has gone, be it sent from here or from another process. An outage that has lasted so
        long already is given one more try.
        """
        left, since = self.spool.names(), self._since if self._problem else time.monotonic()
        while left and not self.step():
            fewer = sorted(set(left) & set(self.spool.names()))
            if len(fewer) < len(left):
                left, since = fewer, time.monotonic()
            elif time.monotonic() - since > patience_s:
                return left
            time.sleep(POLL_S)
        return []

    def close(self) -> None:
        """Leave the sending to other processes."""
        self._lease.release()

    def step(self) -> bool:
        """Send all records now in the spool, if no other process does; returns whether all have arrived."""
        with self._turn:
            return self._step()

    def _step(self) -> bool:
        try:
            done = self._round()
        except UnreachableError as error:
            self.fail(error)
            return False
        except OSError as error:
            self.fail(UnreachableError(f"records cannot be read or removed: {error}"))
            return False
        if done and self._problem:
            logger.warning("%s answers again: %s points arrived late", self._server, f"{self._late:,}")
            self._problem = None
        return done

    def fail(self, error: UnreachableError) -> None:
        """Note that the server cannot be reached, and say so if that is news."""
        self._send = None
        if type(self._problem) is not type(error):
            logger.warning("%s; what is recorded waits in %s, and work goes on", error, self.spool.uri)
        if self._problem is None:
            self._late, self._since = 0, time.monotonic()
        self._problem = error

    def _round(self) -> bool:
        names = self.spool.names()
        if names and not self._lease.held:
            self._send = None
            if not self._lease.take():
                return False
            names = self.spool.names()
        for batch in batches(names):
            if not self._lease.held:  # another process sends now
                return False
            self._deliver(self.spool.read(batch))
        return True

    def _deliver(self, records: Mapping[str, Record]) -> None:
        """Send records that go together, and remove them, or set aside those that the server will not take."""
        if not records:
            return
        self._send = self._send or self._connect()
        try:
            self._send(list(records.values()))
        except RejectedError as error:
            for name, record in records.items():
                if len(records) > 1:
                    self._deliver({name: record})
                    continue
                if record.run not in self._rejected:  # said once a run, as the rest of it may fare the same
                    kept = f"{self.spool.uri}/{REFUSED}"
                    logger.warning("a record of %s was not taken, and is kept in %s: %s", record.run, kept, error)
                self._rejected.add(record.run)
                self.spool.set_aside(name)
            return
        self._late += points(records)
        for name in records:
            self.spool.remove(name)
