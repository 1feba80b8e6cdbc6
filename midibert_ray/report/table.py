"""Result tables: the accuracy of every cell with its interval, tested against a baseline."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from midibert_ray.music.protocol import PROTOCOLS
from midibert_ray.report import kinds, statistics
from midibert_ray.report.baselines import CONSTANT, MAJORITY, Baseline, majority
from midibert_ray.report.baselines import PLAIN as FEATURES
from midibert_ray.report.statistics import Floats, Interval, Statistic
from midibert_ray.studies import paper
from midibert_ray.studies.folds import merged
from midibert_ray.studies.paper import PaperTable, Row
from midibert_ray.studies.result import METRIC_WORDS, TrialResult
from midibert_ray.studies.trials import VARIANTS, Trial

PLAIN = "results"
"""Name of the table of variants that no table of the paper has."""

STATISTICS = (
    "Mean over seeds, with its 95 % interval: pieces are drawn anew 10,000 times, because the notes and segments of "
    "one piece resemble each other (where every piece is a single segment: Wilson's). p: two rows are alike, by "
    "exchanging their answers piece by piece, after Holm's correction within a column."
)
"""How to read the accuracies of a table."""


class Key(NamedTuple):
    """A configuration, without its seed."""

    protocol: str
    task: str
    variant: str


@dataclass(frozen=True, kw_only=True)
class Score:
    """The metrics of one configuration: means over its seeds."""

    kind: str
    """As `Task.kind`."""
    accuracy: float
    """Of classes; of numbers the explained variance, of tags the mean average precision."""
    wilson: Interval | None
    """Takes all notes or segments for independent; of classes alone."""
    over_seeds: Interval | None
    """Student's t, where there are several seeds: other seeds on these pieces."""
    over_pieces: Interval
    """Piece-clustered bootstrap: other pieces, these seeds."""
    f1: float | None
    """Macro-F1; None of numbers."""
    piece_accuracy: float | None
    """Share of the pieces whose mean logits are right, for sequence-level tasks."""
    mae: float | None
    """Mean absolute error, of numbers."""
    spearman: float | None
    """Rank correlation, of numbers."""
    tally: Mapping[str, tuple[float, ...]]
    """Piece -> correct (mean over the seeds) and scored; for other kinds see `kinds.tally`."""
    clusters: Mapping[str, str]
    """Piece -> its group, of pieces that are in one."""
    support: Mapping[str, int]
    """Class -> notes or segments that have it; tag -> pieces; none of numbers."""
    seeds: int
    seconds: float
    """Sum over the seeds."""
    device_hours: float

    @property
    def interval(self) -> Interval:
        """The interval to believe: `over_pieces`; `wilson` where each piece is one segment, or there is one piece."""
        drawn = self.clusters or 1 < len(self.tally) < self.scored
        return self.wilson if self.wilson and not drawn else self.over_pieces

    @property
    def scored(self) -> int:
        """Number of test notes or segments; of numbers and tags of pieces."""
        return sum(self.support.values()) if self.kind == "classes" else len(self.tally)

    @property
    def statistic(self) -> Statistic:
        """The metric of the tally."""
        return kinds.statistic(self.kind, len(self.support))

    @property
    def by_piece(self) -> Floats:
        """The tally as `statistics` takes it."""
        return np.array(list(self.tally.values()))

    @classmethod
    def of(cls, group: Sequence[TrialResult]) -> "Score":
        first, accuracies = group[0], [item.accuracy for item in group]
        tally = kinds.tally(first.kind, [item.pieces for item in group])
        clusters = {piece: group for item in group for piece, group in item.clusters.items()}
        of_classes, rows = first.kind == "classes", np.array(list(tally.values()))
        counts = map(sum, first.confusion) if of_classes else map(int, rows[:, : len(first.classes)].sum(axis=0))

        def mean(name: str) -> float | None:
            found = [item.metrics[key] for item in group if (key := f"{item.split}/{name}") in item.metrics]
            return float(np.mean(found)) if found else None

        lowest = -math.inf if first.kind == "number" else 0.0
        return cls(
            kind=first.kind,
            accuracy=float(np.mean(accuracies)),
            wilson=statistics.wilson(float(np.mean(accuracies)) * first.scored, first.scored) if of_classes else None,
            over_seeds=statistics.over_seeds(accuracies, lowest) if len(group) > 1 else None,
            over_pieces=statistics.over_pieces(
                rows, kinds.statistic(first.kind, len(first.classes)), statistics.number(list(tally), clusters)
            ),
            f1=mean("f1"),
            piece_accuracy=mean("piece_accuracy"),
            mae=mean("mae"),
            spearman=mean("spearman"),
            tally=tally,
            clusters=clusters,
            support=dict(zip(first.classes, counts, strict=True)),
            seeds=len(group),
            seconds=sum(item.seconds for item in group),
            device_hours=sum(item.seconds * item.devices for item in group) / 3600,
        )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A configuration in a row of a table."""

    score: Score | None = None
    """None where no seed has finished."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Trial -> reason, of the seeds that failed."""
    printed: float | None = None
    """The paper's accuracy in %."""
    p: float | None = None
    """That the row and the one it is tested against are alike."""

    @property
    def difference(self) -> float | None:
        """To the paper's accuracy, in points."""
        return 100 * self.score.accuracy - self.printed if self.score and self.printed is not None else None

    @property
    def reasons(self) -> str:
        return "; ".join(f"{trial}: {reason}" for trial, reason in self.failed.items())


