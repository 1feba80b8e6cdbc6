"""MIDI files -> token stores, with Ray Data, on as many nodes as the cluster has.

The driver lists a corpus and cuts its pieces, sorted by id, into parts; a task makes one part: it reads the
files, tokenizes them in the sandbox of its process, writes `part-00000.parquet` and returns a small row a
piece. Which pieces a part holds depends on their number alone, so that a store has the same content for any
number of workers; a task that is repeated overwrites what it wrote.
"""

import contextlib
import functools
import hashlib
import json
import logging
import pickle
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
from pyarrow import fs

from midibert_ray import storage
from midibert_ray.data import layout, staging
from midibert_ray.data.columns import FORMAT_VERSION, store_digest
from midibert_ray.data.part import Part, locate, make_part
from midibert_ray.music.corpora import Corpus, Piece, corpus
from midibert_ray.music.grid import Protocol
from midibert_ray.music.vocabulary import vocabulary_digest

logger = logging.getLogger(__name__)

_LEAST_IN_PART, _MOST_PARTS = 64, 1024


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What tokenizing one corpus means: which pieces, from where, to which address."""

    corpus: Corpus
    protocol: Protocol
    segment: int
    """Time steps of a segment; only counted with."""

    root: str
    """`corpora.root`, absolute."""

    pieces: tuple[Piece, ...] = field(repr=False)
    """Sorted by id."""

    sizes: dict[str, int] = field(repr=False)
    """Bytes of the pieces' files by path below the corpus folder; absent files are missing."""

    storage_root: str

    @property
    def settings(self) -> dict[str, Any]:
        """Whatever the content of the store depends on, apart from the files."""
        return {"protocol": self.protocol, "segment": self.segment, "format_version": FORMAT_VERSION}

    @functools.cached_property
    def address(self) -> str:
        """`{storage_root}/tokens/<corpus>-<hash>`; the hash covers settings, vocabulary and listing."""
        listing = [[p.piece, p.split, p.label, [self.sizes.get(f) for f in p.files]] for p in self.pieces]
        plain = corpus(self.corpus.name.partition("?")[0])  # without an endpoint of the object store
        identity = [plain.name, self.settings, vocabulary_digest(), listing]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return storage.join(self.storage_root, "tokens", f"{plain.slug}-{digest[:12]}")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A finished token store."""

    address: str
    manifest: dict[str, Any]
    found: bool
    """Whether it was there already."""

    @staticmethod
    def table(summaries: Sequence["Summary"]) -> str:
        """Stores side by side as text, with the reasons of what is missing below."""
        head = ("corpus", "pieces", "segments", "notes", "dropped", "quarantined", "seconds")
        rows = [head, *(summary._row() for summary in summaries)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        return "\n".join([*lines, *(line for summary in summaries for line in summary._notes())])

    def _row(self) -> tuple[str, ...]:
        manifest, counts = self.manifest, self.manifest["counts"]
        numbers = (
            counts["pieces"],
            counts["segments"],
            counts["notes"],
            sum(manifest["dropped_notes"].values()),
        )
        seconds = "found" if self.found else f"{manifest['seconds']:.1f}"
        quarantined = f"{len(manifest['quarantined']):,}"
        return (manifest["corpus"], *(f"{number:,}" for number in numbers), quarantined, seconds)

    def _notes(self, most: int = 10) -> Iterator[str]:
        """The store's address, its dropped notes by reason, and its first quarantined files."""
        name, quarantined = self.manifest["corpus"], self.manifest["quarantined"]
        yield f"{name}: {self.address}"
        for reason, count in self.manifest["dropped_notes"].items():
            yield f"{name}: dropped {count:,} notes: {reason}"
        for entry in quarantined[:most]:
            yield f"{name}: quarantined {entry['file']}: {entry['reason']}"
        if len(quarantined) > most:
            yield f"{name}: {len(quarantined) - most:,} more quarantined files are in {layout.MANIFEST}"


