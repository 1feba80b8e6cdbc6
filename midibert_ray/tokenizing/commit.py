"""A token store appears whole or not at all.

A job writes into a hidden folder beside the address, `.<store>.<host>.<pid>.<mark>`, and publishes it when the
manifest is in it, by a rename. A store whose files have changed is replaced: the two folders are exchanged.

An object store can do neither. There the parts are copied to names that end in the job's mark, and then the manifest,
which names them, is written: one object, which makes a store of them, or puts the new store in the place of the old.

What a killed job leaves behind is no store, and the next job removes it.
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
from midibert_ray.data.layout import MANIFEST, part_files, read_manifest, write_manifest

logger = logging.getLogger(__name__)

_FORGOTTEN = timedelta(days=1)  # a job on another host that has written nothing for so long is dead


def create(address: str) -> str:
    """The address of a new, empty staging folder beside a store's address."""
    parent, name = _split(address)
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
    staging = storage.join(parent, f".{name}.{host}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    if storage.is_local(staging):  # in an object store it comes with the first part
        Path(storage.resolve(staging)).mkdir(parents=True)
    return staging


def publish(staging: str, address: str, manifest: dict[str, Any]) -> None:
    """Write the manifest and make the staging folder the store.

    If another job has published the same store in the meantime, one of the two stays: on a disk that one, in an object
    store this one.
    """
    if not storage.is_local(address):
        return _put(staging, address, manifest)
    write_manifest(staging, manifest)
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
    if not storage.is_local(address):
        return _put(staging, address, manifest)
    write_manifest(staging, manifest)
    _exchange(_swept(staging), Path(storage.resolve(address)))
    return discard(staging)


def _put(staging: str, address: str, manifest: dict[str, Any]) -> None:
    """Make the parts in a staging folder the store at an address of an object store."""
    system, source = storage.filesystem(staging)
    _, target = storage.filesystem(address)
    mark = _mark(storage.basename(staging))
    parts = {name: name.replace(".parquet", f".{mark}.parquet") for name in storage.names(staging)}
    for name, marked in parts.items():
        system.copy_file(f"{source}/{name}", f"{target}/{marked}")
    write_manifest(address, {**manifest, "parts": list(parts.values())})
    _remove_unnamed(address)
    discard(staging)


def _remove_unnamed(address: str) -> None:
    """Remove the parts that the manifest does not name and no running job is about to name."""
    parent, store = _split(address)
    try:
        named = set(part_files(address, read_manifest(address)))
    except FileNotFoundError:
        named = set()
    running = {_mark(name) for name in storage.names(parent) if name.startswith(f".{store}.")}
    system, path = storage.filesystem(address)
    for name in storage.names(address):
        if name.endswith(".parquet") and name not in named and _mark(name.removesuffix(".parquet")) not in running:
            system.delete_file(f"{path}/{name}")


def _mark(name: str) -> str:
    """The mark of a job at the end of the name of its staging folder, or of one of its parts."""
    return name.rpartition(".")[2]


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
                if not storage.is_local(parent):
                    _remove_unnamed(storage.join(parent, parts[0].removeprefix(".")))


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
