"""Records on their way to a server: written down first, sent in order, removed when they have arrived.

    {place}/NUMBER-POINTS-ID.json     one record; names sort in the order in which records were written
    {place}/sender                    which process sends them, one at a time: see `sender.py`
    {place}/refused/                  records that the server would not take as they are

Whatever sees the folder may write to it, and what a killed process has left is sent by the next one that comes. The
folder may be on a disk, a network file system or an object store: nothing here needs locks, or files that grow.
"""

import json
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from midibert_ray import storage

REFUSED = "refused"

_NAME = re.compile(r"(\d{20})-(\d+)-[0-9a-f]{8}\.json")


class UnreachableError(Exception):
    """A server does not answer, or not now, or not to this account; nothing is wrong with what it was asked."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused
        """Whether it turned the account down, which does not pass of itself."""


class RejectedError(Exception):
    """A server answers, and will never take this record as it is."""


@dataclass(frozen=True)
class Record:
    """Something that a server is to hold; sending it twice must change nothing more."""

    run: str
    """Whose it is: records of one run are sent in the order in which they were written."""

    points: int
    """How many points of curves it holds; 0 where it is something else."""

    content: Mapping[str, Any]
    """What it says, for whoever sends it; must fit into JSON."""


class Spool:
    """A folder of records."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._system, self._path = storage.filesystem(place)
        self._last = 0

    def append(self, record: Record) -> None:
        """Write a record down, behind all that lie there when this process writes its first one.

        Raises:
            OSError: where the storage fails.
        """
        if not self._last:
            # The process before this one may have run on a node whose clock is ahead.
            self._last = max((_number(name) for name in self.names()), default=0)
        self._last = max(time.time_ns(), self._last + 1)
        name = f"{self._last:020d}-{record.points}-{uuid.uuid4().hex[:8]}.json"
        content = json.dumps(asdict(record)).encode()
        if storage.is_local(self.place):
            storage.write_bytes(f"{self._path}/{name}", content)
        else:
            self.put(name, content)

    def names(self) -> list[str]:
        """Names of the records, in the order in which they were written."""
        found = self._system.get_file_info(fs.FileSelector(self._path, allow_not_found=True))
        return sorted(info.base_name for info in found if _NAME.fullmatch(info.base_name))

    def read(self, names: Iterable[str]) -> dict[str, Record]:
        """The records of some names, without those that have been removed; what is no record is set aside."""
        found = {}
        for name in names:
            content = self.get(name)
            if content is None:
                continue
            try:
                found[name] = Record(**json.loads(content))
            except (ValueError, TypeError):  # cut off, by a machine that lost its power
                self.set_aside(name)
        return found

    def remove(self, name: str) -> None:
        """Take a record away that has arrived."""
        with suppress(FileNotFoundError):
            self._system.delete_file(f"{self._path}/{name}")

    def set_aside(self, name: str) -> None:
        """Keep a record that cannot be sent where it does not hold up the others."""
        self._move(name, f"{REFUSED}/{name}")

    def bring_back(self) -> None:
        """Put what was set aside into its place again, for another try."""
        selector = fs.FileSelector(f"{self._path}/{REFUSED}", allow_not_found=True)
        for info in self._system.get_file_info(selector):
            if _NAME.fullmatch(info.base_name):
                self._move(f"{REFUSED}/{info.base_name}", info.base_name)

    def get(self, name: str) -> bytes | None:
        """Content of a file of the spool, or None where there is none."""
        try:
            with self._system.open_input_stream(f"{self._path}/{name}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes) -> None:
        """Write a file of the spool in place, as an object store does of itself."""
        if storage.is_local(self.place):
            Path(self._path).mkdir(parents=True, exist_ok=True)
        with self._system.open_output_stream(f"{self._path}/{name}") as stream:
            stream.write(content)

    def _move(self, name: str, target: str) -> None:
        self._system.create_dir(f"{self._path}/{REFUSED}")
        with suppress(FileNotFoundError):
            self._system.move(f"{self._path}/{name}", f"{self._path}/{target}")


def points(names: Iterable[str]) -> int:
    """How many points of curves the records of some names hold."""
    return sum(int(name.split("-")[1]) for name in names)


def _number(name: str) -> int:
    return int(name.partition("-")[0])
