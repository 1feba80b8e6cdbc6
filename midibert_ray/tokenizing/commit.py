"""A token store appears whole or not at all, on a disk as in a bucket.

A job writes its shards into the store's folder under names that carry its mark, and then the manifest, which names
them: one file, in one step, which makes a store of them, or puts the new store in the place of the old one. Shards that
no manifest names are removed after that. If two jobs publish one store, the later manifest stands.

As long as a job is at work, `writing.<mark>` stands beside its shards and keeps them from being removed. A mark tells
the host and the process, so that the next job sees what a killed one has left behind.
"""

import contextlib
import logging
import os
import re
import socket
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pyarrow import fs

from midibert_ray import storage
from midibert_ray.data.format import SHARDS, read_manifest, shard_names, write_manifest

logger = logging.getLogger(__name__)

_WRITING = "writing."
_OWN = re.compile(r"\.?(part-|writing\.)")  # with a dot: what a killed process was about to rename
_MARK = re.compile(r"[A-Za-z0-9-]+-\d+-[0-9a-f]{8}")
_FORGOTTEN = timedelta(days=1)  # a job on another host that has written nothing for so long is dead


def begin(uri: str) -> str:
    """Announce a job that writes shards for the store at a URI; gives the mark for their names."""
    mark = f"{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    storage.write_bytes(storage.join(uri, _WRITING + mark), b"")
    return mark


def publish(uri: str, manifest: dict[str, Any], shards: Iterable[str]) -> None:
    """Make some shards the store, in the place of the one that may stand there."""
    write_manifest(uri, {**manifest, SHARDS: sorted(shards)})


def end(uri: str, mark: str) -> None:
    """Remove what a job leaves to no store: the old shards if it has published, otherwise its own."""
    _remove_unnamed(uri, ended=mark)  # before the announcement goes: the next job goes on with it if this one is killed
    storage.remove(storage.join(uri, _WRITING + mark))
    _remove_unnamed(uri)  # again: a job that has published in between took this one's shards for those of a running one


def remove_leftovers(parent: str) -> None:
    """Remove what killed jobs have left in the stores below a folder."""
    system, path = storage.filesystem(parent)
    infos = system.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    announced = (info.path[len(path) :].strip("/") for info in infos if info.base_name.startswith(_WRITING))
    for store in sorted({name.rpartition("/")[0] for name in announced}):
        _remove_unnamed(storage.join(parent, store))


def _remove_unnamed(uri: str, ended: str = "") -> None:
    """Remove the shards that the manifest does not name and no running job is about to name."""
    system, path = storage.filesystem(uri)
    # The order of these three: whoever is at work at the first is still announced at the second, or has published
    # before it, so that the manifest names its shards.
    found = _own_files(system, path)
    running = _running(_own_files(system, path)) - {ended}
    try:
        named = set(shard_names(uri, read_manifest(uri)))
    except FileNotFoundError:
        named = set()
    except ValueError:
        return  # of another version of this package, which looks after it
    removed = [name for name in found if name not in named and _mark(name) not in running and name != _WRITING + ended]
    if removed:
        logger.info("removing %d files of %s that belong to no store, such as %s", len(removed), uri, removed[0])
    for name in removed:
        storage.remove(storage.join(uri, name))
    if storage.is_local(uri):
        with contextlib.suppress(OSError):  # something is left in it
            Path(storage.resolve(uri)).rmdir()


def _own_files(system: fs.FileSystem, path: str) -> dict[str, fs.FileInfo]:
    infos = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return {info.base_name: info for info in infos if info.is_file and _OWN.match(info.base_name)}


def _mark(name: str) -> str:
    """The mark of the job that wrote a file; nothing where it has none."""
    found = _MARK.search(name)
    return found.group() if found else ""


def _running(files: dict[str, fs.FileInfo]) -> set[str]:
    """The marks of the jobs that are at work, among those that were announced."""
    announced = {_mark(name) for name in files if name.startswith(_WRITING)}
    latest = {mark: max(info.mtime for name, info in files.items() if _mark(name) == mark) for mark in announced}
    return {mark for mark, time in latest.items() if not _is_dead(mark, time)}


def _is_dead(mark: str, latest: datetime) -> bool:
    """Whether a job has ended without a word, given the time of its latest file."""
    host, pid, _ = mark.rsplit("-", 2)
    if host != _host():
        return datetime.now(UTC) - latest > _FORGOTTEN
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's process
        return False
    return False


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
