"""Leases: of all processes on all nodes, one at a time works on a folder, on a disk or in a bucket.

    {folder}/lease.<host>-<pid>-<id>    a claim, which tells when it was made; its holder touches it every `BEAT_S`

Who wants a folder writes a claim and then lists the claims there. Alone, it holds the lease; if not, it withdraws and
tries again later. Of two, the later writer lists the claim of the earlier one, so that no two hold a lease at once
wherever a listing shows all that was written before: file systems of POSIX, S3, GCS. (pyarrow cannot create an object
on the condition that there is none.) No two claims have one name, so a claim that is removed late is never another's.

A claim is void when its process is gone, which is seen at once on the same machine, or when whoever waits has seen no
touch of it for `GONE_S` by its own clock. The clocks of two machines are not compared, but for one thing: a claim that
is a day old is void. A holder that was stopped for longer than `GONE_S` finds its claim removed and is told by
`Lease.check`, to be called before anything is published: between that and the publishing, two can still be at work.
"""

import contextlib
import hashlib
import os
import random
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pyarrow import fs

from midibert_ray.storage import files

BEAT_S = 5.0
"""Seconds between two touches of a claim."""
GONE_S = 60.0
"""Seconds without a touch after which a holder on another machine is taken for gone."""
LOOK_S = 1.0
"""Seconds between two looks of whoever waits."""
SAY_S = 60.0
"""Seconds between two reports of whoever waits."""

_CLAIM = re.compile(r"lease\.(?P<host>.+)-[0-9a-f]{8}-(?P<pid>\d+)-[0-9a-f]{8}")
_FORGOTTEN = timedelta(days=1)  # more than two clocks differ
_BOOT, _PROCESSES = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")


class LeaseLostError(RuntimeError):
    """The holder of a lease gave no sign for so long that another has taken over."""


@dataclass(frozen=True)
class Lease:
    """A folder that this process alone works on."""

    uri: str
    mark: str
    """It tells host and process, and is never used again."""

    @property
    def claim(self) -> str:
        """The URI of the claim."""
        return files.join(self.uri, f"lease.{self.mark}")

    def check(self) -> None:
        """Make sure that the lease is still held.

        Raises:
            LeaseLostError: where another has taken over.
        """
        if not files.exists(self.claim):
            raise LeaseLostError(f"another process has taken over {self.uri}, as this one was stopped for too long")

    def beat(self, end: threading.Event) -> None:
        """Touch the claim until `end` is set or the lease is lost."""
        while not end.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a bucket that does not answer now may do so the next time
                if not files.exists(self.claim):
                    return
                if files.is_local(self.claim):
                    os.utime(files.resolve(self.claim))
                else:  # one that is removed at this very moment is made again
                    files.write_bytes(self.claim, files.read_bytes(self.claim))


@contextlib.contextmanager
def lease(uri: str, *, what: str, report: Callable[[str], None]) -> Iterator[Lease]:
    """Hold the lease of a folder; wait as long as others hold it, and say so at once and every minute.

    Look again inside whether the work is still to be done. Do not nest: a process waits for itself as for any other.

    Args:
        uri: the folder; it is made where there is none, and removed if nothing is left in it.
        what: the work, as a report names it ("pre-training pretrain-1a2b").
        report: called with one line of text.

    Raises:
        OSError: where the folder cannot be listed or written to.
    """
    held = _acquire(uri, _Watch(what, report))
    end = threading.Event()
    beating = threading.Thread(target=held.beat, args=(end,), daemon=True)
    beating.start()
    try:
        yield held
    finally:
        end.set()
        beating.join()
        _withdraw(held)


def abandoned(parent: str) -> list[str]:
    """URIs of the folders directly below one in which only processes that are gone have left claims."""
    system, path = files.filesystem(parent)
    infos = system.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    claims = [(info.path[len(path) :].strip("/").rpartition("/")[0], info) for info in infos if _is_claim(info)]
    held = {folder for folder, info in claims if not _is_gone(info)}
    return [files.join(parent, folder) for folder in sorted({folder for folder, _ in claims} - held)]