@dataclass(frozen=True, kw_only=True)
class ResultTable(PaperTable):
    """A table of the paper, or of other variants, with our results under one or two protocols."""

    name: str
    """As in `study.tables`, or `PLAIN`."""
    split: str
    """The split that is scored: `test`, or `valid` in a sweep."""
    tasks: tuple[str, ...]
    protocols: tuple[str, ...]
    cells: Mapping[Key, Cell]
    """The configurations that have finished or failed."""
    baselines: tuple[Baseline, ...]

    @property
    def caption(self) -> str:
        """The metric, the split, and the row that others are tested against."""
        against = next((row.label for row in self.rows if row.variant == self.baseline), "the row above it")
        tested = any(cell.p is not None for cell in self.cells.values())
        metrics: dict[str, list[str]] = {}
        for key, cell in self.cells.items():
            names = metrics.setdefault(METRIC_WORDS[cell.score.kind if cell.score else "classes"], [])
            names += [key.task] if key.task not in names else []
        told = [metric if len(metrics) == 1 else f"{metric} of {', '.join(tasks)}" for metric, tasks in metrics.items()]
        what = "; ".join(told)
        return f"{what[:1].upper()}{what[1:]} on the {self.split} split in %" + (
            f"; p against {against}." if tested else "."
        )

    def baseline_names(self) -> list[str]:
        return list(dict.fromkeys(item.name for item in self.baselines))

    def trivial(self, protocol: str, task: str, name: str) -> Baseline | None:
        found = (item for item in self.baselines if (item.protocol, item.task, item.name) == (protocol, task, name))
        return next(found, None)

    def best(self, protocol: str, task: str) -> float | None:
        """The highest accuracy of a column; None where a trivial baseline is as good."""
        column = (cell.score for key, cell in self.cells.items() if key[:2] == (protocol, task))
        highest = max((score.accuracy for score in column if score), default=0.0)
        top = self.highest_trivial(protocol, task)
        return None if top and top.accuracy >= highest else highest

    def highest_trivial(self, protocol: str, task: str) -> Baseline | None:
        """The baseline of a column that scores best, of those that learn nothing from notes."""
        column = (item for item in self.baselines if (item.protocol, item.task) == (protocol, task))
        found = [item for item in column if item.name != FEATURES]
        return max(found, key=lambda item: item.accuracy, default=None)

    def constant(self, protocol: str, task: str) -> Baseline | None:
        """The baseline of a column that answers the same to everything."""
        return next(filter(None, (self.trivial(protocol, task, name) for name in CONSTANT)), None)


def build(
    outcomes: Sequence[TrialResult],
    failed: Mapping[Trial, str],
    baselines: Sequence[Baseline] = (),
    tables: Sequence[str] = (),
) -> list[ResultTable]:
    """The tables of a study, those of `study.tables`; variants that none of them has come in a table of their own.

    Args:
        outcomes: of the trials that have finished, in any order.
        failed: trial -> reason, of those that have failed.
        baselines: trivial ones. The majority class needs none: it is counted in what the rows have scored.
        tables: names.
    """
    cells = {key: Cell(score=Score.of(group)) for key, group in by_key(outcomes).items()}
    for trial, reason in failed.items():
        cell = cells.get(key := Key(trial.protocol, trial.task, trial.variant), Cell())
        cells[key] = replace(cell, failed={**cell.failed, trial.name: reason})
    layouts = {name: paper.TABLES[name] for name in tables if name in paper.TABLES}
    unknown = {key.variant for key in cells}.difference(paper.variants(tuple(layouts)))
    others = [*(name for name in VARIANTS if name in unknown), *sorted(unknown - VARIANTS.keys())]
    plain = PaperTable(
        title="Other variants" if layouts else "All variants",
        baseline="pretrained" if "pretrained" in others else "",
        rows=tuple(Row(label=variant, variant=variant, printed={}) for variant in others),
    )
    split = outcomes[0].split if outcomes else "test"
    made = (_table(name, layout, split, cells, baselines) for name, layout in (layouts | {PLAIN: plain}).items())
    return [table for table in made if table.cells]


