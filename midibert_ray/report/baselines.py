"""Answers without training, on the test split: a model that does not beat this has learnt nothing.

Notes and segments count as they do for a trial (`training.finetune.TaskData`), so that a baseline stands in
one column with the models.
"""

import functools
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from midibert_ray.data.segments import Segments
from midibert_ray.data.store import TokenStore
from midibert_ray.music.skyline import skyline, top_note
from midibert_ray.music.tasks import TASKS, Task, note_labels, sequence_label, sequence_number, sequence_tags
from midibert_ray.music.vocabulary import PITCH_LOW
from midibert_ray.report import kinds, statistics
from midibert_ray.report.plain import plain
from midibert_ray.report.statistics import Interval
from midibert_ray.settings.config import Config
from midibert_ray.studies.folds import of_pieces
from midibert_ray.studies.result import METRIC, Record, column
from midibert_ray.training.predictions import KINDS, Predictions
from midibert_ray.training.task_data import TaskData, cut, several, split_of

MAJORITY = "majority class"
TRAINING = "majority class of training"
SKYLINE = "skyline"
TOP_NOTE = "top note"
NO_MELODY = "no melody at all"
SONG = "label of the song"
GROUP = "label of the group"
PLAIN = "plain features"
MEAN, MEDIAN = "mean", "median"
PRIOR = "shares of the tags"
"""Names of baselines."""
CONSTANT = (MAJORITY, MEAN, PRIOR)
"""The one that answers the same to everything, by kind of task."""
QUADRANTS = ("TP", "FP", "FN", "TN")
"""Notes of melody found, others taken for it, melody missed, and others rightly told from it."""


@dataclass(frozen=True, kw_only=True)
class Baseline(Record):
    """An answer to a task without a Transformer, scored on the test split."""

    protocol: str
    task: str
    name: str
    correct: int
    scored: int
    """Notes or segments of the test split; for `SONG` clips."""
    detail: dict[str, int]
    """Counts behind the two: notes or segments of each class; TP, FP, FN and TN; ..."""
    note: str
    """The rule, for a reader of a table."""
    kind: str = "classes"
    """As `Task.kind`."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics as a trial's, without the name of the split; empty of a rule that is counted alone."""
    pieces: dict[str, list[Any]] = field(default_factory=dict)
    """As `TrialResult.pieces`; empty of a rule that is counted alone."""
    clusters: dict[str, str] = field(default_factory=dict)
    """As `TrialResult.clusters`."""
    confusion: list[list[int]] = field(default_factory=list)
    """As `TrialResult.confusion`, of the classes of `detail`; empty of a rule that is counted alone."""

    @property
    def accuracy(self) -> float:
        """The metric of a table, as that of a trial."""
        return self.metrics[METRIC[self.kind]] if self.metrics else self.correct / self.scored

    @property
    def tally(self) -> dict[str, tuple[float, ...]]:
        """As that of a `Score`."""
        return kinds.tally(self.kind, [self.pieces]) if self.pieces else {}

    @property
    def interval(self) -> Interval | None:
        """95 % by drawing pieces anew; None of a rule that is counted alone."""
        rows, clusters = np.array(list(self.tally.values())), statistics.number(list(self.tally), self.clusters)
        metric = kinds.statistic(self.kind, len(self.detail))
        return statistics.over_pieces(rows, metric, clusters) if len(rows) else None


