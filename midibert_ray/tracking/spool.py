"""Records on their way to a server: written first, sent in order, removed when they have arrived.

    {uri}/NUMBER-POINTS-RUN-ID.json     one record; names sort in the order in which records were written
    {uri}/sender                        the process that sends them, one at a time: see `sender.py`
    {uri}/refused/                      records that the server would not take as they are

Any process that sees the folder may write to it, and the records of a killed process are sent by the next one. The
folder may be on a disk, a network file system or an object store: nothing here needs locks, or files that grow.
"""

import hashlib
import itertools
import json
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from midibert_ray import storage

REFUSED = "refused"

_NAME = re.compile(r"\d{20}-\d+-[0-9a-f]{16}-[0-9a-f]{8}\.json")


class UnreachableError(Exception):
    """A server does not answer, or not now, or not to this account; nothing is wrong with the request."""


class RefusedError(UnreachableError):
    """A server turns the account down, which does not pass of itself."""


class RejectedError(Exception):
    """A server answers, and will never take this record as it is."""


@dataclass(frozen=True)
class Record:
    """A change to a run that a server is to hold; sending it twice must change nothing more."""

    run: str
    """The run: its records are sent in the order in which they were written."""
    points: int
    """Number of points of curves in it; 0 for every other kind of change."""
    content: Mapping[str, Any]
    """The change itself, which the writer understands; must fit into JSON."""


class Spool:
    """A folder of records."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._last = 0

    def append(self, record: Record) -> None:
        """Write a record, behind all that lie there when this process writes its first one.

        Raises:
            OSError: where the storage fails.
        """
        if not self._last:
            # The process before this one may have run on a node whose clock is ahead.
            self._last = max((int(name.split("-")[0]) for name in self.names()), default=0)
        self._last = max(time.time_ns(), self._last + 1)
        run = hashlib.sha256(record.run.encode()).hexdigest()[:16]
        name = f"{self._last:020d}-{record.points}-{run}-{uuid.uuid4().hex[:8]}.json"
        storage.write_bytes(self._at(name), json.dumps(asdict(record)).encode())

    def names(self) -> list[str]:
        """Names of the records, in the order in which they were written."""
        return list(filter(_NAME.fullmatch, storage.names(self.uri)))

    def read(self, names: Iterable[str]) -> dict[str, Record]:
        """The records of some names, without those that have been removed; other content is set aside."""
        found = {}
        for name in names:
            with suppress(FileNotFoundError):
                try:
                    found[name] = Record(**json.loads(storage.read_bytes(self._at(name))))
                except (ValueError, TypeError):  # cut off, by a machine that lost its power
                    self.set_aside(name)
        return found

    def remove(self, name: str) -> None:
        """Remove a record that has arrived."""
        storage.remove(self._at(name))

    def set_aside(self, name: str) -> None:
        """Keep a record that cannot be sent where it does not hold up the others."""
        self._move(self._at(name), self._at(REFUSED, name))

    def bring_back(self) -> None:
        """Put the records that were set aside back among the others, for another try."""
        for name in filter(_NAME.fullmatch, storage.names(self._at(REFUSED))):
            self._move(self._at(REFUSED, name), self._at(name))

    def get(self, name: str) -> bytes | None:
        """Content of a file of the spool, or None where there is none."""
        with suppress(FileNotFoundError):
            return storage.read_bytes(self._at(name))
        return None

    def put(self, name: str, content: bytes) -> None:
        """Write a file of the spool in place, as an object store does of itself."""
        if storage.is_local(self.uri):
            Path(storage.resolve(self._at(name))).write_bytes(content)
        else:
            storage.write_bytes(self._at(name), content)

    def _at(self, *names: str) -> str:
        return storage.join(self.uri, *names)

    def _move(self, source: str, target: str) -> None:
        storage.write_bytes(target, storage.read_bytes(source))
        storage.remove(source)


def points(names: Iterable[str]) -> int:
    """The number of points of curves in the records of some names."""
    return sum(int(name.split("-")[1]) for name in names)


def batches(names: Iterable[str], limit: int = 50) -> Iterator[list[str]]:
    """Records to send together: up to `limit` points of one run that follow each other, or a single other record.

    Every run keeps its order; runs come in the order of their first records.
    """
    runs: dict[str, list[str]] = {}
    for name in names:
        runs.setdefault(name.split("-")[2], []).append(name)
    for own in runs.values():
        for are_points, group in itertools.groupby(own, key=lambda name: points([name]) > 0):
            while together := list(itertools.islice(group, limit if are_points else 1)):
                yield together
