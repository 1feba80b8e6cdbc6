"""Publishers' archives -> the folders that tokenization reads, each whole and compared with the paper's copy.

    {root}/POP909/...             a corpus, with the publisher's licence and README and our SOURCE.json
    {root}/downloads/pop909.zip   its archive until it is unpacked; one that was put there by hand will do as well

A folder that is there is never written to.
"""

import fcntl
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from midibert_ray import storage
from midibert_ray.corpora.catalogue import CORPORA, Corpus, corpus
from midibert_ray.corpora.contents import Contents, compare, measure, published
from midibert_ray.corpora.fetch import PATIENT, Patience, Remote, fetch, probe, verify
from midibert_ray.corpora.sources import (
    SOURCES,
    ArchiveError,
    DownloadError,
    PublisherUnreachableError,
    Source,
    megabytes,
)
from midibert_ray.corpora.unpack import unpack
from midibert_ray.settings.text import aligned, counted
from midibert_ray.storage import digests

logger = logging.getLogger(__name__)

_ROOM = 64 << 20  # disk space left alone
_QUICK = Patience(timeout_s=10, attempts=2)
_SPREAD = 4  # small files fill whole blocks, and annotations come along


@dataclass(frozen=True, kw_only=True)
class Item:
    """A chosen corpus: its source, its target, and the size that its server states."""

    source: Source
    root: Path
    remote: Remote | None = None
    """None: it is there already, or its server did not answer."""
    problem: DownloadError | None = None
    """Why its server did not answer."""

    @property
    def corpus(self) -> Corpus:
        return CORPORA[self.source.corpus]

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


def survey(names: Sequence[str], root: str, *, patience: Patience = _QUICK) -> list[Item]:
    """Ask the servers for the sizes of corpora to put below `corpora.root`, all at once; fetches nothing.

    Raises:
        ValueError: no folder, or a name that is no published corpus.
    """
    if not root or not storage.is_local(root):
        raise ValueError(f"corpora.root={root!r} is not allowed; name the local folder to fill: corpora.root=/data")
    for name in names:
        if corpus(name).name not in SOURCES:
            raise ValueError(f"corpus {name!r} has no publisher to fetch it from; use {', '.join(SOURCES)}")
    items = [Item(source=SOURCES[name], root=Path(storage.resolve(root))) for name in dict.fromkeys(names)]
    with ThreadPoolExecutor(max_workers=len(items) or 1) as pool:
        return list(pool.map(lambda item: _ask(item, patience), items))


def table(items: Sequence[Item]) -> str:
    """The items as they are printed before anything is fetched."""
    rows = [("corpus", "archive", "unpacked", "state", "licence", "target")]
    for item in items:
        size = "-" if item.remote is None else "not stated" if item.remote.size is None else megabytes(item.remote.size)
        unpacked = f"{counted(len(item.contents.files), 'files')}, {megabytes(item.contents.bytes)}"
        rows.append((item.corpus.name, size, unpacked, item.state, item.corpus.licence, str(item.target)))
    return aligned(rows)


def install(items: Sequence[Item], *, patience: Patience = PATIENT) -> list[str]:
    """Fetch, unpack and compare each corpus that is not there; the names of those that failed, which stop no other."""
    failed = []
    for item in items:
        try:
            if item.target.exists():
                _compare(item, item.target, f"; add them to {item.target}, or move that folder away to fetch all")
                logger.info("%s is there, nothing to do", item.corpus.name)
            else:
                _install(item, patience)
            logger.info("%s: %s files in %s", item.corpus.name, f"{len(item.contents.files):,}", item.target)
        except (DownloadError, OSError) as error:
            failed.append(item.corpus.name)
            by_hand = item.problem or isinstance(error, PublisherUnreachableError)
            logger.error("%s: %s%s", item.corpus.name, error, f". {_by_hand(item)}" if by_hand else "")
    return failed


