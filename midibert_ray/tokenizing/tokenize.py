"""MIDI files -> token stores, with Ray Data, on as many nodes as the cluster has.

The driver lists a corpus and cuts its pieces, sorted by id, into parts; a task makes one part: it reads the
files, tokenizes them in the sandbox of its process, writes `part-00000.parquet` and returns a small row a
piece. Which pieces a part holds depends on their number alone, so that a store has the same content for any
number of workers; a task that is repeated overwrites what it wrote.
"""

import contextlib
import json
import logging
import pickle
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from midibert_ray import storage
from midibert_ray.data import layout
from midibert_ray.data.columns import store_digest
from midibert_ray.music.protocol import Protocol
from midibert_ray.music.vocabulary import vocabulary_digest
from midibert_ray.settings.text import aligned
from midibert_ray.tokenizing import commit as staging
from midibert_ray.tokenizing.plan import Plan, plan_corpus
from midibert_ray.tokenizing.shard import Part, make_part

__all__ = ["Plan", "Summary", "plan_corpus", "tokenize_corpora", "tokenize_corpus", "tokenize_plans"]

logger = logging.getLogger(__name__)

_LEAST_IN_PART, _MOST_PARTS = 64, 1024
_KEPT_LISTINGS = 16


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A finished token store."""

    address: str
    manifest: dict[str, Any]
    found: bool
    """Whether it was there already."""

    @staticmethod
    def table(summaries: Sequence["Summary"]) -> str:
        """Stores side by side as text, with the reasons of what is missing below.

        Seconds are those from the start of a corpus's first task to the end of its last one. Corpora that are
        made at the same time share the machines, so that the column need not add up to the time of the job.
        """
        head = ("corpus", "pieces", "segments", "notes", "dropped", "quarantined", "seconds")
        table = aligned([head, *(summary._row() for summary in summaries)], numbers=True)
        return "\n".join([table, *(line for summary in summaries for line in summary._notes())])

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
        plan_corpus(
            name,
            corpora_root=corpora_root,
            storage_root=storage_root,
            protocol=protocol,
            segment=segment,
        )
        for name in names
    ]
    return tokenize_plans(plans, progress_s=progress_s)


def tokenize_plans(plans: Sequence[Plan], *, progress_s: float = 2.0) -> list[Summary]:
    """Make token stores, all in one Ray Dataset; stores that are there already, of the same files, are found.

    A store is found by its listing alone (`Plan.is_current`). Where a file has another time, or one that could
    not be read now can, the corpus is tokenized again, and the store is replaced if that changes it.

    Needs a running Ray. `progress_s` is the time between two lines of progress in the log, seconds.

    Raises:
        ValueError: for a corpus of which no piece could be tokenized; the other stores are published.
    """
    for parent in {storage.join(plan.storage_root, "tokens") for plan in plans}:
        staging.remove_stale(parent)
    addresses = [plan.address for plan in plans]
    found = [plan.is_current() for plan in plans]
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
        yield plan.part(number, plan.pieces[start : start + count], staging_address)


class _Ledger:
    """What the driver has heard of the pieces of one corpus; its memory is some 100 bytes a piece."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.staging = plan, staging.create(plan.address)
        self._digests: dict[str, str] = {}
        self._quarantined: dict[str, str] = {}
        self._notes = self._segments = 0
        self._dropped: Counter[str] = Counter()
        self._nodes: Counter[str] = Counter()
        self._unread: set[str] = set()
        self._began, self._ended = float("inf"), 0.0

    def add(self, report: dict[str, Any]) -> None:
        """Enter a piece (a `part.Report`, and where and when its task ran)."""
        self._began, self._ended = min(self._began, report["began"]), max(self._ended, report["ended"])
        if report["piece"] in self._digests or report["file"] in self._quarantined:
            return  # a task that was repeated
        self._nodes[report["node"]] += 1
        if report["reason"]:
            self._quarantined[report["file"]] = self.plan.reason(report["file"], report["reason"])
            if report["unread"]:
                self._unread.add(report["file"])
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
        """Make the store, or renew the one that is there, or say why there is none."""
        if self._digests:
            manifest, address = self._manifest(), self.plan.address
            if not storage.exists(storage.join(address, layout.MANIFEST)):
                staging.publish(self.staging, address, manifest)
            elif not self._confirms(layout.read_manifest(address), manifest):
                staging.replace(self.staging, address, manifest)
            return None
        reasons = Counter(self._quarantined.values()).most_common(3)
        listed = "; ".join(f"{reason} ({count:,} files)" for reason, count in reasons)
        return f"corpus {self.plan.corpus.name}: none of its files can be used: {listed}"

    def _confirms(self, standing: dict[str, Any], manifest: dict[str, Any]) -> bool:
        """Whether a store already holds all this; if so, its manifest is told of the listing.

        The last few listings are kept: copies of a corpus differ in times, and may take turns.
        """
        if any(standing.get(key) != manifest[key] for key in ("digest", "counts", "dropped_notes", "quarantined")):
            return False
        earlier = standing.get("checked", {}).get("listings", ())
        listings = [*(listing for listing in earlier if listing != self.plan.listing), self.plan.listing]
        layout.write_manifest(
            self.plan.address, {**standing, "checked": {**manifest["checked"], "listings": listings[-_KEPT_LISTINGS:]}}
        )
        return True

    def _manifest(self) -> dict[str, Any]:
        quarantined = self._quarantined | self.plan.quarantined
        return {
            "corpus": storage.without_query(self.plan.corpus.name),  # which server had it is no part of a name
            "protocol": self.plan.protocol.name,
            "settings": self.plan.settings,
            "vocabulary_digest": vocabulary_digest(),
            "counts": {
                "files": len(self._digests) + len(quarantined),
                "pieces": len(self._digests),
                "notes": self._notes,
                "segments": self._segments,
            },
            "dropped_notes": dict(sorted(self._dropped.items())),
            "quarantined": [{"file": f, "reason": reason} for f, reason in sorted(quarantined.items())],
            "digest": store_digest(self._digests.items()),
            "checked": {"listings": [self.plan.listing], "unread": sorted(self._unread)},
            "seconds": round(self._ended - self._began, 1),
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
    """Run one task a part, wherever there is a free CPU, and give the reports of a part when it is done.

    Raises:
        FileNotFoundError: where a node does not see the corpus or the store.
    """
    with _quiet():
        rows = [{"part": pickle.dumps(part)} for part in parts]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).flat_map(_task, num_cpus=1)
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        reports = pa.table(batch).to_pylist()
        if absent := reports[0].get("absent"):
            raise FileNotFoundError(absent)
        yield reports


def _task(row: dict[str, Any]) -> list[dict[str, Any]]:
    began = time.time()
    try:
        reports = make_part(pickle.loads(row["part"]))
    except FileNotFoundError as error:
        return [{"absent": str(error)}]  # raised by the driver: Ray Data would bury it in its own
    place = {"node": ray.util.get_node_ip_address(), "began": began, "ended": time.time()}
    return [{**report, **place} for report in reports]


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
