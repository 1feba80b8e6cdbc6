"""Copies of token stores on a node: made once, shared by its processes, checked by digest, bounded in size.

    {folder}/<name>/                         a copy; who reads it holds a shared lock on this folder
    {folder}/<name>/midibert-copy.json       size and SHA-256 of every file of the copy, written last
    {folder}/<name>/midibert-compared.json   the files as they were when they were last compared with these
    {folder}/.lock                           held by the one process that makes, compares or removes copies

A copy is compared with its digests, which means to read all of it, when it is opened for the first time since the
node has booted, and whenever one of its files is not the one that was compared (size, times, inode). So what a crash
of the node left half-written is noticed, and what anything writes to a file; not what a disk forgets between boots.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from midibert_ray import storage
from midibert_ray.storage import digests
from midibert_ray.storage.files import UNFINISHED

logger = logging.getLogger(__name__)

COPY, COMPARED = "midibert-copy.json", "midibert-compared.json"
_REMOVING = ".being-removed"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Copy:
    """A copy that is there, and stays until `close` is called or this object is gone; `NodeCache.get` makes one."""

    def __init__(self, folder: Path, handle: int) -> None:
        """Take over the handle of a folder that holds its lock."""
        self.folder = folder
        self.close = weakref.finalize(self, os.close, handle)


@dataclass(frozen=True)
class NodeCache:
    """The copies in one folder, which must lie on a disk of the node."""

    folder: Path
    gib: float
    """GiB that copies may take together; 0: as much as the disk holds."""

    def get(self, name: str, size: int, build: Callable[[Path], None]) -> Copy:
        """The copy of a name, which names its content; made where there is none, and again where it is damaged.

        Args:
            name: of the copy's folder.
            size: bytes that the copy will take, roughly.
            build: writes the files into an empty folder; what it raises is passed on.

        Raises:
            OSError: where the disk is full, or nothing can be written there.
        """
        copy = self._open(name)
        if copy is None or not _is_compared(copy.folder):
            if copy:
                copy.close()
            with self._alone():
                self._ensure(name, size, build)
                copy = self._open(name)
        assert copy is not None  # only who holds the lock of the cache removes a copy
        return copy

    def _open(self, name: str) -> Copy | None:
        """The copy of a name with a shared lock on it; None where there is none, or it is being removed."""
        folder = self.folder / name
        with contextlib.ExitStack() as stack:
            try:
                handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if not os.path.samestat(os.fstat(handle), folder.stat()):
                    return None
                os.utime(handle)  # the last use, by which `_make_room` goes
            except (FileNotFoundError, BlockingIOError):
                return None
            stack.pop_all()
        return Copy(folder, handle)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of the cache; the kernel frees it when its holder dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _ensure(self, name: str, size: int, build: Callable[[Path], None]) -> None:
        """Make sure that the copy of a name is there and sound; needs the lock."""
        folder = self.folder / name
        for leftover in (*self.folder.glob(f".*{UNFINISHED}"), *self.folder.glob(f".*{_REMOVING}")):
            shutil.rmtree(leftover)  # of a process that was killed
        if folder.exists() and not _is_compared(folder) and (problem := _problem(folder)):
            logger.warning("the copy %s is made again: %s", folder, problem)
            self._remove(folder)
        if not folder.exists():
            self._make_room(size)
            self._make(folder, size, build)
        storage.write_bytes(str(folder / COMPARED), json.dumps(_state(folder)).encode())

    def _make(self, folder: Path, size: int, build: Callable[[Path], None]) -> None:
        try:
            with storage.whole_folder(folder) as building:
                build(building)
                noted = json.dumps(digests.of_folder(building), indent=1)
                storage.write_bytes(str(building / COPY), noted.encode())
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise OSError(
                error.errno,
                f"no room in storage.cache={self.folder} for a copy of a token store, about {size / 2**20:,.0f} MiB; "
                "free some there, or set storage.cache to a larger disk",
            ) from error

    def _make_room(self, size: int) -> None:
        """Remove copies that nobody uses, the longest unused first, until so many bytes more fit."""
        # The bound is on what copies take, but others write to the same disk: it may be full before the bound is met.
        # A copy that cannot be evicted stays in the sum, as its memory maps keep its blocks on the disk.
        copies = sorted(
            (path.parent for path in self.folder.glob(f"*/{COPY}")), key=lambda path: path.stat().st_mtime_ns
        )
        sizes = {copy: sum(path.stat().st_size for path in copy.iterdir()) for copy in copies}
        for copy in copies:
            fits = not self.gib or sum(sizes.values()) + size <= self.gib * 2**30
            if fits and shutil.disk_usage(self.folder).free >= size:
                return
            if self._evict(copy):
                del sizes[copy]
        total = sum(sizes.values()) + size
        if self.gib and total > self.gib * 2**30:
            logger.warning(
                "the copies of token stores in %s will take %.2f GiB, more than storage.cache_gib=%g: %s; raise it, if "
                "the disk is larger",
                *(self.folder, total / 2**30, self.gib),
                "those in use stay" if sizes else "this one alone is larger",
            )

    def _evict(self, copy: Path) -> bool:
        """Remove a copy unless it is in use."""
        handle = os.open(copy, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            logger.info("removing %s, the copy that was not used for longest, to make room", copy)
            self._remove(copy)
        except BlockingIOError:
            return False
        finally:
            os.close(handle)
        return True

    def _remove(self, copy: Path) -> None:
        gone = copy.with_name(f".{copy.name}{_REMOVING}")
        copy.rename(gone)  # who has it mapped keeps what it has
        shutil.rmtree(gone)


def _problem(folder: Path) -> str | None:
    """Why a copy cannot be used; None where it is what its digests say."""
    try:
        digests.compare(fs.LocalFileSystem(), str(folder), _read(folder / COPY))
    except storage.DamagedError as error:
        return str(error)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read: {error!r}"
    return None


def _is_compared(folder: Path) -> bool:
    """Tell whether the files of a copy are those that were compared with its digests, since this boot."""
    try:
        return bool(_read(folder / COMPARED) == _state(folder))
    except (OSError, ValueError):
        return False


def _state(folder: Path) -> dict[str, Any]:
    """Values that change when a file is touched, and with every boot, since when the kernel has watched the files."""
    boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
    files: dict[str, list[int]] = {}
    for path in sorted(folder.iterdir()):
        if path.name != COMPARED and not path.name.startswith("."):
            about = path.stat()
            files[path.name] = [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]
    return {"boot": boot, "files": files}


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())
