"""Checkpoints as folders: which of them are whole, which one a run goes on from, which error a full disk gives.

Every worker ends its shard of a checkpoint with a file of digests; a folder whose digests are missing or do not fit (a
save that was cut short, an upload that broke off) is not a checkpoint. The digests name the run as well, so that a
folder copied from another run is not taken for one of this run. The folders may lie on any filesystem that pyarrow
knows.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import fs

from midibert_ray import storage
from midibert_ray.model.folder import WEIGHT_FILES
from midibert_ray.storage import digests

BOOKS = "checkpoint_manager_snapshot.json"
"""Ray Train's list of the checkpoints of a run."""

PREFIX = "step_"
"""Start of the name of every checkpoint folder; the rest sorts by optimizer step."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the text says which, why, and what to do."""


class UnfinishedError(CheckpointError):
    """A checkpoint of which a file is not there."""


class Shard(NamedTuple):
    """The content of one worker's file of digests."""

    world: int
    """Number of workers that wrote the checkpoint."""
    files: dict[str, digests.Digest]
    """By name below the checkpoint's folder."""
    run: str | None
    """Key of the run that wrote it; None in a folder of version 0.1.0, which says nothing of it."""


def _digests_name(rank: int) -> str:
    return f"digests-{rank:05d}.json"


def write_digests(folder: Path, rank: int, world: int, run: str | None = None) -> None:
    """Record the files that one worker wrote into a folder of its own; the last file of its shard."""
    content = {"rank": rank, "world": world, "run": run, "files": digests.of_folder(folder)}
    storage.write_json(str(folder / _digests_name(rank)), content)


def store(folder: Path, uri: str, rank: int) -> None:
    """Copy one worker's shard to the checkpoint's URI, its digests last. Raises OSError where that fails."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    storage.upload(folder, uri, sorted(names, key=lambda name: (name == _digests_name(rank), name)))


def read_digests(system: fs.FileSystem, path: str, rank: int = 0) -> Shard:
    """Digests of one worker. Raises UnfinishedError where there are none, CheckpointError where they are damaged."""
    name = _digests_name(rank)
    try:
        with system.open_input_stream(f"{path}/{name}") as stream:
            content = json.loads(stream.read())
        return Shard(int(content["world"]), dict(content["files"]), content.get("run"))
    except FileNotFoundError:
        raise UnfinishedError(f"{path} has no {name}, so worker {rank} did not finish writing it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}/{name} cannot be read: {error}") from error


def listed_files(system: fs.FileSystem, path: str, run: str | None = None) -> dict[str, digests.Digest]:
    """Digests of all files of a checkpoint; those of an earlier save by more workers may lie beside them.

    Raises CheckpointError as `verify` does.
    """
    first = read_digests(system, path)
    shards = [first, *(read_digests(system, path, rank) for rank in range(1, first.world))]
    for shard in shards:
        if run and shard.run != run:
            writer = f"of the run {shard.run}" if shard.run else "that names no run"
            raise CheckpointError(f"{path} is a checkpoint {writer} and not of {run}; remove that folder")
    return {name: digest for shard in shards for name, digest in shard.files.items()}


def verify(system: fs.FileSystem, path: str, only: Collection[str] | None = None, run: str | None = None) -> None:
    """Make sure that a checkpoint is whole: sizes first, then contents, which means to read all of it.

    only: names of the files whose contents are compared; None: of all.
    run: key of the run that it must be of; None: of any.

    Raises UnfinishedError naming the first file that is missing, and CheckpointError naming the first that differs from
    its digest, or the other run that wrote it.
    """
    files = listed_files(system, path, run)
    try:
        digests.compare(system, path, files, only)
    except FileNotFoundError as error:
        raise UnfinishedError(f"{path}: {error}") from error
    except (OSError, storage.DamagedError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def problem(
    system: fs.FileSystem, folder: str, only: Collection[str] | None = None, run: str | None = None
) -> str | None:
    """The error that `verify` raises, as text; None where the checkpoint is whole."""
    try:
        verify(system, folder, only, run)
    except CheckpointError as error:
        return str(error)
    return None


@contextmanager
def weights(uri: str) -> Iterator[Path]:
    """The weights in a checkpoint as a local folder that `from_pretrained` opens; those of a bucket are fetched.

    They are compared with the digests of the first worker; a folder without digests passes.
    Raises CheckpointError where they are not what was written.
    """
    noted = {}
    with contextlib.suppress(UnfinishedError):
        noted = read_digests(*storage.filesystem(uri)).files
    with contextlib.ExitStack() as stack:
        folder = Path(storage.resolve(uri))
        if not storage.is_local(uri):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            storage.download(uri, folder, WEIGHT_FILES)
        for name in noted.keys() & set(WEIGHT_FILES):
            if digests.of_file(folder / name) != noted[name]:
                raise CheckpointError(f"{storage.join(uri, name)} is not what was written")
        yield folder


def folders(system: fs.FileSystem, run: str, prefix: str) -> list[str]:
    """Names of the checkpoints in a run's folder, sound or not, latest first."""
    entries = system.get_file_info(fs.FileSelector(run, allow_not_found=True))
    names = [entry.base_name for entry in entries if entry.type is fs.FileType.Directory]
    return sorted((name for name in names if name.startswith(prefix)), reverse=True)


