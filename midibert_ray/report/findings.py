"""What a study says in plain words: what the leaks of protocol paper are worth, and whether skyline is beaten."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from midibert_ray.music.protocol import PAPER
from midibert_ray.report import statistics
from midibert_ray.report.baselines import MAJORITY, NO_MELODY, Baseline
from midibert_ray.report.statistics import Interval
from midibert_ray.report.table import (
    PROTOCOLS,
    Key,
    ResultTable,
    Score,
    by_key,
    labels,
    mean_confusion,
    scores,
    tallies,
)
from midibert_ray.studies import paper
from midibert_ray.studies.result import Outcome

MODELS = {"pretrained": "MidiBERT", "scratch": "MidiBERT without pre-training", "rnn": "the RNN"}
BY_PITCH = "-by-pitch"


def leaks(tables: Sequence[ResultTable]) -> list[str]:
    """One sentence on each leak that the cells of a study measure; none where it has no such cells."""
    found = scores(tables)
    sentences = [_order(found, task) for task in ("melody", "velocity")] + [_songs(found, tables)]
    return [sentence for sentence in sentences if sentence]


def _order(found: Mapping[Key, Score], task: str) -> str:
    """What the order of notes within an onset gives away, by models that differ in nothing else."""
    pairs = {}
    for variant, model in MODELS.items():
        track = found.get(Key("paper", task, variant))
        pitch = found.get(Key("paper", task, variant + BY_PITCH))
        if track and pitch:
            pairs[model] = (track, pitch)
    if not pairs:
        return ""
    worth = {model: statistics.difference(*tallies(*pair), paired=True) for model, pair in pairs.items()}
    first, *others = pairs
    track, pitch = pairs[first]
    gives = "gives" if worth[first][0] > 0 else "does not measurably give"
    sentence = (
        f"Under protocol paper the order of notes {gives} the {task} away: {first} scores {_percent(track)} with notes "
        f"track by track and {_percent(pitch)} with notes by pitch, all else equal: the leak is worth "
        f"{_points(track, pitch, worth[first])}"
    )
    rest = (f"{_points(*pairs[model], worth[model])} for {model}" for model in others)
    return "; ".join([sentence, *rest]) + "."


def _songs(found: Mapping[Key, Score], tables: Sequence[ResultTable]) -> str:
    """What it is worth that clips of one song stand in train and test."""
    for variant, model in MODELS.items():
        shared, disjoint = (found.get(Key(protocol, "emotion", variant)) for protocol in ("paper", "clean"))
        if shared and disjoint:
            worth = statistics.difference(shared.by_piece, disjoint.by_piece, paired=False)
            sentence = (
                f"Under protocol paper clips of one song stand in train and test: {model} tells the emotion of "
                f"{_percent(shared)} of the test segments, and of {_percent(disjoint)} where no song is in both "
                f"(protocol clean, which repairs padding too): a difference of {_points(shared, disjoint, worth)}."
            )
            trivial = [item for item in _baselines(tables) if (item.protocol, item.task) == (PAPER.name, "emotion")]
            known = [f" Without any model: {item.name}, {100 * item.accuracy:.1f} %." for item in trivial]
            return sentence + "".join(known)
    return ""


def _baselines(tables: Sequence[ResultTable]) -> list[Baseline]:
    """The trivial baselines of all tables but the majority class, each once."""
    found = {(item.protocol, item.task, item.name): item for table in tables for item in table.baselines}
    return [item for item in found.values() if item.name != MAJORITY]


def _percent(score: Score) -> str:
    return f"{100 * score.accuracy:.1f} %"


def _points(first: Score, second: Score, interval: Interval) -> str:
    low, high = interval
    worth = 100 * (first.accuracy - second.accuracy)
    return f"{worth:.1f} points [{100 * low:.1f}, {100 * high:.1f}]".replace("-", "−")


@dataclass(frozen=True, kw_only=True)
class MelodyOrNot:
    """How well melody is told from the two other classes."""

    protocol: str
    name: str
    counts: Sequence[float]
    """TP, FP, FN and TN, means over seeds."""

    printed: float | None = None
    """The paper's accuracy in %."""

    @property
    def accuracy(self) -> float:
        """Share of the notes that are right."""
        hits, _, _, rest = self.counts
        return (hits + rest) / max(sum(self.counts), 1)

    @property
    def f1(self) -> float:
        """F1 of melody."""
        hits, false, missed, _ = self.counts
        return 2 * hits / max(2 * hits + false + missed, 1)


def melody_or_not(
    outcomes: Iterable[Outcome], baselines: Sequence[Baseline], tables: Sequence[ResultTable]
) -> list[MelodyOrNot]:
    """Melody against bridge and accompaniment together (paper, §VIII-A1): rules first, then models.

    Where a study has the models whose confusions the paper shows, only these; else all.
    """
    groups = {key: group for key, group in by_key(outcomes).items() if key.task == "melody"}
    shown = [key for key in groups if key.variant in paper.CONFUSED] or list(groups)
    names, printed = labels(tables), paper.MELODY_OR_NOT
    rows = []
    for protocol in (each for each in PROTOCOLS if any(key.protocol == each for key in shown)):
        models = {key.variant: _counts(groups[key]) for key in shown if key.protocol == protocol}
        hits, false, missed, rest = next(iter(models.values()))
        rules: dict[str, Sequence[float]] = {NO_MELODY: (0, 0, hits + missed, false + rest)}
        rules |= {
            item.name: _quadrants(item) for item in baselines if item.protocol == protocol and "TP" in item.detail
        }
        rows += [
            MelodyOrNot(protocol=protocol, name=names.get(name, name), counts=each, printed=printed.get(name))
            for name, each in (rules | models).items()
        ]
    return rows


def _quadrants(item: Baseline) -> list[float]:
    return [item.detail[name] for name in ("TP", "FP", "FN", "TN")]


def _counts(group: Sequence[Outcome]) -> tuple[float, float, float, float]:
    """TP, FP, FN and TN of the class melody, means over seeds."""
    matrix = mean_confusion(group)
    melody = group[0].classes.index("melody")
    hits = matrix[melody, melody]
    true, said = matrix[melody].sum(), matrix[:, melody].sum()
    return float(hits), float(said - hits), float(true - hits), float(matrix.sum() - true - said + hits)
