"""A study in plain words: its verdict, the worth of the leaks of protocol paper, melody told by skyline and models."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from midibert_ray.music.protocol import CLEAN, PAPER, PROTOCOLS
from midibert_ray.music.tasks import MELODY, TASKS
from midibert_ray.report import kinds, statistics
from midibert_ray.report.baselines import NO_MELODY, PLAIN, QUADRANTS, SONG, Baseline
from midibert_ray.report.statistics import Floats, Interval, p_text
from midibert_ray.report.table import (
    Key,
    ResultTable,
    Score,
    by_key,
    labels,
    mean_confusion,
    scores,
    shared_clusters,
    tallies,
)
from midibert_ray.studies import paper
from midibert_ray.studies.result import METRIC_WORDS, TrialResult

MODELS = {"pretrained": "MidiBERT", "scratch": "MidiBERT without pre-training", "rnn": "the RNN"}
BY_PITCH = "-by-pitch"


def verdict(tables: Sequence[ResultTable], start: str = "") -> list[str]:
    """Two sentences: the worth of pre-training by task, and where the best models stand beside trivial answers.

    About protocol clean where a study has it. An effect counts as beyond chance where its interval, over other pieces,
    leaves zero out. A sweep, which looks at no test split, has no verdict. `start` names the weights that all encoders
    began with, if there were such.
    """
    found = scores(tables)
    protocols = {key.protocol for key in found}
    if not found or any(table.split != "test" for table in tables):
        return []
    protocol = CLEAN.name if CLEAN.name in protocols else PAPER.name
    tasks = kinds.in_order(key.task for key in found if key.protocol == protocol)
    worth = [text for task in tasks if (text := _pretraining(found, tables, protocol, task))]
    if worth:
        begun = f", that of the weights {start} included," if start else ""
        first = f"Under protocol {protocol} pre-training{begun} is worth {_listed(worth)}."
    else:
        first = "No task was learnt both with and without pre-training: this study does not say what it is worth."
    placed = [_beside_trivial(found, tables, protocol, task) for task in tasks]
    return [first, f"O{_listed(placed, '; ')[1:]}."]


def _pretraining(found: Mapping[Key, Score], tables: Sequence[ResultTable], protocol: str, task: str) -> str:
    key = Key(protocol, task, "pretrained")
    full, scratch = found.get(key), found.get(other := key._replace(variant="scratch"))
    if not full or not scratch:
        return ""
    interval = statistics.difference(*tallies(full, scratch), paired=True, statistic=full.statistic)
    cells = (table.cells.get(other) for table in tables)
    tested = next((cell.p for cell in cells if cell and cell.p is not None), None)
    verdict = f"{'' if interval[0] > 0 or interval[1] < 0 else 'not '}beyond chance"
    p = f", {p_text(tested)} over {len(full.tally)} pieces" if tested is not None else ""
    return f"{_points(full, scratch, interval)} of {METRIC_WORDS[full.kind]} on {task} ({verdict}{p})"


def _beside_trivial(found: Mapping[Key, Score], tables: Sequence[ResultTable], protocol: str, task: str) -> str:
    column = {key.variant: score for key, score in found.items() if key[:2] == (protocol, task)}
    best = max(column, key=lambda variant: column[variant].accuracy)
    low, high = column[best].interval
    lines = (table.highest_trivial(protocol, task) for table in tables)
    top = max(filter(None, lines), key=lambda item: item.accuracy)
    place = "above" if low > top.accuracy else "below" if high < top.accuracy else "not clearly apart from"
    return (
        f"on {task} the best row, {labels(tables)[best]}, has {_percent(column[best])} "
        f"{_between(low, high)}: {place} the highest trivial line ({top.name}, {_number(top.accuracy)} %)"
    )


def _listed(parts: Sequence[str], separator: str = ", ") -> str:
    *most, last = parts
    return f"{separator.join(most)}{';' if separator != ', ' and most else ''} and {last}" if most else last


def sentences(tables: Sequence[ResultTable]) -> list[str]:
    """All findings of some tables in words."""
    return [*leaks(tables), *beside_plain(tables)]


def leaks(tables: Sequence[ResultTable]) -> list[str]:
    """Sentences, one a leak that the cells of a study measure."""
    found = scores(tables)
    sentences = [_order(found, task.name) for task in TASKS.values() if task.level == "note"]
    sentences += [_songs(found, tables, task.name) for task in TASKS.values() if task.song]
    return [sentence for sentence in sentences if sentence]


def _order(found: Mapping[Key, Score], task: str) -> str:
    """The accuracy that the order of notes within an onset gives away, by models that differ in nothing else."""
    worth = {}
    for variant, model in MODELS.items():
        track, pitch = (found.get(Key(PAPER.name, task, variant + end)) for end in ("", BY_PITCH))
        if track and pitch:
            worth[model] = track, pitch, statistics.difference(*tallies(track, pitch), paired=True)
    if not worth:
        return ""
    (model, (track, pitch, interval)), *others = worth.items()
    gives = "gives" if interval[0] > 0 else "does not measurably give"
    rest = (f"; {_points(*each)} for {other}" for other, each in others)
    return (
        f"Under protocol paper the order of notes {gives} the {task} away: {model} scores {_percent(track)} with notes "
        f"track by track and {_percent(pitch)} with notes by pitch, all else equal: the leak is worth "
        f"{_points(track, pitch, interval)}{''.join(rest)}."
    )


def _songs(found: Mapping[Key, Score], tables: Sequence[ResultTable], task: str) -> str:
    """The accuracy that clips of one song in train and test give away."""
    baselines = (item for table in tables for item in table.baselines if item.name == SONG)
    trivial = {item.name: item for item in baselines if (item.protocol, item.task) == (PAPER.name, task)}
    known = (f" Without any model: {name}, {100 * item.accuracy:.1f} %." for name, item in trivial.items())
    for variant, model in MODELS.items():
        shared, disjoint = (found.get(Key(protocol, task, variant)) for protocol in PROTOCOLS)
        if shared and disjoint:
            worth = statistics.difference(shared.by_piece, disjoint.by_piece, paired=False)
            return (
                f"Under protocol paper clips of one song stand in train and test: {model} tells the {task} of "
                f"{_percent(shared)} of the test segments, and of {_percent(disjoint)} where no song is in both "
                f"(protocol clean, which repairs padding too): a difference of {_points(shared, disjoint, worth)}."
                f"{''.join(known)}"
            )
    return ""


def beside_plain(tables: Sequence[ResultTable]) -> list[str]:
    """Sentences, one a column: the best row beside plain features, where these are known."""
    found = scores(tables)
    plain = {(item.protocol, item.task): item for table in tables for item in table.baselines if item.name == PLAIN}
    names, told = labels(tables), []
    for (protocol, task), item in plain.items():
        column = {key: score for key, score in found.items() if key[:2] == (protocol, task)}
        if not column:
            continue
        key, best = max(column.items(), key=lambda each: each[1].accuracy)
        first, second = tallies(best, item)
        if not len(first):
            continue
        clusters = shared_clusters(best, item)
        worth = statistics.difference(first, second, paired=True, statistic=best.statistic, clusters=clusters)
        verb = "does better than" if worth[0] > 0 else "does worse than" if worth[1] < 0 else "is not told from"
        points = f"{_number(best.accuracy - item.accuracy)} points {_between(*worth)}"
        told.append(
            f"{task}, protocol {protocol}: the best row, {names[key.variant]}, {verb} textbook models of plain "
            f"features ({item.note.partition(',')[0]}): {_number(best.accuracy)} against {_number(item.accuracy)} % "
            f"{METRIC_WORDS[best.kind]}, a difference of {points}."
        )
    return told


def _percent(score: Score) -> str:
    return f"{_number(score.accuracy)} %"


def _number(share: float) -> str:
    """In %, with a minus sign."""
    return f"{100 * share:.1f}".replace("-", "−")


def _between(low: float, high: float) -> str:
    return f"[{_number(low)}, {_number(high)}]"


def _points(first: Score, second: Score, interval: Interval) -> str:
    return f"{_number(first.accuracy - second.accuracy)} points {_between(*interval)}"


class MelodyOrNot(NamedTuple):
    """Melody told from the two other classes by a rule or a model."""

    name: str
    task: str
    protocol: str
    counts: Sequence[float]
    """The `QUADRANTS`, means over seeds."""
    printed: float | None
    """The paper's accuracy in %."""

    @property
    def accuracy(self) -> float:
        hits, _, _, rest = self.counts
        return (hits + rest) / max(sum(self.counts), 1)

    @property
    def f1(self) -> float:
        """Note F1. All notes are given: nothing is matched in time and pitch, as mir_eval matches found notes."""
        hits, false, missed, _ = self.counts
        return 2 * hits / max(2 * hits + false + missed, 1)