class Choice(NamedTuple):
    """The checkpoint that a run goes on from."""

    name: str | None
    """Folder of the newest sound checkpoint, within the run's folder; None where there is none."""
    problems: dict[str, str]
    """Folder -> problem, of the newer ones that are not sound."""


def newest_sound(system: fs.FileSystem, run: str) -> Choice:
    """The newest checkpoint in a run's folder that is whole and its own, whether or not Ray Train has heard of it."""
    problems: dict[str, str] = {}
    for name in folders(system, run, PREFIX):
        reason = problem(system, f"{run}/{name}", run=storage.basename(run))
        if reason is None:
            return Choice(name, problems)
        problems[name] = reason
    return Choice(None, problems)


def unused_name(step: int, problems: Collection[str]) -> str:
    """The name of the checkpoint of a step.

    Ray Train keeps broken checkpoints in its books and will delete their folders one day, so a run that
    comes by the step of one again needs another name.
    """
    name = f"{PREFIX}{step:09d}"
    while name in problems:
        name += "-again"
    return name


def drop_broken_books(run: str) -> str | None:
    """Remove Ray Train's list of a run's checkpoints where it would keep Ray Train from starting; says why.

    The list is written in place, so that a kill or a full disk can cut it off, and Ray Train refuses one that names
    a folder which is gone. The folders themselves say all that a run needs to go on.
    """
    system, path = storage.filesystem(storage.join(run, BOOKS))
    try:
        with system.open_input_stream(path) as stream:
            names = [str(entry["checkpoint_dir_name"]) for entry in json.loads(stream.read())["checkpoint_results"]]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        reason = "it was cut off"
    else:
        gone = [name for name in names if name not in storage.names(run)]
        if not gone:
            return None
        reason = f"the checkpoint {gone[-1]} that it names is gone"
    system.delete_file(path)
    return f"{path} is removed, as {reason}; the run goes on from the checkpoints that are there"


def remove_unfinished(run: str, prefix: str) -> list[str]:
    """Remove the checkpoints of a run or trial that a kill has left unfinished; gives their names.

    No worker may be writing there meanwhile. Folders that Ray Train's list names stay, as it refuses a list with one
    that is gone; and those whose content is wrong, which somebody may want to look at.
    """
    system, path = storage.filesystem(run)
    books = storage.join(run, BOOKS)
    booked = storage.read_bytes(books).decode() if storage.exists(books) else ""
    removed = []
    for name in folders(system, path, prefix):
        try:
            verify(system, f"{path}/{name}", only=())
        except UnfinishedError:
            if f'"{name}"' not in booked:
                system.delete_dir(f"{path}/{name}")
                removed.append(name)
        except CheckpointError:
            continue
    return removed


@contextmanager
def explain_full_disk(folder: str, needed: int, remedy: str) -> Iterator[None]:
    """Turn a failure to write that comes from a full disk, a quota or a size limit into a CheckpointError.

    folder: local folder or URI that is written to; an object store is never full.
    needed: bytes that a whole checkpoint takes, roughly; remedy: the advice after "free some space there".
    """
    free: int | None = None
    if storage.is_local(folder):
        path = Path(storage.resolve(folder))
        free = shutil.disk_usage(next(above for above in (path, *path.parents) if above.exists())).free
    try:
        yield
    except Exception as error:
        if not (says_full(error) or (free is not None and free < needed)):
            raise
        known = "" if free is None else f" and {free / 2**20:,.1f} MiB were free"
        reason = getattr(error, "strerror", None) or (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(  # Ray Train shows the last 500 characters of it: no path twice
            f"the disk of {folder} is too full for a checkpoint: it takes about {needed / 2**20:,.1f} MiB{known}; free "
            f"some space there{remedy}, then start the run again, which goes on from the checkpoint before ({reason})"
        ) from error


def says_full(error: Any) -> bool:
    """True where an error comes from a full disk, a quota or a size limit."""
    return getattr(error, "errno", None) in _FULL or any(os.strerror(code) in str(error) for code in _FULL)