def _acquire(uri: str, watch: "_Watch") -> Lease:
    while True:
        standing = _claims(uri)
        if void := next(filter(watch.finds_void, standing), None):
            files.remove(files.join(uri, void.base_name))
        elif standing:
            watch.tell(uri, standing[0])
            time.sleep(LOOK_S)
        else:
            mine = Lease(uri, f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
            with contextlib.suppress(FileNotFoundError):  # the last holder has just removed the empty folder
                files.write_bytes(mine.claim, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}".encode())
            if [info.base_name for info in _claims(uri)] == [files.basename(mine.claim)]:
                return mine
            _withdraw(mine)
            time.sleep(random.uniform(0, LOOK_S))  # two that came at the same time come again at different times


def _withdraw(mine: Lease) -> None:
    files.remove(mine.claim)
    if files.is_local(mine.uri):
        with contextlib.suppress(OSError):  # something is left in it
            Path(files.resolve(mine.uri)).rmdir()


@dataclass
class _Watch:
    """Others' claims, as a waiting process has seen them, and its own remarks on them."""

    what: str
    report: Callable[[str], None]
    seen: dict[str, tuple[int, float]] = field(default_factory=dict)
    """By claim: when it was touched by the storage's clock, nanoseconds, and when that was seen by this clock."""
    said: float = float("-inf")

    def finds_void(self, info: fs.FileInfo) -> bool:
        """Tell whether the holder of a claim is gone."""
        now = time.monotonic()
        if self.seen.get(info.base_name, (None, now))[0] != info.mtime_ns:
            self.seen[info.base_name] = info.mtime_ns, now
        gone = _is_gone(info) or now - self.seen[info.base_name][1] > GONE_S
        if gone:
            self.report(f"{self.what}: {_holder(info)} has ended without a word, taking over")
        return gone

    def tell(self, uri: str, info: fs.FileInfo) -> None:
        """Say once in a while who holds the lease."""
        if time.monotonic() - self.said <= SAY_S:
            return
        self.said, since = time.monotonic(), ""
        with contextlib.suppress(OSError):  # it has just ended
            since = f"since {files.read_bytes(files.join(uri, info.base_name)).decode(errors='replace')} UTC, "
        age = max(0.0, (datetime.now(UTC) - info.mtime).total_seconds())
        self.report(f"{self.what}: held by {_holder(info)} {since}last sign {age:.0f} s ago; waiting for its end")


def _claims(uri: str) -> list[fs.FileInfo]:
    system, path = files.filesystem(uri)
    try:
        infos = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    except FileNotFoundError:  # the last holder has removed the empty folder between pyarrow's two looks at it
        infos = []
    return sorted(filter(_is_claim, infos), key=lambda info: info.mtime_ns)


def _is_claim(info: fs.FileInfo) -> bool:
    return info.is_file and _CLAIM.fullmatch(info.base_name) is not None


def _holder(info: fs.FileInfo) -> str:
    return _CLAIM.sub(r"\g<host>:\g<pid>", info.base_name)


def _is_gone(info: fs.FileInfo) -> bool:
    """Tell whether the process of a claim is known to have ended; False where it may be at work."""
    machine, pid, _ = info.base_name.removeprefix("lease.").rsplit("-", 2)
    try:
        if machine == _machine():
            os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's process
        return False
    return bool(datetime.now(UTC) - info.mtime > _FORGOTTEN)


def _machine() -> str:
    """The host, and what tells apart those of one name: numbers of processes are compared within it alone."""
    boot = _BOOT.read_text() if _BOOT.exists() else ""
    processes = os.readlink(_PROCESSES) if _PROCESSES.exists() else ""  # a container has its own  # noqa: PTH115
    digest = hashlib.sha256(f"{boot}{processes}".encode()).hexdigest()[:8]
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) + f"-{digest}"
