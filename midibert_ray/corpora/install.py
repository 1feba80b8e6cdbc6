"""Publishers' archives -> the folders that `music.corpora` reads, each whole and compared with the paper's copy.

{root}/POP909/...             a corpus, with the publisher's licence and README and our SOURCE.json
{root}/downloads/pop909.zip   its archive until it is unpacked; one that was put there by hand will do as well

A folder that is there is never written to.
"""

import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from midibert_ray import storage
from midibert_ray.corpora import catalogue as corpora
from midibert_ray.corpora.contents import Contents, compare, measure, published
from midibert_ray.corpora.fetch import Patience, Remote, fetch, probe, verify
from midibert_ray.corpora.sources import SOURCES, ArchiveError, DownloadError, Source, UnreachableError, megabytes
from midibert_ray.corpora.unpack import Limits, unpack
from midibert_ray.settings.text import aligned

logger = logging.getLogger(__name__)

_ROOM = 64 << 20  # disk space left alone
_SPREAD = 4  # small files fill whole blocks, and annotations come along


class IncompleteError(DownloadError):
    """A corpus that lacks files which the paper uses."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One wanted corpus: what it is, where it goes, and what is known of it before anything is fetched."""

    source: Source
    root: Path
    remote: Remote | None = None
    """None: it is there already, or its server did not answer."""
    problem: DownloadError | None = None
    """Why its server did not answer."""

    @property
    def corpus(self) -> corpora.Corpus:
        return corpora.CORPORA[self.source.corpus]

    @property
    def contents(self) -> Contents:
        return self.source.contents or published(self.source.corpus)

    @property
    def target(self) -> Path:
        """The corpus's top folder, which appears whole or not at all."""
        return self.root / self.corpus.folder.split("/")[0]

    @property
    def archive(self) -> Path:
        return self.root / "downloads" / f"{self.source.corpus}.zip"

    @property
    def state(self) -> str:
        if self.target.exists():
            return "there"
        if self.archive.exists():
            return "archive there"
        return "unreachable" if self.problem else "to fetch"


def survey(
    names: Sequence[str], root: str, *, sources: Mapping[str, Source] = SOURCES, patience: Patience | None = None
) -> list[Item]:
    """Ask the servers for sizes, all at once; fetches nothing.

    Args:
        names: corpora, such as "pop909".
        root: the local folder to put them in, `corpora.root`.
        sources: where each comes from.
        patience: with the servers.

    Raises:
        ValueError: no folder, or a name that is no published corpus.
    """
    if not root or not storage.is_local(root):
        raise ValueError(f"corpora.root={root!r} is not allowed; name the local folder to fill: corpora.root=/data")
    for name in names:
        if corpora.corpus(name).name not in sources:
            raise ValueError(f"corpus {name!r} has no publisher to fetch it from; use {', '.join(sources)}")
    items = [Item(source=sources[name], root=Path(storage.resolve(root))) for name in dict.fromkeys(names)]
    with ThreadPoolExecutor(max_workers=len(items) or 1) as pool:
        return list(pool.map(lambda item: _ask(item, patience or Patience(timeout_s=10)), items))


def table(items: Sequence[Item]) -> str:
    """The items as they are printed before anything is fetched."""
    rows = [("corpus", "archive", "unpacked", "state", "licence", "target")]
    for item in items:
        size = "-" if item.remote is None else "not stated" if item.remote.size is None else megabytes(item.remote.size)
        unpacked = f"{len(item.contents.files):,} files, {megabytes(item.contents.bytes)}"
        rows.append((item.source.corpus, size, unpacked, item.state, item.corpus.licence, str(item.target)))
    return aligned(rows)


def install(
    items: Sequence[Item], *, patience: Patience | None = None, limits: Limits | None = None, free: int | None = None
) -> list[str]:
    """Fetch, unpack and compare each corpus that is not there; one that fails stops no other.

    Args:
        items: what `survey` gave.
        patience: with the servers.
        limits: of what an archive may hold.
        free: bytes to use at most; None: what the disk has.

    Returns:
        the names of those that failed; why is logged.
    """
    failed = []
    for item in items:
        try:
            _install(item, patience or Patience(), limits or Limits(), free)
        except (DownloadError, OSError) as error:
            failed.append(item.source.corpus)
            by_hand = item.problem or isinstance(error, UnreachableError)
            logger.error("%s: %s%s", item.source.corpus, error, f". {_by_hand(item)}" if by_hand else "")
    return failed


def _ask(item: Item, patience: Patience) -> Item:
    source = item.source
    if item.state != "to fetch":
        return item
    try:
        remote = probe(source.url, record=source.record, local=source.local, patience=patience)
        return replace(item, remote=remote)
    except DownloadError as error:
        return replace(item, problem=error)


def _by_hand(item: Item) -> str:
    first, *others = item.contents.files
    return (
        f"By hand: fetch {item.source.url} where there is a network (see also {item.corpus.url}), save it as "
        f"{item.archive} and run the same command again, which unpacks it; or unpack it yourself so that "
        f"{item.root / item.corpus.folder / first} and {len(others):,} more files are there. "
        f"Licence: {item.corpus.licence}."
    )


