"""How far the answers of a model can be trusted: measured when its training ends, kept beside its weights.

A temperature makes probabilities out of logits (Guo et al., "On Calibration of Modern Neural Networks", 2017). The
metrics of a split say how often an answer of some probability is right, and how many answers are left where those below
a threshold are withheld. A class that is rare and looked for, such as a melody, has a probability from which it is the
answer. A distance says how unlike the training music a piece is.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

CALIBRATION = "calibration.json"
"""Name of the file in a model's folder."""

BINS = 15
"""Bins of a reliability diagram, equally wide."""

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Probabilities below which answers are withheld, in the table of a model card."""

FAMILIAR = 0.95
"""Share of the validation pieces that count as familiar."""

AXES = 32
"""Principal axes of the training music at most."""

TEMPERATURES = (0.05, 20.0)
"""The lowest and the highest; a split on which all or no answers are right would ask for more."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Answers whose probability lies in one bin of a reliability diagram."""

    confidence: float
    """Mean probability of these answers."""
    accuracy: float
    """Share of them that are right."""
    count: int


@dataclass(frozen=True, kw_only=True)
class Abstention:
    """Answers that are left where those below a threshold are withheld."""

    threshold: float
    coverage: float
    """Share of all answers."""
    accuracy: float | None
    """Share of them that are right; None where none is left."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Probabilities and answers on one split."""

    scored: int
    """Notes or segments."""
    ece_before: float
    """Expected calibration error with temperature 1: mean |confidence - accuracy| over the answers' bins."""
    ece: float
    """The same with the temperature."""
    bins: tuple[Bin, ...]
    """With the temperature, those that are not empty, ascending."""
    abstention: tuple[Abstention, ...]
    """With the temperature, by ascending threshold."""

    @classmethod
    def measure(cls, logits: ArrayLike, labels: ArrayLike, temperature: float) -> Self:
        """Of logits float [n, outputs] and labels int [n]; ValueError where there are none."""
        scores, truth = _scored(logits, labels)
        right = scores.argmax(axis=-1) == truth
        confidence = softmax(scores / temperature).max(axis=-1)
        bins = _bins(confidence, right)
        kept = {threshold: confidence >= threshold for threshold in THRESHOLDS}
        return cls(
            scored=len(truth),
            ece_before=_ece(_bins(softmax(scores).max(axis=-1), right)),
            ece=_ece(bins),
            bins=bins,
            abstention=tuple(
                Abstention(
                    threshold=threshold,
                    coverage=float(left.mean()),
                    accuracy=float(right[left].mean()) if left.any() else None,
                )
                for threshold, left in kept.items()
            ),
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """From the values that `asdict` gives."""
        bins = tuple(Bin(**each) for each in record["bins"])
        return cls(**{**record, "bins": bins, "abstention": tuple(Abstention(**each) for each in record["abstention"])})


@dataclass(frozen=True, kw_only=True)
class Favour:
    """A class that is the answer wherever it is probable enough, not only where it is the most probable one.

    The most probable answer is right most often; the F1 of a class is highest where the class is answered from half of
    that F1 on (Lipton, Elkan and Narayanaswamy, "Optimal Thresholding of Classifiers to Maximize F1 Measure", 2014).
    """

    name: str
    """Of the class."""
    least: float
    """The probability from which it is the answer: its F1 on the validation split is highest so."""
    f1: float
    """That F1."""
    f1_of_most_probable: float
    """Its F1 on the validation split where the most probable class is the answer."""

    @classmethod
    def fit(cls, name: str, probability: ArrayLike, truth: ArrayLike, answered: ArrayLike) -> Self | None:
        """For a class with these probabilities, float [n]; None where it is nowhere true.

        truth, answered: bool [n], where the class is right, and where it is the most probable.
        """
        order = np.argsort(-np.asarray(probability, dtype=np.float64), kind="stable")
        values, right = np.asarray(probability, dtype=np.float64)[order], np.asarray(truth, dtype=bool)[order]
        if not right.any():
            return None
        f1 = 2 * np.cumsum(right) / (np.arange(1, len(right) + 1) + right.sum())
        f1[:-1][values[1:] == values[:-1]] = 0  # what is equally probable is answered alike
        best = int(f1.argmax())
        both = int(np.sum(np.asarray(truth, dtype=bool) & np.asarray(answered, dtype=bool)))
        plain = 2 * both / (int(right.sum()) + int(np.sum(answered)))
        return cls(name=name, least=float(values[best]), f1=float(f1[best]), f1_of_most_probable=plain)


@dataclass(frozen=True, kw_only=True)
class Familiarity:
    """The training music as a cloud of pieces, each the mean of its notes' hidden states behind the last layer.

    The cloud is a normal distribution with a few principal axes, and the same variance along all others (Tipping and
    Bishop, "Probabilistic Principal Component Analysis", 1999). A melody model of 250 pieces of POP909 (3 layers of
    128) then flags 6 % of POP909's test pieces, 66 % of ASAP's scores, and all of EMOPIA and Pianist8, as a whole
    covariance matrix does. A variance for each hidden unit alone flags 29 %, 51 % and 38 % of these, the energy or the
    probability of its answers 10 % at most.
    """

    mean: tuple[float, ...]
    """[hidden]."""
    axes: tuple[tuple[float, ...], ...]
    """[axes, hidden]: the principal axes, each divided by the standard deviation along it."""
    rest: float
    """Variance along every other axis."""
    threshold: float
    """Distance below which `FAMILIAR` of the validation pieces lie."""

    @classmethod
    def fit(cls, train: ArrayLike, valid: ArrayLike) -> Self:
        """From the pooled hidden states of training pieces and of validation pieces, float [pieces, hidden] each."""
        known = np.asarray(train, dtype=np.float64)
        pieces, hidden = known.shape
        _, widths, axes = np.linalg.svd(known - known.mean(axis=0), full_matrices=False)
        variances = np.square(widths) / pieces
        count = min(AXES, pieces // 2, hidden - 1)
        least = max(1e-6 * float(variances.sum()) / hidden, 1e-12)  # of a handful of pieces nothing may be left
        rest = max(float(variances[count:].sum()) / (hidden - count), least)
        scaled = axes[:count] / np.sqrt(variances[:count, None].clip(least))
        new = cls(mean=_short(known.mean(axis=0)), axes=tuple(map(_short, scaled)), rest=rest, threshold=0.0)
        return replace(new, threshold=float(np.quantile(new.distance(valid), FAMILIAR)))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """From the values that `asdict` gives."""
        return cls(**{**record, "mean": tuple(record["mean"]), "axes": tuple(map(tuple, record["axes"]))})

    def distance(self, pooled: ArrayLike) -> Floats:
        """Mahalanobis distance of pieces, per hidden unit: float [..., hidden] -> float [...]."""
        offset, axes = np.asarray(pooled, dtype=np.float64) - self.mean, np.reshape(self.axes, (-1, len(self.mean)))
        along = offset @ axes.T
        left = np.square(offset).sum(axis=-1) - np.square(along / np.linalg.norm(axes, axis=-1)).sum(axis=-1)
        total = np.square(along).sum(axis=-1) + left.clip(0) / self.rest
        return np.asarray(np.sqrt(total / len(self.mean)))

    def knows(self, pooled: ArrayLike) -> NDArray[np.bool_]:
        """True for the pieces that are no more unlike the training music than nearly all validation pieces."""
        return np.asarray(self.distance(pooled) <= self.threshold)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The content of `calibration.json`."""

    temperature: float
    """Logits are divided by it before they become probabilities; fitted on the validation split."""
    valid: Reliability | None
    """On the validation split, which chose the epoch and the temperature; None where answers are no classes."""
    test: Reliability | None = None
    """On the test split; None where it was not scored, as in a sweep."""
    familiarity: Familiarity | None = None
    """None for a model without hidden states of its own, such as a recurrent one."""
    favour: Favour | None = None
    """None where the most probable class is the answer."""

    def probabilities(self, logits: ArrayLike) -> Floats:
        """Calibrated probabilities of logits, float [..., outputs] each."""
        return softmax(np.asarray(logits, dtype=np.float64) / self.temperature)

    def to_json(self) -> str:
        """The file's content."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """From the file's content. Raises ValueError where it is not that of `to_json`."""
        try:
            record = json.loads(text)
            valid, test, known = record["valid"], record["test"], record["familiarity"]
            favour = record.get("favour")  # older models have none
            return cls(
                temperature=float(record["temperature"]),
                valid=Reliability.from_record(valid) if valid else None,
                test=Reliability.from_record(test) if test else None,
                familiarity=Familiarity.from_record(known) if known else None,
                favour=Favour(**favour) if favour else None,
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{CALIBRATION} is damaged: {error!r}; export the model again") from error

    @classmethod
    def find(cls, folder: str | Path) -> Self | None:
        """That of a model's folder; None where it has none, as an encoder, or a model of before there was one."""
        path = Path(folder, CALIBRATION)
        return cls.from_json(path.read_bytes()) if path.is_file() else None


def softmax(logits: Floats) -> Floats:
    """Probabilities over the last axis."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature with the lowest mean cross-entropy of logits float [n, outputs] to labels int [n].

    The cross-entropy is convex in 1 / temperature, so that where its slope changes sign is found by halving.
    Raises ValueError where there are no labels.
    """
    scores, truth = _scored(logits, labels)
    chosen = scores[np.arange(len(truth)), truth].mean()
    low, high = (-np.log(bound) for bound in reversed(TEMPERATURES))
    if np.ptp(scores, axis=-1).max() == 0:
        return 1.0  # any will do
    for _ in range(40):
        middle = (low + high) / 2
        slope = (softmax(scores * np.exp(middle)) * scores).sum(axis=-1).mean() - chosen
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(np.exp(-(low + high) / 2))


def _short(values: Floats) -> tuple[float, ...]:
    """Six digits of each are enough, and a third of the file."""
    return tuple(float(f"{value:.6g}") for value in values)


def _scored(logits: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.int64]]:
    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if not len(truth) or scores.shape[:-1] != truth.shape:
        raise ValueError(f"logits of shape {scores.shape} and labels of shape {truth.shape}; use [n, outputs] and [n]")
    return scores, truth


def _bins(confidence: Floats, right: NDArray[np.bool_]) -> tuple[Bin, ...]:
    number = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    members = (number == each for each in np.unique(number))
    return tuple(
        Bin(confidence=float(confidence[mine].mean()), accuracy=float(right[mine].mean()), count=int(mine.sum()))
        for mine in members
    )


def _ece(bins: tuple[Bin, ...]) -> float:
    counts = np.array([each.count for each in bins])
    gaps = np.array([abs(each.confidence - each.accuracy) for each in bins])
    return float((gaps * counts).sum() / counts.sum())
