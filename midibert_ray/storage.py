"""One root URI, and the addresses of everything below it.

    {root}/tokens/<corpus>-<hash>/      token stores
    {root}/runs/<run>/                  pre-training runs: Ray Train's state and checkpoints
    {root}/studies/<study>/             Ray Tune's state and the trials' checkpoints
    {root}/reports/<study>/             report.html and its tables
    {root}/spool/<server>/              what a tracking server has not got yet
    {root}/unpublished/<study>.json     settings of studies whose tables wait for that

A root is a local folder or a URI that pyarrow's filesystems know (`s3://`, `gs://`).
"""

import contextlib
import re
import uuid
from pathlib import Path

from pyarrow import fs

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]{0,127}")


def is_local(uri: str) -> bool:
    """Whether a URI names a folder of this machine (or one that all nodes mount)."""
    return "://" not in uri or uri.startswith("file://")


def resolve(uri: str) -> str:
    """An absolute form of a path or URI: workers run in other directories than the driver."""
    if not is_local(uri):
        return uri.rstrip("/")
    return str(Path(uri.removeprefix("file://")).expanduser().absolute())


def join(uri: str, *parts: str) -> str:
    """The address of something below a URI; a query (`?endpoint_override=...`) stays at the end."""
    base = without_query(uri)
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)]) + uri[len(base) :]


def without_query(uri: str) -> str:
    """A URI up to its query. A local folder has none: a `?` is part of its name."""
    return uri if is_local(uri) else uri.partition("?")[0]


def basename(uri: str) -> str:
    """The last part of an address, the name of what stands there."""
    return without_query(uri).rstrip("/").rpartition("/")[2]


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a URI or path, and the path within it."""
    if is_local(uri):
        return fs.LocalFileSystem(), resolve(uri)
    system, path = fs.FileSystem.from_uri(uri)
    return system, path


def check_name(what: str, name: str) -> str:
    """A user's name that may stand in a path.

    Raises:
        ValueError: for an empty name or one with separators or other odd characters.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"{what}={name!r} cannot be used as a name; use letters, digits and . _ = , + - (128 at most)")
    return name


def exists(uri: str) -> bool:
    """Whether a file or folder stands at a URI."""
    system, path = filesystem(uri)
    return system.get_file_info(path).type is not fs.FileType.NotFound


def read_bytes(uri: str) -> bytes:
    """The whole content of a file.

    Raises:
        FileNotFoundError: where there is none.
    """
    system, path = filesystem(uri)
    with system.open_input_stream(path) as stream:
        return bytes(stream.read())


def names(uri: str) -> list[str]:
    """Names of the files and folders directly below a URI, sorted; none where nothing is there."""
    system, path = filesystem(uri)
    return sorted(info.base_name for info in system.get_file_info(fs.FileSelector(path, allow_not_found=True)))


def remove(uri: str) -> None:
    """Remove a file, if it is there."""
    system, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        system.delete_file(path)


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing (temporary name, then rename).

    Object stores show an object only once it is complete, so they need no temporary name.
    """
    system, path = filesystem(uri)
    if not is_local(uri):
        with system.open_output_stream(path) as stream:
            stream.write(content)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