def by_key(outcomes: Iterable[TrialResult]) -> dict[Key, list[TrialResult]]:
    """Outcomes that differ in their seed only, by seed; folds are merged, and corpora tested besides are columns."""
    groups: dict[Key, list[TrialResult]] = {}
    for whole in sorted(merged(outcomes), key=lambda item: item.seed):
        for item in whole.columns:
            groups.setdefault(Key(item.protocol, item.task, item.variant), []).append(item)
    return groups


def mean_confusion(group: Sequence[TrialResult]) -> Floats:
    """Confusion counts, the mean over some seeds: [true class, predicted class]."""
    return np.mean([item.confusion for item in group], axis=0, dtype=np.float64)


def scores(tables: Iterable[ResultTable]) -> dict[Key, Score]:
    """The scores in some tables, each configuration once."""
    return {key: cell.score for table in tables for key, cell in table.cells.items() if cell.score}


def labels(tables: Iterable[ResultTable]) -> dict[str, str]:
    """Variant -> label of its row, where it first comes."""
    names: dict[str, str] = {}
    for table in tables:
        for row in table.rows:
            names.setdefault(row.variant, row.label)
    return names


def tallies(first: Score | Baseline, second: Score | Baseline) -> tuple[Floats, Floats]:
    """Two scores over the pieces that they share, in the same order."""
    ours, theirs = first.tally, second.tally
    shared = [piece for piece in ours if piece in theirs]
    return np.array([ours[piece] for piece in shared]), np.array([theirs[piece] for piece in shared])


def shared_clusters(first: Score | Baseline, second: Score | Baseline) -> statistics.Clusters:
    """The clusters of the pieces that two scores share, in the order of `tallies`."""
    return statistics.number([piece for piece in first.tally if piece in second.tally], first.clusters)


def _table(
    name: str, layout: PaperTable, split: str, found: Mapping[Key, Cell], baselines: Iterable[Baseline]
) -> ResultTable:
    rows = {row.variant: row for row in layout.rows}
    own = {key: cell for key, cell in found.items() if key.variant in rows}
    scores = {key: cell.score for key, cell in own.items() if cell.score}
    p = _tests(layout, scores)
    columns = {(key.protocol, key.task) for key in own}
    # The majority class is counted here; a baseline with quadrants tells melody from the rest only (`findings`).
    others = (item for item in baselines if item.name != MAJORITY and "TP" not in item.detail)
    return ResultTable(
        **vars(layout),
        name=name,
        split=split,
        tasks=tuple(kinds.in_order(key.task for key in own)),
        protocols=tuple(protocol for protocol in PROTOCOLS if protocol in {protocol for protocol, _ in columns}),
        cells={
            key: replace(cell, printed=rows[key.variant].printed.get(key.task), p=p.get(key))
            for key, cell in own.items()
        },
        baselines=(
            *_majorities(layout, scores),
            *(item for item in others if (item.protocol, item.task) in columns),
        ),
    )


def _tests(layout: PaperTable, scores: Mapping[Key, Score]) -> dict[Key, float]:
    against = {row.variant: row.baseline or layout.baseline for row in layout.rows}
    columns: dict[tuple[str, str], dict[Key, float]] = {}
    for key, score in scores.items():
        other = key._replace(variant=against[key.variant])
        if other != key and other in scores:
            clusters = shared_clusters(score, scores[other])
            raw = statistics.paired_p(*tallies(score, scores[other]), score.statistic, clusters)
            columns.setdefault((key.protocol, key.task), {})[key] = raw
    corrected = (zip(raw, statistics.holm(list(raw.values())), strict=True) for raw in columns.values())
    return {key: p for column in corrected for key, p in column}


def _majorities(layout: PaperTable, scores: Mapping[Key, Score]) -> Iterable[Baseline]:
    """The majority class of each column, over what its baseline row has scored, or the first row that is there."""
    order = [layout.baseline, *(row.variant for row in layout.rows)]
    found: dict[tuple[str, str], Baseline] = {}
    of_classes = (key for key, score in scores.items() if score.kind == "classes")
    for key in sorted(of_classes, key=lambda key: order.index(key.variant)):
        found.setdefault((key.protocol, key.task), majority(key.protocol, key.task, scores[key].support))
    return found.values()


def majority_f1(item: Baseline) -> float:
    """Macro-F1 of always answering one class: the others that occur have none."""
    return 2 * item.accuracy / (1 + item.accuracy) / sum(count > 0 for count in item.detail.values())
