"""An archive that nobody vouches for -> wanted files below one folder, and nothing anywhere else.

The whole archive is refused for one name that leads out of it, one link or device, one encrypted member, two
members that land on the same file, or more members or bytes than a corpus can have. Bytes are counted as they
are read: what headers say of sizes is not relied upon. Files are only ever created, with this process's own
permissions, below a folder that the caller has made for them.
"""

import gzip
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from midibert_ray.corpora.sources import ArchiveError, megabytes

_BLOCK = 1 << 16
# The publishers use no others, and an LZMA dictionary may ask for 4 GiB of memory.
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, struct.error, EOFError)

Place = Callable[[str], str | None]
"""Path of a member in the archive -> path below the folder, or None for a member that is not wanted."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of an archive; the five corpora stay far below."""

    members: int = 100_000
    """Members, wanted or not."""
    member_bytes: int = 64 << 20
    """A wanted member, unpacked."""
    total_bytes: int = 1 << 30
    """All wanted members, unpacked; of a tar archive all members."""
    ratio: int = 100
    """Unpacked bytes for each packed byte, beyond the first `slack_bytes`; MIDI shrinks to a third or so."""
    slack_bytes: int = 1 << 20


class _Member(NamedTuple):
    name: str
    is_folder: bool
    packed: int
    """Bytes that it takes in the archive."""
    size: int
    """Bytes that it unpacks to, by its header."""
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, folder: Path, place: Place, limits: Limits = Limits()) -> None:
    """Unpack the wanted members of a zip, tar or tar.gz archive into an empty folder.

    After an error the folder holds rubbish, which the caller removes.

    Raises:
        ArchiveError: broken, or refused; names the member.
        OSError: a file cannot be written.
    """
    targets, total = _Targets(), 0
    try:
        with closing(_members(archive, limits)) as members:
            for number, member in enumerate(members, start=1):
                if number > limits.members:
                    raise ArchiveError(f"{archive}: more than {limits.members:,} members; refused")
                path = _checked(archive, member.name)
                target = None if member.is_folder or not path else place(path)
                if target is None:
                    continue
                targets.claim(archive, target)
                total += _write(member, folder / target, limits, min(limits.member_bytes, limits.total_bytes - total))
    except (*_BROKEN, ValueError, NotImplementedError) as error:
        size = megabytes(archive.stat().st_size)
        raise ArchiveError(f"{archive} ({size}) is broken or cut short: {error or type(error).__name__}") from error


def _members(archive: Path, limits: Limits) -> Generator[_Member, None, None]:
    """Members in turn; each must be read before the next is asked for."""
    with archive.open("rb") as stream:
        magic = stream.read(4)
    if magic in (b"PK\x03\x04", b"PK\x05\x06"):
        return _zip_members(archive, limits)
    return _tar_members(archive, magic.startswith(b"\x1f\x8b"), limits)


def _zip_members(archive: Path, limits: Limits) -> Generator[_Member, None, None]:
    with zipfile.ZipFile(archive) as opened:
        entries, size = opened.infolist(), archive.stat().st_size
        if len(entries) > limits.members:
            raise ArchiveError(f"{archive}: {len(entries):,} members, {limits.members:,} are allowed; refused")
        for entry in entries:
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ArchiveError(f"{archive}: {entry.filename!r} is a link or a device; refused")
            if entry.flag_bits & 0x1:
                raise ArchiveError(f"{archive}: {entry.filename!r} is encrypted; refused")
            if entry.compress_type not in _ZIP_METHODS:
                raise ArchiveError(f"{archive}: {entry.filename!r} is packed by method {entry.compress_type}; refused")
            content = partial(opened.open, entry)
            packed = min(entry.compress_size, size)
            yield _Member(entry.orig_filename, entry.is_dir(), packed, entry.file_size, content)


def _tar_members(archive: Path, zipped: bool, limits: Limits) -> Generator[_Member, None, None]:
    with archive.open("rb") as packed, gzip.GzipFile(fileobj=packed) if zipped else nullcontext(packed) as stream:
        # Even names and headers of a tar archive may be of any length, so the meter stands before tarfile.
        meter = _Meter(archive, cast(IO[bytes], stream), archive.stat().st_size, limits, limits.total_bytes)
        with tarfile.open(fileobj=meter, mode="r|") as opened:  # type: ignore[call-overload]
            for entry in opened:
                if entry.issparse() or not (entry.isreg() or entry.isdir()):
                    raise ArchiveError(f"{archive}: {entry.name!r} is a link, a device or a sparse file; refused")
                content = partial(opened.extractfile, entry)
                yield _Member(entry.name, entry.isdir(), max(entry.size, 0), entry.size, content)
        while meter.read():  # to the end, where gzip keeps its checksum
            pass


class _Meter:
    """A stream that ends in an error once it has given more than it may."""

    def __init__(self, name: object, stream: IO[bytes], packed: int, limits: Limits, most: int) -> None:
        self.name, self.stream, self.packed, self.limits, self.most = name, stream, packed, limits, most
        self.given = 0

    def read(self, size: int = _BLOCK) -> bytes:
        block = self.stream.read(min(size, _BLOCK))
        self.given += len(block)
        if self.given > self.most:
            allowed = f"{megabytes(self.limits.member_bytes)} a file, {megabytes(self.limits.total_bytes)} in all"
            raise ArchiveError(f"{self.name}: unpacks to more than is allowed ({allowed}); refused")
        if self.given > self.limits.slack_bytes + self.limits.ratio * self.packed:
            raise ArchiveError(f"{self.name}: unpacks to over {self.limits.ratio} times its packed size; refused")
        return block


def _write(member: _Member, target: Path, limits: Limits, most: int) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    with member.open() as stream, target.open("xb") as out:
        meter = _Meter(repr(member.name), stream, member.packed, limits, most)
        while block := meter.read():
            out.write(block)
    if meter.given != member.size:
        raise ArchiveError(f"{member.name!r} holds {meter.given:,} bytes, not the {member.size:,} it states; refused")
    return meter.given


def _checked(archive: Path, name: str) -> str:
    """A member's path without "." and empty parts; an ArchiveError if it is absolute, goes up, or is odd."""
    parts = name.split("/")
    odd = "\\" in name or re.match(r"[A-Za-z]:", name) or any(ord(letter) < 32 for letter in name)
    if not name or name.startswith("/") or ".." in parts or odd:
        raise ArchiveError(f"{archive}: the member name {name!r} leads out of the archive or is odd; refused")
    return "/".join(part for part in parts if part not in ("", "."))


class _Targets:
    """The files that have been claimed; file systems that ignore case or accents' spelling must not mix two up."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.folders: set[str] = set()

    def claim(self, archive: Path, path: str) -> None:
        """Take a path, or raise an ArchiveError where it is taken, or a file stands where it needs a folder."""
        key = PurePosixPath(unicodedata.normalize("NFC", path).casefold())
        parents = {str(parent) for parent in key.parents}
        if str(key) in self.files or str(key) in self.folders or parents & self.files:
            raise ArchiveError(f"{archive}: two members would be written to {path!r}; refused")
        self.files.add(str(key))
        self.folders |= parents
