"""Digests of a folder's files: written down when they are whole, compared when they are read again."""

import hashlib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from pyarrow import fs

from midibert_ray.storage.files import DamagedError

Digest = dict[str, Any]
"""Of one file: `size`, bytes, and `sha256`, hexadecimal."""

_CHUNK = 4 << 20  # a bucket is asked once for so many bytes


def of_file(path: Path) -> Digest:
    """The digest of a local file."""
    with path.open("rb") as stream:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def of_folder(folder: Path) -> dict[str, Digest]:
    """The digests of all files below a local folder, by posix path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        return dict(zip((path.relative_to(folder).as_posix() for path in files), pool.map(of_file, files), strict=True))


def compare(
    system: fs.FileSystem, path: str, digests: Mapping[str, Digest], only: Collection[str] | None = None
) -> None:
    """Compare the files of a folder with their digests: all sizes, then the contents of all, or of `only` some.

    Raises:
        FileNotFoundError: naming the first file that is missing.
        DamagedError: naming the first file that differs.
        OSError: where one cannot be read.
    """
    infos = system.get_file_info(fs.FileSelector(path, recursive=True))  # one request, where a bucket is asked
    sizes = {info.path[len(path) :].lstrip("/"): info.size for info in infos if info.is_file}
    for name, digest in digests.items():
        if name not in sizes:
            raise FileNotFoundError(f"{name} is missing")
        if sizes[name] != digest["size"]:
            raise DamagedError(f"{name} has {sizes[name]} bytes instead of {digest['size']}")
    for name in digests if only is None else [name for name in digests if name in only]:
        with system.open_input_stream(f"{path}/{name}", compression=None, buffer_size=_CHUNK) as stream:
            if hashlib.file_digest(cast(Any, stream), "sha256").hexdigest() != digests[name]["sha256"]:
                raise DamagedError(f"the content of {name} is not what was written")
