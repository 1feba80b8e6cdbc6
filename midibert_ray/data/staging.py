"""A token store appears whole or not at all.

A job writes into a hidden folder beside the address, `.<store>.<host>.<pid>.<random>`, and publishes it when
the manifest is in it: by a rename, or, in an object store, which has none, by copying the manifest last.
What a killed job leaves behind is no store, and the next job removes it.

A store whose files have changed is replaced: the two folders are exchanged. An object store has no such thing;
there the old manifest is deleted first, and until the new one is there, no store is.
"""

import ctypes
import logging
import os
import re
import shutil
import socket
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pyarrow import fs

from midibert_ray import storage
from midibert_ray.data.layout import MANIFEST, write_manifest

logger = logging.getLogger(__name__)

_FORGOTTEN = timedelta(days=1)  # a job on another host that has written nothing for so long is dead


def create(address: str) -> str:
    """The address of a new, empty staging folder beside a store's address."""
    parent, name = _split(address)
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
    staging = storage.join(parent, f".{name}.{host}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    system, path = storage.filesystem(staging)
    system.create_dir(path)
    return staging


def publish(staging: str, address: str, manifest: dict[str, Any]) -> None:
    """Write the manifest and make the staging folder the store; another job's store that came first stays."""
    write_manifest(staging, manifest)
    if not storage.is_local(address):
        _copy(staging, address)
        return discard(staging)
    source, target = _swept(staging), Path(storage.resolve(address))
    if target.exists() and not (target / MANIFEST).exists():
        shutil.rmtree(target)
    try:
        source.rename(target)
    except OSError:
        if not (target / MANIFEST).exists():
            raise
        logger.info("%s was published by another job in the meantime", address)
        discard(staging)
    return None


def replace(staging: str, address: str, manifest: dict[str, Any]) -> None:
    """Write the manifest and put the staging folder in the place of the store that stands at the address."""
    write_manifest(staging, manifest)
    if storage.is_local(address):
        _exchange(_swept(staging), Path(storage.resolve(address)))
        return discard(staging)
    system, target = storage.filesystem(address)
    system.delete_file(f"{target}/{MANIFEST}")
    for info in system.get_file_info(fs.FileSelector(target)):
        if info.is_file and info.base_name != MANIFEST:
            system.delete_file(info.path)
    _copy(staging, address)
    return discard(staging)


def _swept(staging: str) -> Path:
    """A local staging folder without the temporary files of tasks that were killed and repeated."""
    folder = Path(storage.resolve(staging))
    for leftover in folder.glob(".*"):
        leftover.unlink()
    return folder


def _exchange(source: Path, target: Path) -> None:
    """Swap two folders: at once where Linux and the file system can, else with a moment between two renames."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    if swap is not None and swap(here, os.fsencode(source), here, os.fsencode(target), exchange) == 0:
        return
    aside = source.with_name(f"{source.name}x")  # still the name of a staging folder, should this job die here
    target.rename(aside)
    source.rename(target)
    aside.rename(source)


def discard(staging: str) -> None:
    """Remove a staging folder, if it is still there."""
    system, path = storage.filesystem(staging)
    if system.get_file_info(path).type is fs.FileType.Directory:
        system.delete_dir(path)


def remove_stale(parent: str) -> None:
    """Remove the staging folders of dead jobs below the folder of all stores."""
    system, path = storage.filesystem(parent)
    for info in system.get_file_info(fs.FileSelector(path, allow_not_found=True)):
        parts = info.base_name.rsplit(".", 3)
        if info.type is fs.FileType.Directory and parts[0].startswith(".") and len(parts) == 4:
            host, pid = parts[1], parts[2]
            if _is_dead(system, info, host, pid):
                logger.info("removing %s, which a dead job left behind", info.base_name)
                system.delete_dir(info.path)


def _is_dead(system: fs.FileSystem, info: fs.FileInfo, host: str, pid: str) -> bool:
    if host == re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) and pid.isdigit():
        return not _runs(int(pid))
    files = [info, *system.get_file_info(fs.FileSelector(info.path, recursive=True))]
    times = [file.mtime for file in files if file.mtime is not None]
    return bool(times) and datetime.now(UTC) - max(times) > _FORGOTTEN


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _split(address: str) -> tuple[str, str]:
    """The folder that an address lies in, and its last name; a query stays with the folder."""
    base = storage.without_query(address)
    parent, _, name = base.rpartition("/")
    return parent + address[len(base) :], name


def _copy(staging: str, address: str) -> None:
    system, source = storage.filesystem(staging)
    _, target = storage.filesystem(address)
    names = [info.base_name for info in system.get_file_info(fs.FileSelector(source)) if info.is_file]
    for name in sorted(names, key=lambda name: (name == MANIFEST, name)):
        system.copy_file(f"{source}/{name}", f"{target}/{name}")