def _ask(item: Item, patience: Patience) -> Item:
    source = item.source
    if item.state != "to fetch":
        return item
    try:
        remote = probe(source.url, record=source.record, patience=patience)
    except DownloadError as error:
        return replace(item, problem=error)
    return replace(item, remote=replace(remote, checksums={**remote.checksums, **source.checksums}))


def _by_hand(item: Item) -> str:
    first, *others = item.contents.files
    return (
        f"By hand: fetch {item.source.url} where there is a network (see also {item.corpus.url}), save it as "
        f"{item.archive} and run the same command again, which unpacks it; or unpack it yourself so that "
        f"{item.root / item.corpus.folder / first} and {len(others):,} more files are there. "
        f"Licence: {item.corpus.licence}."
    )


def _install(item: Item, patience: Patience) -> None:
    stated = f" (Zenodo states {item.remote.licence})" if item.remote and item.remote.licence else ""
    logger.info("%s: licence %s%s; cite %s", item.corpus.name, item.corpus.licence, stated, item.corpus.citation)
    by_hand = item.archive.exists()
    if not (by_hand or item.remote):
        raise item.problem or PublisherUnreachableError(f"{item.source.url} was not asked; run the same command again")
    with _alone(item):
        if item.remote and not by_hand:
            _need(item, (item.remote.size or 0) + _SPREAD * item.contents.bytes)
            logger.info("%s: fetching %s", item.corpus.name, item.source.url)
            fetch(item.remote, item.archive, patience=patience)
        try:
            _unpack(item)
        except ArchiveError as error:
            if by_hand:
                raise DownloadError(f"{error}; replace {item.archive}, or delete it to have it fetched") from error
            item.archive.unlink()
            raise DownloadError(f"{error}; the archive was removed, the same command fetches it again") from error
        item.archive.unlink()


def _unpack(item: Item) -> None:
    """Archive -> target, by way of a hidden folder beside it that is renamed when all is well."""
    _need(item, _SPREAD * item.contents.bytes)
    verify(item.archive, item.source.checksums)
    with storage.whole_folder(item.target) as folder:
        unpack(item.archive, folder, item.source.place)
        found = _compare(item, folder)
        (folder / "SOURCE.json").write_text(_provenance(item, found) + "\n", encoding="utf-8")


def _compare(item: Item, top: Path, hint: str = "") -> Contents:
    """The content of a corpus's top folder; a difference from the paper's copy that leaves it usable is a warning.

    Raises:
        ArchiveError: files are missing; ends in the hint.
    """
    found = measure(item.corpus, top.joinpath(*item.corpus.folder.split("/")[1:]))
    difference = compare(item.contents, found)
    if difference.missing:
        raise ArchiveError(f"of the paper's {len(item.contents.files):,} files {difference}{hint}")
    if difference:
        logger.warning("%s: not what the paper's copy holds, so numbers may differ: %s", item.corpus.name, difference)
    return found


def _provenance(item: Item, found: Contents) -> str:
    """SOURCE.json: where a corpus came from, and under which terms."""
    corpus, difference = item.corpus, compare(item.contents, found)
    archive = digests.of_file(item.archive)
    facts = {
        "corpus": corpus.name,
        "title": corpus.title,
        "publisher": corpus.url,
        "licence": corpus.licence,
        "licence_of_record": item.remote.licence if item.remote else "",
        "may_be_redistributed": corpus.redistribute,
        "citation": corpus.citation,
        "archive": {"url": item.source.url, "bytes": archive["size"], "sha256": archive["sha256"]},
        "unpacked": datetime.now(UTC).isoformat(timespec="seconds"),
        "contents": {"files": len(found.files), "bytes": found.bytes, "digest": found.digest},
        "differs": {"changed": difference.changed, "unknown": difference.unknown},
    }
    return json.dumps(facts, indent=1, ensure_ascii=False)


def _need(item: Item, size: int) -> None:
    """Refuse to begin what the disk cannot hold."""
    free = shutil.disk_usage(item.root).free - _ROOM
    if size > free:
        raise DownloadError(
            f"{item.root} has room for {megabytes(max(free, 0))}, but {item.corpus.name} needs {megabytes(size)}: "
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