def plan_corpus(name: str, *, corpora_root: str, storage_root: str, protocol: Protocol, segment: int = 512) -> Plan:
    """List a corpus (`pop909`, ..., or `folder:/path`) and lay out its store.

    Raises:
        ValueError: for an unknown corpus or protocol, or a folder without MIDI files of the corpus.
        FileNotFoundError: if the corpus folder is not there.
    """
    chosen, root = _corpus(name), storage.resolve(corpora_root)
    location = locate(chosen, root)
    system, path = storage.filesystem(location)
    if system.get_file_info(path).type is not fs.FileType.Directory:
        hint = "" if chosen.absolute else f"; set corpora.root (now {corpora_root!r}) to where {chosen.folder} lies"
        raise FileNotFoundError(f"corpus {name}: there is no folder {location}{hint}")
    infos = system.get_file_info(fs.FileSelector(path, recursive=True))
    sizes = {info.path[len(path) :].lstrip("/"): int(info.size) for info in infos if info.is_file}
    pieces = sorted(chosen.pieces(sizes, protocol), key=lambda piece: piece.piece)
    if not any(piece.files[0] in sizes for piece in pieces):
        sought = f"{pieces[0].files[0]} and others" if pieces else "*.mid or *.midi"
        raise ValueError(f"corpus {name}: its MIDI files ({sought}) are not below {location}")
    return Plan(
        corpus=chosen,
        protocol=protocol,
        segment=segment,
        root=root,
        pieces=tuple(pieces),
        sizes={file: sizes[file] for piece in pieces for file in piece.files if file in sizes},
        storage_root=storage.resolve(storage_root),
    )


def _corpus(name: str) -> Corpus:
    """The corpus of a name; workers run in other directories, so that a folder's path is made absolute."""
    prefix = "folder:"
    if name.startswith(prefix):
        name = prefix + storage.resolve(corpus(name).folder)
    return corpus(name)


def tokenize_corpus(name: str, **settings: Any) -> Summary:
    """Tokenize one corpus; see `tokenize_corpora`."""
    return tokenize_corpora([name], **settings)[0]


def tokenize_corpora(
    names: Sequence[str],
    *,
    corpora_root: str,
    storage_root: str,
    protocol: Protocol,
    segment: int = 512,
    progress_s: float = 2.0,
) -> list[Summary]:
    """Plan and make the token stores of some corpora; see `plan_corpus` and `tokenize_plans`."""
    plans = [
        plan_corpus(name, corpora_root=corpora_root, storage_root=storage_root, protocol=protocol, segment=segment)
        for name in names
    ]
    return tokenize_plans(plans, progress_s=progress_s)


def tokenize_plans(plans: Sequence[Plan], *, progress_s: float = 2.0) -> list[Summary]:
    """Make token stores, all in one Ray Dataset; stores that are there already are found.

    Needs a running Ray. `progress_s` is the time between two lines of progress in the log, seconds.

    Raises:
        ValueError: for a corpus of which no piece could be tokenized; the other stores are published.
    """
    for parent in {storage.join(plan.storage_root, "tokens") for plan in plans}:
        staging.remove_stale(parent)
    addresses = [plan.address for plan in plans]
    found = [storage.exists(storage.join(address, layout.MANIFEST)) for address in addresses]
    missing = [plan for plan, there in zip(plans, found, strict=True) if not there]
    failures = _make(missing, progress_s) if missing else []
    if failures:
        raise ValueError("\n".join(failures))
    return [
        Summary(address=address, manifest=layout.read_manifest(address), found=there)
        for address, there in zip(addresses, found, strict=True)
    ]


