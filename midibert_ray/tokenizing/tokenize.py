"""MIDI files -> token stores, with Ray Data, on as many nodes as the cluster has.

The driver lists a corpus and cuts its pieces, sorted by id, into shards; a task makes one shard: it reads the
files, tokenizes them in the sandbox of its process, writes one Parquet file and returns a small row a piece. A task
that is repeated overwrites what it wrote. When all pieces of a corpus were heard of, the driver writes the manifest.
"""

import contextlib
import json
import logging
import pickle
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from tqdm.auto import tqdm

from midibert_ray import storage
from midibert_ray.data.format import MANIFEST, find_manifest, read_manifest, store_digest, write_manifest
from midibert_ray.music.events import ZERO_DURATION
from midibert_ray.music.grid import OFF_GRID, OFF_GRID_SHARE
from midibert_ray.music.vocabulary import vocabulary_digest
from midibert_ray.settings.text import aligned, counted
from midibert_ray.storage.lease import Lease
from midibert_ray.tokenizing import commit
from midibert_ray.tokenizing.plan import CorpusPlan, plan_corpus
from midibert_ray.tokenizing.shard import Shard, make_shard

logger = logging.getLogger(__name__)

_CONTENT = ("digest", "counts", "dropped_notes", "remarks", "quarantined", "duplicates")
"""Keys of a manifest by which two stores differ."""
_KEPT_LISTINGS = 16
_PROGRESS_S = 2.0  # between two lines in the log
_EXPLAINED = {
    OFF_GRID: f": share of onsets further than a 32nd triplet from the nearest sixteenth {OFF_GRID_SHARE:g} or more; "
    "by chance 1/3"
}
"""By remark: what it means."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A finished token store."""

    uri: str
    manifest: dict[str, Any]
    found: bool
    """True where it was there already."""

    @classmethod
    def standing(cls, uri: str) -> "Summary | None":
        """The store at a URI, if a whole one stands there; needs no Ray."""
        manifest = find_manifest(uri)
        return cls(uri=uri, manifest=manifest, found=True) if manifest else None

    @staticmethod
    def table(summaries: Sequence["Summary"]) -> str:
        """Stores side by side as text, with the reasons of what is missing below.

        Seconds are those from the start of a corpus's first task to the end of its last one. Corpora that are
        made at the same time share the machines, so that the column need not add up to the time of the job.
        """
        head = ("corpus", "pieces", "segments", "notes", "dropped", "quarantined", "seconds")
        rows = aligned([head, *(summary._row() for summary in summaries)], numbers=True)
        return "\n".join([rows, *(line for summary in summaries for line in summary.notes())])

    def _row(self) -> tuple[str, ...]:
        manifest, counts = self.manifest, self.manifest["counts"]
        dropped, quarantined = sum(manifest["dropped_notes"].values()), len(manifest["quarantined"])
        numbers = (counts["pieces"], counts["segments"], counts["notes"], dropped, quarantined)
        seconds = "found" if self.found else f"{manifest['seconds']:.1f}"
        return (manifest["corpus"], *(f"{number:,}" for number in numbers), seconds)

    def remarks(self) -> Iterator[str]:
        """Lines: what there is to say of the pieces, such as how many are off the grid."""
        for remark, count in self.manifest["remarks"].items():
            yield f"{self.manifest['corpus']}: {counted(count, remark)}{_EXPLAINED.get(remark, '')}"

    def notes(self, most: int = 10) -> Iterator[str]:
        """Lines: the store's URI, its dropped notes by reason, remarks, duplicates, and its first quarantined files."""
        name, quarantined = self.manifest["corpus"], self.manifest["quarantined"]
        yield f"{name}: {self.uri}"
        for reason, count in self.manifest["dropped_notes"].items():
            normal = " (normal for POP909)" if reason == ZERO_DURATION and name in ("pop909", "sample") else ""
            yield f"{name}: dropped {counted(count, 'notes')}: {reason}{normal}"
        yield from self.remarks()
        if same := len(self.manifest["duplicates"]):
            yield f"{name}: {counted(same, 'files')} of the same bytes as another, named in {MANIFEST}, left out"
        for entry in quarantined[:most]:
            yield f"{name}: quarantined {entry['file']}: {entry['reason']}"
        if len(quarantined) > most:
            yield f"{name}: {counted(len(quarantined) - most, 'files')} more, all in {MANIFEST}"


