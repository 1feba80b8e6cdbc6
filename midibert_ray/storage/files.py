"""Files at URIs: below a local folder, `s3://bucket/prefix` or `gs://bucket/prefix`; see `validators.require_address`.

The text after the bucket is taken as it is: nothing in it is decoded.

An object store shows an object once it is complete, and knows no folders: of what consists of several objects, one
is written last and says that the others are there (a manifest, digests, a config.json).
"""

import contextlib
import functools
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from midibert_ray.settings.validators import ConfigError

logger = logging.getLogger(__name__)

UNFINISHED = ".being-made"
"""End of the name of a folder that `whole_folder` fills."""

_CHUNK = 8 << 20


class DamagedError(ValueError):
    """A file that is not the one that was written; the text names it."""


def is_local(uri: str) -> bool:
    """Tell whether a URI names a folder of this machine (or one that all nodes mount)."""
    return "://" not in uri or uri.startswith("file://")


def resolve(uri: str) -> str:
    """An absolute form of a path or URI: workers run in other directories than the driver."""
    if not is_local(uri):
        return uri.rstrip("/")
    return str(Path(uri.removeprefix("file://")).expanduser().absolute())


def join(uri: str, *names: str) -> str:
    """The URI of something below a URI; a query (`?endpoint_override=...`) stays at the end."""
    base = without_query(uri)
    return "/".join([base.rstrip("/"), *(name.strip("/") for name in names)]) + uri[len(base) :]


def without_query(uri: str) -> str:
    """A URI up to its query. A local folder has none: a `?` is part of its name."""
    return uri if is_local(uri) else uri.partition("?")[0]


def basename(uri: str) -> str:
    """The last name in a URI."""
    return without_query(uri).rstrip("/").rpartition("/")[2]


def parent(uri: str) -> str:
    """The URI of the folder that something lies in."""
    base = without_query(uri)
    return base.rstrip("/").rpartition("/")[0] + uri[len(base) :]


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a URI or path, and the path within it."""
    if is_local(uri):
        return fs.LocalFileSystem(), resolve(uri)
    base = without_query(uri)
    scheme, _, path = base.partition("://")
    return _client(f"{scheme}://{path.partition('/')[0]}/{uri[len(base) :]}"), path.rstrip("/")


@functools.lru_cache(maxsize=16)
def _client(bucket: str) -> fs.FileSystem:
    return fs.FileSystem.from_uri(bucket)[0]  # slow to make, as it may ask where the bucket is, and serves all threads


def require_bucket(key: str, uri: str) -> None:
    """Refuse a bucket that is not there, or not for us; a local folder is made when it is written to.

    Raises:
        ConfigError: naming the key, the URI and what to do.
    """
    if is_local(uri):
        return
    if reason := _problem(*filesystem(uri)):
        raise ConfigError(
            f"{key}={without_query(uri)} cannot be used: {reason}; check the bucket's name, its server "
            "(?endpoint_override=HOST:PORT&scheme=http for one of your own) and the keys in the environment "
            "(AWS_ACCESS_KEY_ID ...) or the role of this machine"
        )


def _problem(system: fs.FileSystem, path: str) -> str | None:
    """Why nothing can be looked up at a path of an object store; None where it can."""
    try:
        if system.get_file_info(path).type is not fs.FileType.NotFound:
            return None
    except OSError as error:
        return str(error)
    with contextlib.suppress(OSError):  # who may use one prefix alone may not ask for the bucket
        if system.get_file_info(path.partition("/")[0]).type is fs.FileType.NotFound:
            return "there is no such bucket"
    return None


@contextlib.contextmanager
def owner_only() -> Iterator[None]:
    """Make files of this process and its children their owner's alone: they may hold paths and parameters.

    Workers of a Ray that starts here inherit this; on a cluster that is there already, the driver makes the folders in
    which they write.
    """
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def exists(uri: str) -> bool:
    """Tell whether a file or folder stands at a URI."""
    system, path = filesystem(uri)
    return system.get_file_info(path).type is not fs.FileType.NotFound


def names(uri: str) -> list[str]:
    """Names of the files and folders directly below a URI, sorted; none where nothing is there."""
    system, path = filesystem(uri)
    return sorted(info.base_name for info in system.get_file_info(fs.FileSelector(path, allow_not_found=True)))


def sizes(uri: str) -> dict[str, int]:
    """Bytes of the files directly below a URI, by name; none where nothing is there."""
    system, path = filesystem(uri)
    infos = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return {info.base_name: info.size for info in infos if info.is_file}


def read_bytes(uri: str) -> bytes:
    """The whole content of a file; FileNotFoundError where there is none."""
    system, path = filesystem(uri)
    with system.open_input_stream(path, compression=None) as stream:
        return bytes(stream.read())


def read_json(uri: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: where there is no file.
        DamagedError: naming the file, where it is empty, cut or something else.
    """
    content = read_bytes(uri)
    try:
        found = json.loads(content)
    except ValueError as error:
        found = error
    if not isinstance(found, dict):
        state = "empty" if not content.strip() else f"damaged ({len(content):,} bytes that are no JSON object)"
        raise DamagedError(f"{without_query(uri)} is {state}; run again what writes it")
    return found


def find_json(uri: str) -> dict[str, Any] | None:
    """The JSON object in a file that can be made again; None where it is not there, or damaged, which is logged."""
    try:
        return read_json(uri)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DamagedError as error:
        logger.warning("%s", error)
        return None


def remove(uri: str) -> None:
    """Remove a file, if it is there."""
    system, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        system.delete_file(path)


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing: by a temporary name on a disk, a bucket by itself."""
    if not is_local(uri):
        buffer = pa.py_buffer(content)  # fails before there is a stream, whose end would make an empty object
        system, path = filesystem(uri)
        with system.open_output_stream(path) as stream:
            stream.write(buffer)
        return
    target = Path(resolve(uri))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(uri: str, value: object) -> None:
    """Write a value as JSON, for `read_json`."""
    write_bytes(uri, json.dumps(value, indent=1).encode())


def parquet(table: pa.Table, **options: Any) -> bytes:
    """A table as the bytes of a Parquet file; `options` of pyarrow's writer."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", **options)
    return sink.getvalue().to_pybytes()


@contextlib.contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Fill an empty folder that becomes the local folder `final` when the block ends well, and is gone when it fails.

    Its maker must be alone at `final`, by a lock: whatever a killed one has left is removed first.
    """
    making = final.with_name(f".{final.name}{UNFINISHED}")  # beside it, as a rename leads to no other file system
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        yield making
        making.rename(final)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def upload(folder: Path, uri: str, files: Sequence[str]) -> None:
    """Copy files of a local folder to a URI, in their order: the last says that the others are there.

    Raises:
        OSError: where one could not be written.
    """
    # Not by `pyarrow.fs.copy_files`, which drops the errors of S3 that come with the end of a file.
    system, path = filesystem(uri)
    for name in files:
        if is_local(uri):
            Path(path, name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, Path(path, name))
            continue
        with (folder / name).open("rb") as source, system.open_output_stream(f"{path}/{name}") as sink:
            shutil.copyfileobj(source, sink, _CHUNK)


def download(uri: str, folder: Path, files: Sequence[str]) -> None:
    """Copy files at a URI into a local folder."""
    system, path = filesystem(uri)
    for name in files:
        with system.open_input_stream(f"{path}/{name}", compression=None) as source, (folder / name).open("wb") as sink:
            shutil.copyfileobj(source, sink, _CHUNK)
