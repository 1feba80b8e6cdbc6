"""Files on a disk or in a bucket, below one root."""

from midibert_ray.storage import root
from midibert_ray.storage.files import (
    basename,
    download,
    exists,
    filesystem,
    is_local,
    join,
    names,
    read_bytes,
    remove,
    require_bucket,
    resolve,
    upload,
    whole_folder,
    without_query,
    write_bytes,
)

__all__ = [
    "basename",
    "download",
    "exists",
    "filesystem",
    "is_local",
    "join",
    "names",
    "read_bytes",
    "remove",
    "require_bucket",
    "resolve",
    "root",
    "upload",
    "whole_folder",
    "without_query",
    "write_bytes",
]