def _install(item: Item, patience: Patience, limits: Limits, free: int | None) -> None:
    name, corpus = item.source.corpus, item.corpus
    if item.target.exists():
        try:
            _compare(item, item.target)
        except IncompleteError as error:
            raise IncompleteError(f"{item.target}: {error}; add them, or move that folder away to fetch all") from error
        logger.info("%s: %s files in %s, nothing to do", name, f"{len(item.contents.files):,}", item.target)
        return
    stated = f" (Zenodo states {item.remote.licence})" if item.remote and item.remote.licence else ""
    logger.info("%s: licence %s%s; cite %s", name, corpus.licence, stated, corpus.citation)
    if item.remote is None and not item.archive.exists():
        raise item.problem or UnreachableError(f"{item.source.url} was not asked for; run the same command again")
    with _alone(item):
        fetched = not item.archive.exists()
        if fetched:
            _fetch(item, patience, free)
        try:
            _unpack(item, limits, free)
        except (ArchiveError, IncompleteError) as error:
            if not fetched:
                raise DownloadError(f"{error}; replace {item.archive}, or delete it to have it fetched") from error
            item.archive.unlink()
            raise DownloadError(f"{error}; the archive was removed, the same command fetches it again") from error
        item.archive.unlink()
    logger.info("%s: %s files in %s", name, f"{len(item.contents.files):,}", item.target)


def _fetch(item: Item, patience: Patience, free: int | None) -> None:
    remote = item.remote
    assert remote is not None
    _need(item, (remote.size or 0) + _SPREAD * item.contents.bytes, free)
    if item.source.sha256:
        remote = replace(remote, checksums=dict(remote.checksums) | {"sha256": item.source.sha256})
    logger.info("%s: fetching %s", item.source.corpus, remote.url)
    fetch(remote, item.archive, patience=patience)


def _unpack(item: Item, limits: Limits, free: int | None) -> None:
    """Archive -> target, by way of a hidden folder beside it that is renamed when all is well."""
    _need(item, _SPREAD * item.contents.bytes, free)
    verify(item.archive, {"sha256": item.source.sha256} if item.source.sha256 else {})
    staging = item.target.with_name(f".{item.target.name}.download")
    shutil.rmtree(staging, ignore_errors=True)  # of a job that was killed: the lock is ours
    try:
        staging.mkdir()
        unpack(item.archive, staging, item.source.place, limits)
        found = _compare(item, staging)
        (staging / "SOURCE.json").write_text(_provenance(item, found) + "\n", encoding="utf-8")
        staging.rename(item.target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _compare(item: Item, top: Path) -> Contents:
    """What a corpus's top folder holds; a difference from the paper's copy that leaves it usable is a warning.

    Raises:
        IncompleteError: files are missing.
    """
    found = measure(item.corpus, top.joinpath(*item.corpus.folder.split("/")[1:]))
    difference = compare(item.contents, found)
    if difference.missing:
        raise IncompleteError(f"of the paper's {len(item.contents.files):,} files {difference}")
    if difference:
        logger.warning("%s: not what the paper's copy holds, so numbers may differ: %s", item.source.corpus, difference)
    return found


def _provenance(item: Item, found: Contents) -> str:
    """SOURCE.json: where a corpus came from, and under which terms."""
    corpus, difference = item.corpus, compare(item.contents, found)
    with item.archive.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return json.dumps(
        {
            "corpus": corpus.name,
            "title": corpus.title,
            "publisher": corpus.url,
            "licence": corpus.licence,
            "licence_of_record": item.remote.licence if item.remote else "",
            "may_be_redistributed": corpus.redistribute,
            "citation": corpus.citation,
            "archive": {"url": item.source.url, "bytes": item.archive.stat().st_size, "sha256": sha256},
            "unpacked": datetime.now(UTC).isoformat(timespec="seconds"),
            "contents": {"files": len(found.files), "bytes": found.bytes, "digest": found.digest},
            "differs": {"changed": difference.changed, "unknown": difference.unknown},
        },
        indent=1,
        ensure_ascii=False,
    )


def _need(item: Item, size: int, free: int | None) -> None:
    """Refuse to begin what the disk cannot hold."""
    room = shutil.disk_usage(item.root).free - _ROOM if free is None else free
    if size > room:
        raise DownloadError(
            f"{item.root} has room for {megabytes(max(room, 0))}, but {item.source.corpus} needs {megabytes(size)}: "
            "free some, or choose another corpora.root"
        )


@contextmanager
def _alone(item: Item) -> Iterator[None]:
    """Keep two jobs from writing the same corpus; a killed job's lock is void."""
    folder = item.archive.parent
    folder.mkdir(parents=True, exist_ok=True)
    lock = item.archive.with_suffix(".lock")
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(f"another job is fetching it (it holds {lock}); wait for that one") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            with suppress(OSError):  # what lies there for another corpus, or for the next attempt, stays
                folder.rmdir()