def tokenize_corpora(names: Sequence[str], **settings: Any) -> list[Summary]:
    """Plan and make the token stores of some corpora; see `tokenize_plans`, and for the settings `plan_corpus`."""
    return tokenize_plans([plan_corpus(name, **settings) for name in names])


def tokenize_plans(plans: Sequence[CorpusPlan]) -> list[Summary]:
    """Make token stores, all in one Ray Dataset; stores that are there already, of the same files, are found.

    A store is found by its listing alone (`CorpusPlan.is_current`). Where a file has another time, or one that could
    not be read now can, the corpus is tokenized again, and the store is replaced if that changes it.

    A store that another job is making is waited for. Needs a running Ray.

    Raises:
        ValueError: for a corpus of which no piece could be tokenized; the other stores are published.
    """
    for parent in {storage.root.tokens(plan.storage_root) for plan in plans}:
        commit.remove_leftovers(parent)
    made, failures = _make([plan for plan in plans if not plan.is_current()])
    if failures:
        raise ValueError("\n".join(failures))
    return [Summary(uri=plan.uri, manifest=read_manifest(plan.uri), found=plan.uri not in made) for plan in plans]


class _Ledger:
    """The account that the driver keeps of one corpus's pieces; its memory is some 100 bytes a piece."""

    def __init__(self, plan: CorpusPlan, held: Lease) -> None:
        self.plan, self._held = plan, held
        self.shards = plan.shards(held.mark)
        self._digests: dict[str, str] = {}
        self._quarantined: dict[str, str] = {}
        self._notes = self._segments = 0
        self._dropped: Counter[str] = Counter()
        self._remarks: Counter[str] = Counter()
        self._nodes: Counter[str] = Counter()
        self._unread: set[str] = set()
        self._began, self._ended = float("inf"), 0.0

    def add(self, report: dict[str, Any]) -> None:
        """Enter a piece (a `shard.Report`, and where and when its task ran)."""
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
        self._remarks.update(json.loads(report["remarks"]))

    @property
    def complete(self) -> bool:
        """Tell whether every piece was heard of."""
        return len(self._digests) + len(self._quarantined) == len(self.plan.pieces) - len(self.plan.duplicates)

    def publish(self) -> str | None:
        """Make the store, or renew the one that is there, or say why there is none."""
        if self._digests:
            manifest, standing = self._manifest(), find_manifest(self.plan.uri)
            if standing and all(standing[key] == manifest[key] for key in _CONTENT):
                self._confirm(standing, manifest["checked"])
            else:
                commit.publish(self._held, manifest, [shard.name for shard in self.shards])
            return None
        reasons = Counter(self._quarantined.values()).most_common(3)
        listed = "; ".join(f"{reason} ({counted(count, 'files')})" for reason, count in reasons)
        return f"corpus {self.plan.corpus.name}: none of its files can be used: {listed}"

    def _confirm(self, standing: dict[str, Any], checked: dict[str, Any]) -> None:
        """Tell the manifest of a store with the same content of this listing.

        The last few listings are kept: copies of a corpus differ in times, and may take turns.
        """
        earlier = [listing for listing in standing["checked"]["listings"] if listing != self.plan.listing]
        listings = [*earlier, self.plan.listing][-_KEPT_LISTINGS:]
        self._held.check()
        write_manifest(self.plan.uri, {**standing, "checked": {**checked, "listings": listings}})

    def _manifest(self) -> dict[str, Any]:
        quarantined = self._quarantined | self.plan.quarantined
        return {
            "corpus": storage.without_query(self.plan.corpus.name),  # which server had it is no part of a name
            "protocol": self.plan.protocol.name,
            "settings": self.plan.settings,
            "vocabulary_digest": vocabulary_digest(),
            "counts": {
                "files": len(self._digests) + len(quarantined) + len(self.plan.duplicates),
                "pieces": len(self._digests),
                "notes": self._notes,
                "segments": self._segments,
            },
            "dropped_notes": dict(sorted(self._dropped.items())),
            "remarks": dict(sorted(self._remarks.items())),
            "quarantined": [{"file": f, "reason": reason} for f, reason in sorted(quarantined.items())],
            "duplicates": [{"file": file, "of": first} for file, first in sorted(self.plan.duplicates.items())],
            "digest": store_digest(self._digests.items()),
            "checked": {"listings": [self.plan.listing], "unread": sorted(self._unread)},
            "seconds": round(self._ended - self._began, 1),
            "nodes": dict(sorted(self._nodes.items())),
        }


