"""Checkpoints as folders: which of them are whole, which one a run goes on from, which error a full disk gives.

Every worker ends its shard of a checkpoint with a file of digests; a folder whose digests are missing or do not fit (a
save that was cut short, an upload that broke off) is not a checkpoint. The digests name the run as well, so that a
folder copied from another run is not taken for one of this run; those written before they did so fit any run. The
folders may lie on any filesystem that pyarrow knows.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class _Digests:
    """The digests of one worker's shard."""

    world: int
    """Number of workers that wrote the checkpoint."""

    files: dict[str, dict[str, Any]]
    """Name below the checkpoint's folder -> size and SHA-256."""

    run: str | None = None
    """Key of the run; None where it was not noted."""


def write_digests(folder: Path, rank: int, world: int, run: str | None = None) -> None:
    """Record size and SHA-256 of every file in one worker's shard of a checkpoint; its last file.

    Args:
        folder: the files that this worker wrote, and no others.
        rank: this worker.
        world: number of workers that write a shard.
        run: key of the run.
    """
    content = {"rank": rank, "world": world, "run": run, "files": digests.of_folder(folder)}
    storage.write_bytes(str(folder / _digests_name(rank)), json.dumps(content, indent=1).encode())


def store(folder: Path, uri: str, rank: int) -> None:
    """Copy one worker's shard of a checkpoint to where the shards come together; its digests come last.

    Args:
        folder: the shard, with its digests.
        uri: of the checkpoint's folder.
        rank: this worker.

    Raises:
        OSError: where something could not be written.
    """
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    storage.upload(folder, uri, sorted(names, key=lambda name: (name == _digests_name(rank), name)))


def _digests_name(rank: int) -> str:
    return f"digests-{rank:05d}.json"


def listed_files(system: fs.FileSystem, path: str, run: str | None = None) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file that the workers wrote, by its name below the checkpoint's folder.

    Files of an earlier save by more workers may lie beside them; they belong to no checkpoint.

    Args:
        system: the checkpoint's filesystem.
        path: its folder.
        run: key of the run that it must be of; None: of any.

    Raises:
        UnfinishedError: where a worker's digests are missing.
        CheckpointError: where they cannot be read, or another run wrote them.
    """
    first = _read_digests(system, path, 0)
    shards = [first, *(_read_digests(system, path, rank) for rank in range(1, first.world))]
    for shard in shards:
        if run and shard.run not in (None, run):
            raise CheckpointError(f"{path} is a checkpoint of the run {shard.run} and not of {run}; remove that folder")
    return {name: digest for shard in shards for name, digest in shard.files.items()}


def _read_digests(system: fs.FileSystem, path: str, rank: int) -> _Digests:
    name = _digests_name(rank)
    try:
        with system.open_input_stream(f"{path}/{name}") as stream:
            content = json.loads(stream.read())
        return _Digests(int(content["world"]), dict(content["files"]), content.get("run"))
    except FileNotFoundError:
        raise UnfinishedError(f"{path} has no {name}, so worker {rank} did not finish writing it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}/{name} cannot be read: {error}") from error


def verify(system: fs.FileSystem, path: str, only: Collection[str] | None = None, run: str | None = None) -> None:
    """Make sure that a checkpoint is whole: sizes first, then contents, which means to read all of it.

    Args:
        system: the checkpoint's filesystem.
        path: its folder.
        only: names of the files whose contents are compared; None: of all.
        run: key of the run that it must be of; None: of any.

    Raises:
        UnfinishedError: naming the first file that is missing.
        CheckpointError: naming the first file that differs from its digest, or the other run that wrote it.
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


def written_by(uri: str) -> str | None:
    """Key of the run that wrote a checkpoint; None where its folder does not say."""
    return _first_digests(uri).run


def _first_digests(uri: str) -> _Digests:
    """The digests of the first worker, or none where it left none."""
    try:
        return _read_digests(*storage.filesystem(uri), 0)
    except UnfinishedError:
        return _Digests(1, {})


