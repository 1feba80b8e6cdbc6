"""Files on a disk or in a bucket, below one root."""

from midibert_ray.storage import root
from midibert_ray.storage.files import (
    DamagedError,
    basename,
    download,
    exists,
    filesystem,
    find_json,
    is_local,
    join,
    names,
    owner_only,
    parent,
    parquet,
    read_bytes,
    read_json,
    remove,
    require_bucket,
    resolve,
    sizes,
    upload,
    whole_folder,
    without_query,
    write_bytes,
    write_json,
)