def _make(plans: Sequence[CorpusPlan]) -> tuple[set[str], list[str]]:
    """Tokenize and publish; gives the URIs of what was made, and the problems of corpora that cannot be used."""
    with contextlib.ExitStack() as stack:
        ledgers = {ledger.plan.corpus.name: ledger for ledger in _begin(plans, stack)}
        shards = [shard for ledger in ledgers.values() for shard in ledger.shards]
        progress = Progress("tokenize", "pieces", sum(len(shard.pieces) for shard in shards))
        failures: list[str | None] = []
        for reports in _stream(shards) if shards else ():
            ledger = ledgers[reports[0]["corpus"]]
            for report in reports:
                ledger.add(report)
            progress.add(len(reports))
            if ledger.complete:
                failures.append(ledger.publish())
    return {ledger.plan.uri for ledger in ledgers.values()}, [failure for failure in failures if failure]


def _begin(plans: Sequence[CorpusPlan], stack: contextlib.ExitStack) -> Iterator[_Ledger]:
    """Take the leases of stores, for as long as `stack` is open; those that were made meanwhile are passed over."""
    # In the order of their URIs, so that two jobs never wait for each other.
    for plan in sorted({plan.corpus.name: plan for plan in plans}.values(), key=lambda plan: plan.uri):
        with contextlib.ExitStack() as own:
            held = own.enter_context(commit.work(plan.uri, f"tokenizing {plan.corpus.name}"))
            if not plan.is_current():
                yield _Ledger(plan, held)
                stack.push(own.pop_all())


def _stream(shards: Sequence[Shard]) -> Iterator[list[dict[str, Any]]]:
    """Run one task a shard, wherever there is a free CPU, and give the reports of a shard when it is done.

    Raises:
        FileNotFoundError: where a node does not see the corpus or the store.
    """
    with quiet():
        rows = [{"shard": pickle.dumps(shard)} for shard in shards]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).flat_map(_task, num_cpus=1)
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        reports = pa.table(batch).to_pylist()
        if absent := reports[0].get("absent"):
            raise FileNotFoundError(absent)
        yield reports


def _task(row: dict[str, Any]) -> list[dict[str, Any]]:
    began = time.time()
    try:
        reports = make_shard(pickle.loads(row["shard"]))
    except FileNotFoundError as error:
        return [{"absent": str(error)}]  # raised by the driver: Ray Data would bury it in its own
    place = {"node": ray.util.get_node_ip_address(), "began": began, "ended": time.time()}
    return [{**report, **place} for report in reports]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Datasets that are created inside keep to themselves; each keeps the context of its creation."""
    context = ray.data.DataContext.get_current()
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it would tell that its bars are off, and more
    before = context.enable_progress_bars, context.print_on_execution_start
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before


class Progress:
    """A line in the log now and then, and a bar in a notebook."""

    def __init__(self, what: str, unit: str, total: int) -> None:
        self._what, self._unit, self._total, self._done = what, unit, total, 0
        self._started = self._last = time.monotonic()
        self._bar = tqdm(total=total, desc=what, unit=f" {unit}", disable="ipykernel" not in sys.modules)

    def add(self, count: int) -> None:
        """Count what is done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if now - self._last < _PROGRESS_S and self._done < self._total:
            return
        self._last = now
        rate = self._done / (now - self._started)
        share, left = 100 * self._done // self._total, (self._total - self._done) / rate
        done = f"{self._done:,}/{self._total:,}"
        # below ten a second a decimal tells whether it moves
        speed = f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}"
        logger.info(
            "%s %s %s (%d %%), %s %s/s, eta %.0f s", self._what, done, self._unit, share, speed, self._unit, left
        )
        if self._done >= self._total:
            self._bar.close()