@contextmanager
def weights(uri: str) -> Iterator[Path]:
    """The weights in a checkpoint as a local folder that `from_pretrained` opens; those of a bucket are fetched.

    They are compared with the digests of the first worker; a folder without digests passes.

    Args:
        uri: of a checkpoint's folder.

    Raises:
        CheckpointError: where they are not what was written.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(storage.resolve(uri))
        if not storage.is_local(uri):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            storage.download(uri, folder, WEIGHT_FILES)
        noted = _first_digests(uri).files
        for name in noted.keys() & set(WEIGHT_FILES):
            if digests.of_file(folder / name) != noted[name]:
                raise CheckpointError(f"{storage.join(uri, name)} is not what was written")
        yield folder


@dataclass(frozen=True)
class Choice:
    """The checkpoint that a run goes on from."""

    name: str | None
    """Folder of the newest sound checkpoint, within the run's folder; None where there is none."""

    broken: dict[str, str]
    """Folder -> problem, of the newer ones that are not sound."""


def newest_sound(system: fs.FileSystem, run: str) -> Choice:
    """The newest checkpoint in a run's folder that is whole and its own, whether or not Ray Train has heard of it."""
    broken: dict[str, str] = {}
    for name in folders(system, run, PREFIX):
        reason = problem(system, f"{run}/{name}", run=storage.basename(run))
        if reason is None:
            return Choice(name, broken)
        broken[name] = reason
    return Choice(None, broken)


def drop_broken_books(run: str) -> str | None:
    """Remove Ray Train's list of a run's checkpoints where it would keep Ray Train from starting; says why.

    The list is written in place, so that a kill or a full disk can cut it off, and Ray Train refuses one that names
    a folder which is gone. The folders themselves say all that a run needs to go on.

    Args:
        run: URI of the run's folder.
    """
    system, path = storage.filesystem(storage.join(run, BOOKS))
    try:
        with system.open_input_stream(path) as stream:
            books = json.loads(stream.read())
        names = [str(entry["checkpoint_dir_name"]) for entry in books["checkpoint_results"]]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        reason = "it was cut off"
    else:
        there = {*folders(system, path.rpartition("/")[0], "")}
        gone = [name for name in names if name not in there]
        if not gone:
            return None
        reason = f"the checkpoint {gone[-1]} that it names is gone"
    system.delete_file(path)
    return f"{path} is removed, as {reason}; the run goes on from the checkpoints that are there"


def remove_unfinished(run: str, prefix: str) -> list[str]:
    """Remove the checkpoints of which something was never written, as a kill broke it off; gives their names.

    No worker may be writing there meanwhile. Those that Ray Train's list names stay, as it refuses a list with one
    that is gone; and those whose content is wrong, which somebody may want to look at.

    Args:
        run: URI of the folder of a run or trial.
        prefix: start of the names of its checkpoints.
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


def folders(system: fs.FileSystem, run: str, prefix: str) -> list[str]:
    """Names of the checkpoints in a run's folder, sound or not, latest first."""
    entries = system.get_file_info(fs.FileSelector(run, allow_not_found=True))
    names = [entry.base_name for entry in entries if entry.type is fs.FileType.Directory]
    return sorted((name for name in names if name.startswith(prefix)), reverse=True)


def unused_name(step: int, broken: frozenset[str]) -> str:
    """The name of the checkpoint of a step.

    Ray Train keeps broken checkpoints in its books and will delete their folders one day, so a run that
    comes by the step of one again needs another name.
    """
    name = f"{PREFIX}{step:09d}"
    while name in broken:
        name += "-again"
    return name


@contextmanager
def explain_full_disk(folder: str, needed: int, remedy: str) -> Iterator[None]:
    """Turn a failure to write that comes from a full disk into an error in plain words.

    Args:
        folder: local folder or URI that is written to; an object store is never full.
        needed: bytes that a whole checkpoint takes, roughly.
        remedy: the advice after "free some space there".

    Raises:
        CheckpointError: where the disk is full or a quota or size limit is reached; others pass unchanged.
    """
    free = _free_bytes(folder)
    try:
        yield
    except Exception as error:
        if not (_says_full(error) or (free is not None and free < needed)):
            raise
        known = "" if free is None else f" and {_mebibytes(free)} were free"
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(
            f"the disk of {folder} is too full for a checkpoint: it takes about {_mebibytes(needed)}{known}; free some "
            f"space there{remedy}, then start the run again, which goes on from the checkpoint before ({reason})"
        ) from error


def _says_full(error: BaseException) -> bool:
    texts = [os.strerror(code) for code in _FULL]
    return getattr(error, "errno", None) in _FULL or any(text in str(error) for text in texts)


def _free_bytes(folder: str) -> int | None:
    if not storage.is_local(folder):
        return None
    path = Path(storage.resolve(folder))
    existing = next(above for above in (path, *path.parents) if above.exists())
    return shutil.disk_usage(existing).free


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