def _parts(plan: Plan, staging_address: str) -> Iterator[Part]:
    """The tasks of a corpus: which pieces a part holds depends on their number alone."""
    count = max(_LEAST_IN_PART, -(-len(plan.pieces) // _MOST_PARTS))
    for number, start in enumerate(range(0, len(plan.pieces), count)):
        pieces = plan.pieces[start : start + count]
        yield Part(
            corpus=plan.corpus.name,
            root=plan.root,
            protocol=plan.protocol,
            segment=plan.segment,
            number=number,
            pieces=pieces,
            sizes={file: plan.sizes[file] for piece in pieces for file in piece.files if file in plan.sizes},
            staging=staging_address,
        )


class _Ledger:
    """What the driver has heard of the pieces of one corpus; its memory is some 100 bytes a piece."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.staging = plan, staging.create(plan.address)
        self._digests: dict[str, str] = {}
        self._quarantined: dict[str, str] = {}
        self._notes = self._segments = 0
        self._dropped: Counter[str] = Counter()
        self._nodes: Counter[str] = Counter()
        self._started = time.monotonic()

    def add(self, report: dict[str, Any]) -> None:
        """Enter a piece (a `part.Report`, and the node that made it)."""
        if report["piece"] in self._digests or report["file"] in self._quarantined:
            return  # a task that was repeated
        self._nodes[report["node"]] += 1
        if report["reason"]:
            self._quarantined[report["file"]] = report["reason"]
            return
        self._digests[report["piece"]] = report["digest"]
        self._notes += report["notes"]
        self._segments += report["segments"]
        self._dropped.update(json.loads(report["dropped"]))

    @property
    def complete(self) -> bool:
        """Whether every piece was heard of."""
        return len(self._digests) + len(self._quarantined) == len(self.plan.pieces)

    def publish(self) -> str | None:
        """Make the store, or say why there is none."""
        if self._digests:
            staging.publish(self.staging, self.plan.address, self._manifest())
            return None
        reasons = Counter(self._quarantined.values()).most_common(3)
        listed = "; ".join(f"{reason} ({count:,} files)" for reason, count in reasons)
        return f"corpus {self.plan.corpus.name}: none of its files can be used: {listed}"

    def _manifest(self) -> dict[str, Any]:
        return {
            "corpus": self.plan.corpus.name,
            "protocol": self.plan.protocol,
            "settings": self.plan.settings,
            "vocabulary_digest": vocabulary_digest(),
            "counts": {
                "files": len(self.plan.pieces),
                "pieces": len(self._digests),
                "notes": self._notes,
                "segments": self._segments,
            },
            "dropped_notes": dict(sorted(self._dropped.items())),
            "quarantined": [{"file": f, "reason": reason} for f, reason in sorted(self._quarantined.items())],
            "digest": store_digest(self._digests.items()),
            "seconds": round(time.monotonic() - self._started, 1),
            "nodes": dict(sorted(self._nodes.items())),
        }


def _make(plans: Sequence[Plan], progress_s: float) -> list[str]:
    """Tokenize and publish; gives the complaints about corpora of which nothing could be used."""
    ledgers = {plan.corpus.name: _Ledger(plan) for plan in plans}
    progress = _Progress(sum(len(plan.pieces) for plan in plans), progress_s)
    failures: list[str | None] = []
    try:
        for reports in _stream([part for item in ledgers.values() for part in _parts(item.plan, item.staging)]):
            ledger = ledgers[reports[0]["corpus"]]
            for report in reports:
                ledger.add(report)
            progress.add(len(reports))
            if ledger.complete:
                failures.append(ledger.publish())
    finally:
        for ledger in ledgers.values():
            staging.discard(ledger.staging)
    return [failure for failure in failures if failure]


def _stream(parts: Sequence[Part]) -> Iterator[list[dict[str, Any]]]:
    """Run one task a part, wherever there is a free CPU, and give the reports of a part when it is done."""
    with _quiet():
        rows = [{"part": pickle.dumps(part)} for part in parts]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).flat_map(_task, num_cpus=1)
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield pa.table(batch).to_pylist()


def _task(row: dict[str, Any]) -> list[dict[str, Any]]:
    node = ray.util.get_node_ip_address()
    return [{**report, "node": node} for report in make_part(pickle.loads(row["part"]))]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Datasets that are created inside keep to themselves; each keeps the context of its creation."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it would tell that its bars are off, and more
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.print_on_execution_start
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before


class _Progress:
    """A line in the log now and then."""

    def __init__(self, total: int, every_s: float) -> None:
        self._total, self._every_s, self._done = total, every_s, 0
        self._started = self._last = time.monotonic()

    def add(self, pieces: int) -> None:
        """Count some pieces."""
        self._done += pieces
        now = time.monotonic()
        if now - self._last < self._every_s and self._done < self._total:
            return
        self._last = now
        rate = self._done / (now - self._started)
        logger.info(
            "tokenize %s/%s pieces (%d %%), %.0f pieces/s, eta %.0f s",
            f"{self._done:,}",
            f"{self._total:,}",
            100 * self._done // self._total,
            rate,
            (self._total - self._done) / rate,
        )