def melody_or_not(
    outcomes: Iterable[TrialResult], baselines: Sequence[Baseline], tables: Sequence[ResultTable]
) -> list[MelodyOrNot]:
    """Melody against bridge and accompaniment together (paper, §VIII-A1): rules and plain features first, then models.

    Where a study has the models whose confusions the paper shows, only these; else all.
    """
    groups = {key: group for key, group in by_key(outcomes).items() if kinds.melody(group[0])}
    shown = [key for key in groups if key.variant in paper.CONFUSED] or list(groups)
    names, rows = labels(tables), []
    for column in sorted(dict.fromkeys(key[:2] for key in shown), key=lambda each: [*PROTOCOLS].index(each[0])):
        protocol, task = column
        mine = {key.variant: groups[key] for key in shown if key[:2] == column}
        melody = kinds.melody(next(iter(mine.values()))[0])
        models = {
            variant: _quadrants(mean_confusion(group), group[0].classes.index(melody))
            for variant, group in mine.items()
        }
        hits, false, missed, rest = next(iter(models.values()))
        told: dict[str, Sequence[float]] = {NO_MELODY: (0, 0, hits + missed, false + rest)}
        for item in baselines:
            if (item.protocol, item.task) != column:
                continue
            if "TP" in item.detail:
                told[item.name] = [item.detail[name] for name in QUADRANTS]
            elif item.confusion:
                told[item.name] = _quadrants(np.array(item.confusion), list(item.detail).index(melody))
        printed = paper.MELODY_OR_NOT if task == MELODY.name else {}
        for name, counts in (told | models).items():
            rows.append(MelodyOrNot(names.get(name, name), task, protocol, counts, printed.get(name)))
    return rows


def _quadrants(matrix: Floats, melody: int) -> tuple[float, float, float, float]:
    """The `QUADRANTS` of the class melody, given by its number, in confusion counts."""
    hits = matrix[melody, melody]
    true, said = matrix[melody].sum(), matrix[:, melody].sum()
    return float(hits), float(said - hits), float(true - hits), float(matrix.sum() - true - said + hits)
