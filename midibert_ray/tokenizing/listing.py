"""The files below a corpus's folder, and how to open one.

A local folder is walked here, because it may hold what would end pyarrow's listing: names that are not UTF-8,
subfolders that nobody may read, links that lead back to where they stand. An object store has none of these,
and pyarrow lists it.
"""

import gc
import hashlib
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from pyarrow import fs

from midibert_ray import storage

Value = TypeVar("Value")


class File(NamedTuple):
    """A file of a corpus."""

    size: int
    """Bytes."""
    mtime_ns: int | None
    """Time of its last change as the storage tells it, nanoseconds since 1970."""
    path: str
    """Below the corpus folder, as the file system wants it: it may hold surrogates, which stand for bytes that
    are not UTF-8."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files and folders below a folder. Names are posix paths below it and always valid UTF-8."""

    files: Mapping[str, File] = field(repr=False)
    """By name; a byte that is not UTF-8 is spelled `\\xe9` in it."""
    unlisted: Mapping[str, str]
    """Folders (their names end in a slash) and files that could not be looked at, with the reason."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Make millions of objects without a collector of garbage that looks through all of them again and again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@uncollected()
def list_files(uri: str) -> Listing:
    """Every file below a folder, however deep, but those that macOS adds (`._x.mid`, `__MACOSX/`).

    Of a local folder, each real folder is entered once: links to folders are followed if they lead to one that
    is not below, and a loop of links is none.

    Raises:
        OSError: the folder itself cannot be listed.
    """
    if storage.is_local(uri):
        return _Walk(storage.resolve(uri)).listing()
    system, path = storage.filesystem(uri)
    infos = system.get_file_info(fs.FileSelector(path, recursive=True))
    names = {info.path[len(path) :].lstrip("/"): info for info in infos if info.is_file}
    files = {name: File(int(info.size), info.mtime_ns, name) for name, info in names.items() if not _is_macos(name)}
    return Listing(files=files, unlisted={})


def _is_macos(name: str) -> bool:
    return name.rpartition("/")[2].startswith("._") or "__MACOSX" in name.split("/")


def duplicates(uri: str, files: Mapping[str, File]) -> dict[str, str]:
    """Files with the same bytes as others: name -> the first by name that has them.

    Files that no other equals in size are not read; an unreadable file is no duplicate.
    """
    sizes = Counter(file.size for file in files.values())
    names = sorted(name for name, file in files.items() if sizes[file.size] > 1)
    first: dict[bytes, str] = {}
    with ThreadPoolExecutor(max_workers=16) as pool:  # hides an object store's latency
        digests = zip(names, pool.map(lambda name: _digest(uri, files[name]), names), strict=True)
        return {name: first[digest] for name, digest in digests if digest and first.setdefault(digest, name) != name}


def _digest(uri: str, file: File) -> bytes | None:
    try:
        with open_file(uri, file.path) as stream:
            return hashlib.file_digest(cast(Any, stream), "sha256").digest()
    except OSError:
        return None


def open_file(uri: str, path: str) -> BinaryIO:
    """A file of a corpus (`File.path`), open for reading.

    Raises:
        OSError: it cannot be opened.
    """
    if storage.is_local(uri):
        return Path(storage.resolve(uri), path).open("rb")
    system, folder = storage.filesystem(uri)
    return cast(BinaryIO, system.open_input_stream(f"{folder}/{path}"))


def listing_digest(files: Mapping[str, File], unlisted: Iterable[str]) -> str:
    """A digest of names, sizes and times: while it stays the same, no file has been changed.

    A change that keeps a file's size within one tick of the storage's clock (milliseconds; in S3 a second) goes unseen.
    """
    rows = ([name, files[name].size, files[name].mtime_ns] for name in sorted(files))
    return rows_digest("[", rows, f", {json.dumps(sorted(unlisted))}]")


@uncollected()
def rows_digest(before: str, rows: Iterable[list[Any]], after: str) -> str:
    """SHA-256 of a text with a JSON list in it, of which no more than a few rows are held: there may be millions."""
    digest, rows, comma = hashlib.sha256(f"{before}[".encode()), iter(rows), ""
    while some := list(islice(rows, 1024)):
        digest.update(f"{comma}{json.dumps(some)[1:-1]}".encode())
        comma = ", "
    digest.update(f"]{after}".encode())
    return digest.hexdigest()


class _Walk:
    """A pass over a local folder: real folders first, then links in the order of their names."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._files: dict[str, File] = {}
        self._unlisted: dict[str, str] = {}
        self._entered: set[tuple[int, int]] = set()
        self._links = [""]  # a heap: which of two links to one folder is followed must not be chance

    def listing(self) -> Listing:
        """Walk, and give what was found."""
        while self._links:
            folders = [heapq.heappop(self._links)]
            while folders:
                folders += reversed(self._enter(folders.pop()))
        return Listing(files=_spelled(self._files), unlisted=_spelled(self._unlisted))

    def _enter(self, below: str) -> list[str]:
        """Note what lies in a folder, unless it was entered before; its real subfolders are given."""
        path = os.path.join(self._folder, below)  # noqa: PTH118 - half the time of Path in a large corpus
        prefix = f"{below}/" if below else ""
        folders: list[str] = []
        try:
            about = os.stat(path)  # noqa: PTH116
            if (about.st_dev, about.st_ino) in self._entered:
                return []
            self._entered.add((about.st_dev, about.st_ino))
            with os.scandir(path) as entries:  # in order folder by folder, so that nobody has to sort all of them
                ordered = sorted(entries, key=lambda entry: entry.name)
            folders += [prefix + entry.name for entry in ordered if self._note(prefix + entry.name, entry)]
        except OSError as error:
            if not below:
                raise
            self._unlisted[prefix] = _reason(error, "this folder")
        return folders

    def _note(self, name: str, entry: "os.DirEntry[str]") -> bool:
        """Note a file or a link; whether the entry is a real folder."""
        if _is_macos(name):
            return False
        try:
            if entry.is_dir():
                if not entry.is_symlink():
                    return True
                heapq.heappush(self._links, name)
            elif entry.is_file():
                about = entry.stat()
                self._files[name] = File(about.st_size, about.st_mtime_ns, name)
        except OSError as error:
            self._unlisted[name] = _reason(error, "this file")
        return False


def _reason(error: OSError, what: str) -> str:
    if isinstance(error, PermissionError):
        return f"no permission to look into {what}"
    return f"{what} cannot be looked at: {error.strerror}"


def _spelled(found: Mapping[str, Value]) -> dict[str, Value]:
    """The same under names that are valid UTF-8 and still differ from each other."""
    spelled = {name: value for name, value in found.items() if name.isascii() or is_utf8(name)}
    for name in sorted(found.keys() - spelled.keys()):
        plain = os.fsencode(name).decode("utf-8", "backslashreplace")
        stem, suffix = os.path.splitext(plain)  # noqa: PTH122 - a path below a folder, not of this process
        number = 2
        while plain in spelled:
            plain, number = f"{stem}~{number}{suffix}", number + 1
        spelled[plain] = found[name]
    return spelled


def is_utf8(name: str) -> bool:
    """Tell whether a path can stand in JSON, Parquet and a terminal: Linux takes any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
