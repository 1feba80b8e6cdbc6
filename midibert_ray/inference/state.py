"""The state of a job's output: under which settings it is written, which files are done, and what came of them.

    {state}/settings.json         written first; a job with other settings is refused by it
    {state}/part-<hash>.parquet   records of the files of a task, written when these have all of their outputs
    {state}/done.parquet          the same of all files, when a job has ended; then the others go

A file is done while its size and time are those of its record. A task that is repeated overwrites its records.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from midibert_ray import storage
from midibert_ray.settings.validators import ConfigError
from midibert_ray.tokenizing.listing import File

SETTINGS, DONE, PART = "settings.json", "done.parquet", "part-"

VECTORS = "vectors"
"""Column of records that holds a file's embeddings, float32 bytes, where the job makes any."""


class Record(TypedDict):
    """The outcome of one file. Numbers of files without outputs are 0."""

    file: str
    size: int
    mtime_ns: int
    """-1 where the storage does not tell."""
    notes: int
    unseen: int
    """Notes that the model could not see, or abstained from."""
    label: str
    """Of the piece, where the model is sequence-level; else empty."""
    probability: float
    """Of that label; else 0."""
    labels: str
    """JSON: notes by label."""
    remark: str
    """A remark, such as that the piece is unlike the training music; else empty."""
    reason: str
    """Why there is no output; else empty."""
    may_pass: bool
    """True where the reason lies with the storage: the next job tries again."""
    digest: str
    """SHA-256 of the outputs, one after the other."""


_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
SCHEMA = pa.schema([(name, _TYPES[kind]) for name, kind in get_type_hints(Record).items()])


class OtherSettingsError(ConfigError):
    """An output that another job has written, or that no job has."""


@dataclass(frozen=True)
class State:
    """The folder of a job's state."""

    uri: str

    def settings(self) -> dict[str, Any] | None:
        """The settings of the job that began it; None where none did."""
        return storage.find_json(storage.join(self.uri, SETTINGS))

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the settings down, unless they are; needs the lease."""
        if self.settings() is None:
            storage.write_json(storage.join(self.uri, SETTINGS), settings)

    def require(self, settings: Mapping[str, Any], output: str) -> None:
        """Refuse an output that was begun with other settings.

        Raises:
            OtherSettingsError: names those that differ.
        """
        before = self.settings()
        if before is None or before == settings:
            return
        differing = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
        words = "; ".join(f"{key} {shown(before.get(key))}, now {shown(settings.get(key))}" for key in differing)
        raise OtherSettingsError(
            f"output={storage.without_query(output)} was written with other settings ({words}); name a new output, or "
            "remove this one first"
        )

    def records(self, *, made: bool = True) -> list[Record]:
        """Records of all files so far; of `embed` without those whose vectors are in an output that is not `made`."""
        tables = [self._read(uri) for uri in self._tables() if made or storage.basename(uri) != DONE]
        return [row for table in tables for row in table.to_pylist()]

    def vectors(self) -> Iterator[dict[str, Any]]:
        """Records of jobs that have not ended, with their embeddings."""
        for uri in self._tables():
            if storage.basename(uri) != DONE:
                yield from self._read(uri, [*SCHEMA.names, VECTORS]).to_pylist()

    @property
    def is_closed(self) -> bool:
        """True where the last job has ended."""
        return [storage.basename(uri) for uri in self._tables()] == [DONE]

    def add(self, records: Sequence[Record], vectors: Sequence[bytes] | None = None) -> None:
        """Write the records of a task, and with them the embeddings of its files."""
        table = pa.Table.from_pylist(list(records), schema=SCHEMA)
        if vectors is not None:
            table = table.append_column(VECTORS, pa.array(vectors, pa.large_binary()))
        names = json.dumps([[row["file"], row["size"], row["mtime_ns"]] for row in records])
        name = f"{PART}{hashlib.sha256(names.encode()).hexdigest()[:16]}.parquet"
        storage.write_bytes(storage.join(self.uri, name), storage.parquet(table))

    def close(self, records: Sequence[Record]) -> None:
        """Keep these records alone, in one file."""
        table = pa.Table.from_pylist(list(records), schema=SCHEMA)
        parts = [uri for uri in self._tables() if storage.basename(uri) != DONE]
        storage.write_bytes(storage.join(self.uri, DONE), storage.parquet(table))
        for uri in parts:
            storage.remove(uri)

    def _tables(self) -> list[str]:
        names = [name for name in storage.sizes(self.uri) if name == DONE or name.startswith(PART)]
        return [storage.join(self.uri, name) for name in sorted(names)]

    def _read(self, uri: str, columns: list[str] | None = None) -> pa.Table:
        return pq.read_table(pa.BufferReader(storage.read_bytes(uri)), columns=columns or SCHEMA.names)


def is_of(record: Mapping[str, Any], file: File) -> bool:
    """True where a record is that of a file as it stands now."""
    return (record["size"], record["mtime_ns"]) == (file.size, -1 if file.mtime_ns is None else file.mtime_ns)


def shown(value: object) -> str:
    """A setting as it stands on a command line."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)