def baselines(
    config: Config,
    stores: TokenStore | Sequence[TokenStore],
    task: Task | None = None,
    besides: TokenStore | None = None,
) -> list[Baseline]:
    """The trivial baselines of a task on token stores that were made under `tokens.protocol`.

    With `besides`, a corpus that is not learned from, its test pieces take the place of those of the stores.

    Classes have the majority classes, that of the test split and that of the training split; a task that knows which
    class is the melody also skyline, the top note and, as these only tell melody from the rest, the answer that nothing
    is melody; one whose pieces are clips of songs also the label of the clip's song. Numbers have mean and median of
    the training split, tags their shares in it. Where groups are on both sides, the label of the group is one too.

    Raises:
        ValueError: where there is no test split, or its labels are not those of the task.
    """
    task, stores = task or TASKS[config.finetune.task], several(stores)
    segments = cut(config, [besides] if besides else stores, task, {"test"})
    train = cut(config, stores, task, {"train"})
    name = column(task.name, besides.corpus) if besides else task.name
    if task.kind != "classes":
        return [replace(item, task=name) for item in _constants(task, config.tokens.protocol, train, segments)]
    support, learned = _support(task, segments), _support(task, train)
    make = functools.partial(Baseline, protocol=config.tokens.protocol, task=name)
    usual = max(learned, key=learned.__getitem__)
    rule = f"always {usual}, the most frequent class of the training split"
    found = [
        majority(config.tokens.protocol, name, support),
        make(name=TRAINING, correct=support[usual], scored=sum(support.values()), detail=support, note=rule),
    ]
    if task.melody:
        found += _melody_or_not(task, segments, make)
    if task.song:
        found.append(_look_up(task, train, segments, make, SONG))
    if task.level == "sequence" and any(store.clusters for store in segments.stores):
        by_group = _look_up(task, train, segments, make, GROUP)
        found += [by_group] if by_group.detail["known"] else []
    return found


def plain_features(data: TaskData) -> list[Baseline]:
    """Textbook models of plain features, for each test split; learned and chosen on the other splits, see `plain`."""
    task, found = data.task, []
    unit = "notes" if task.level == "note" else "segments"
    for split, (predictions, model, learned) in plain(data).items():
        note = f"{model}, chosen in validation, learned from plain features of {learned:,} {unit}"
        made = _scored(task, data.config.tokens.protocol, PLAIN, predictions, data.splits[split], note, data.classes)
        corpus = split.removeprefix(split_of(""))
        found.append(made if corpus == split else replace(made, task=column(task.name, corpus)))
    return found


def _scored(
    task: Task,
    protocol: str,
    name: str,
    predictions: Predictions,
    segments: Segments,
    note: str,
    classes: tuple[str, ...],
) -> Baseline:
    """A baseline that answers for every segment or note, as models do."""
    matrix, pieces = predictions.matrix(), predictions.by_piece(segments.name)
    labels = predictions.label
    counts = labels.sum(axis=0) if labels.ndim == 2 else matrix.sum(axis=1)
    return Baseline(
        protocol=protocol,
        task=task.name,
        name=name,
        correct=int(np.trace(matrix)),
        scored=int(matrix.sum()) or len(pieces),
        detail={} if task.kind == "number" else dict(zip(classes, map(int, counts), strict=True)),
        note=note,
        kind=task.kind,
        metrics={key.removeprefix("test/"): value for key, value in predictions.metrics("test").items()},
        pieces=pieces,
        clusters=segments.clusters,
        confusion=matrix.tolist(),
    )


def _constants(task: Task, protocol: str, learned: Segments, segments: Segments) -> list[Baseline]:
    """The same answer to all test pieces, mean or median of the training split or the share of each tag there, and
    the label of the group, where test pieces have theirs there.
    """
    train, test = (
        _values(task, [each.label(piece, task.column) for piece in range(each.pieces)]) for each in (learned, segments)
    )
    answers = {MEAN: train.mean(axis=0), MEDIAN: np.median(train, axis=0)}
    if task.kind == "tags":
        answers = {PRIOR: train.mean(axis=0)}
    notes = {
        name: f"for every piece the {name} of the training split" + (f": {answer:.4g}" if answer.ndim == 0 else "")
        for name, answer in answers.items()
    }
    by_group, known = _of_groups(learned, segments, train)
    if known:
        answers[GROUP] = by_group
        notes[GROUP] = (
            f"for a piece the mean of its group in the training split, where {known} of {len(test)} pieces have it; "
            "for the others the mean of all"
        )
    found, numbers = [], np.arange(len(test))
    for name, answer in answers.items():
        said = np.broadcast_to(answer, test.shape).reshape(len(test), -1)
        said = logit(said.clip(1e-6, 1 - 1e-6)) if task.kind == "tags" else said
        none = np.full(len(test), -1)
        predictions = KINDS[task.kind](numbers, numbers, none, test, said.astype(np.float32))
        found.append(_scored(task, protocol, name, predictions, segments, notes[name], task.classes))
    return found


def _of_groups(learned: Segments, segments: Segments, train: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """For each test piece the mean over its group (or near-duplicates) in the training split, over all pieces there
    where it has none; and how many have.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for piece in range(learned.pieces):
        groups.setdefault((learned.corpus(piece), learned.cluster(piece)), []).append(piece)
    there = [groups.get((segments.corpus(piece), segments.cluster(piece))) for piece in range(segments.pieces)]
    return np.array([train[rows or slice(None)].mean(axis=0) for rows in there]), sum(map(bool, there))


def _values(task: Task, labels: Sequence[str | None]) -> NDArray[np.float64]:
    """Numbers [pieces], or 0 and 1 for tags [pieces, tags]."""
    if task.kind == "number":
        return np.array([sequence_number(task, label or "") for label in labels])
    found = np.zeros((len(labels), len(task.classes)))
    for row, label in enumerate(labels):
        found[row, list(sequence_tags(task, label or ""))] = 1
    return found


def merge(folds: Sequence[Baseline]) -> list[Baseline]:
    """The baselines of all folds as one of each column and name: counts are added, metrics are over all pieces."""
    groups: dict[tuple[str, str], list[Baseline]] = {}
    for item in folds:
        groups.setdefault((item.task, item.name), []).append(item)
    return [_merge(group) if len(group) > 1 else group[0] for group in groups.values()]


def _merge(group: Sequence[Baseline]) -> Baseline:
    first, scored = group[0], np.array([item.scored for item in group])
    pieces = {piece: row for item in group for piece, row in item.pieces.items()}
    detail = functools.reduce(operator.add, (Counter(item.detail) for item in group))
    names = set.intersection(*(set(item.metrics) for item in group))
    metrics = {name: float(np.average([item.metrics[name] for item in group], weights=scored)) for name in names}
    if pieces and first.kind != "classes":
        metrics |= of_pieces(first.kind, pieces.values())
    elif metrics:
        metrics["accuracy"] = sum(item.correct for item in group) / int(scored.sum())
    return replace(
        first,
        correct=sum(item.correct for item in group),
        scored=int(scored.sum()),
        detail={name: detail[name] for name in first.detail},
        note=f"{first.note}; so in the first of {len(group)} folds",
        metrics=metrics,
        pieces=pieces,
        clusters={piece: cluster for item in group for piece, cluster in item.clusters.items()},
        confusion=np.sum([item.confusion for item in group], axis=0).tolist() if first.confusion else [],
    )


def majority(protocol: str, task: str, support: Mapping[str, int]) -> Baseline:
    """Always answer the most frequent class of the test split; of equals the first.

    `support` has for each class the notes or segments of the test split that are of it.
    """
    best = max(support, key=support.__getitem__)
    return Baseline(
        protocol=protocol,
        task=task,
        name=MAJORITY,
        correct=support[best],
        scored=sum(support.values()),
        detail=dict(support),
        note=f"always {best}, the most frequent class of the test split",
    )


def _support(task: Task, segments: Segments) -> dict[str, int]:
    """Notes or segments of each class."""
    counts = np.bincount(_true_classes(task, segments), minlength=len(task.classes)).tolist()
    return dict(zip(task.classes, counts, strict=True))


def _true_classes(task: Task, segments: Segments) -> NDArray[np.int64]:
    """The class, 0..C-1, of everything that is scored: int64 [scored]."""
    if task.level == "sequence":
        pieces, _ = segments.locate(np.arange(len(segments)))
        return np.array([sequence_label(task, segments.label(int(piece), task.column) or "") for piece in pieces])
    batch = segments.gather(np.arange(len(segments)))
    labels = note_labels(task, batch)[batch.note >= 0].astype(np.int64)
    return labels[labels > 0] - 1


def _melody_or_not(task: Task, segments: Segments, make: Callable[..., Baseline]) -> list[Baseline]:
    """Skyline, the top note and their rival, over all notes of the test pieces.

    The authors run skyline on the MIDI files. Tokens of protocol paper have lost where the last onset was (see
    `quantize`), which changes the answer for 14 of POP909's 142,577 test notes.
    """
    rules = {
        SKYLINE: (skyline, "the highest note of an onset is melody, with refinements"),
        TOP_NOTE: (top_note, "the highest note of an onset is melody, unless one above it still sounds"),
        NO_MELODY: (lambda onset, *_: np.zeros(len(onset), np.bool_), "no note is melody"),
    }
    counts = {name: np.zeros((2, 2), np.int64) for name in rules}
    melody = task.classes.index(task.melody) + 1
    for number in range(segments.pieces):
        store, piece = segments.source(number)
        labels = note_labels(task, SimpleNamespace(**{task.column: getattr(store, task.column)[piece]}))
        known, true = labels > 0, labels == melody
        duration, pitch = store.tokens[piece, 3], store.tokens[piece, 2].astype(np.int64) + PITCH_LOW
        for name, (rule, _) in rules.items():
            said = rule(store.onset[piece], duration, pitch)
            np.add.at(counts[name], (true[known].astype(int), said[known].astype(int)), 1)
    found = []
    for name, (_, told) in rules.items():
        (tn, fp), (fn, tp) = counts[name].tolist()
        detail = dict(zip(QUADRANTS, (tp, fp, fn, tn), strict=True))
        note = f"melody against the rest: {told}"
        found.append(make(name=name, correct=tp + tn, scored=tp + fp + fn + tn, detail=detail, note=note))
    return found


def _song(task: Task, clip: str) -> str:
    found = re.fullmatch(task.song, clip)
    return found[1] if found else ""


def _look_up(task: Task, train: Segments, segments: Segments, make: Callable[..., Baseline], name: str) -> Baseline:
    """The majority label in the training split of the song (or group) of a clip (or piece): what a leak is worth."""

    def song(found: Segments, clip: int) -> tuple[str, str]:
        return found.corpus(clip), _song(task, found.piece_id(clip)) if name == SONG else found.cluster(clip)

    votes: dict[tuple[str, str], Counter[str | None]] = {}
    for index in range(train.pieces):
        votes.setdefault(song(train, index), Counter())[train.label(index, task.column)] += 1
    clips = range(segments.pieces)
    heard = [votes.get(song(segments, clip), Counter()) for clip in clips]
    known = np.array([bool(labels) for labels in heard])
    # max takes the first of equals
    answers = [max(task.classes, key=labels.__getitem__) for labels in heard]
    right = known & [answer == segments.label(clip, task.column) for clip, answer in zip(clips, answers, strict=True)]
    sizes = np.bincount(segments.locate(np.arange(len(segments)))[0], minlength=len(clips))
    between = f"{task.classes[0]} to {task.classes[-1]}"
    one, whole = ("clip", "song") if name == SONG else ("piece", "group")
    return make(
        name=name,
        correct=int(right.sum()),
        scored=len(clips),
        detail={"known": int(known.sum()), "segments": len(segments), "segments correct": int(sizes[right].sum())},
        note=f"by {one}: the majority label of the {one}'s {whole} in the training split, at a tie the first of "
        f"{between}; {known.sum()} of {len(clips)} {one}s have their {whole} there, the others count as wrong",
    )
