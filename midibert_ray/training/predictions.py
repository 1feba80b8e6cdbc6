"""Predictions of a model on a split, note by note or segment by segment, and their scores by kind of task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from midibert_ray.data.segments import SegmentBatch
from midibert_ray.training.metrics import (
    confusion,
    macro_f1,
    macro_tag_f1,
    mean_average_precision,
    r_squared,
    spearman,
)
from midibert_ray.training.task_data import IGNORE


@dataclass(frozen=True)
class Predictions:
    """Logits and labels of every scored position (note-level) or segment (sequence-level) of a split."""

    piece: NDArray[np.int64]
    """Number of the piece within the split."""
    segment: NDArray[np.int64]
    """Number of the segment within the split."""
    note: NDArray[np.int64]
    """Number of the note within the store; -1 for a whole segment."""
    label: NDArray[Any]
    """True class, an index into the model's outputs."""
    logits: NDArray[np.float32]
    """[scored, outputs]."""

    @classmethod
    def of(
        cls,
        level: str,
        rows: NDArray[np.int64],
        raw: SegmentBatch,
        targets: NDArray[np.int64],
        logits: NDArray[np.float32],
    ) -> "Predictions":
        """The scored positions of one batch.

        rows: int64 [batch], numbers of the segments `raw` within the split; targets: int64 [batch, time] (level `note`)
        or [batch] (`sequence`), IGNORE is not scored; logits: float, the same with [outputs] behind.
        """
        if level == "sequence":
            return cls(raw.piece, rows, np.full(len(rows), -1), targets, logits)
        row, position = np.nonzero(targets != IGNORE)
        return cls(raw.piece[row], rows[row], raw.note[row, position], targets[row, position], logits[row, position])

    @classmethod
    def joined(cls, batches: list["Predictions"]) -> "Predictions":
        """Several batches as one."""
        names = cls.__dataclass_fields__
        return cls(**{name: np.concatenate([getattr(batch, name) for batch in batches]) for name in names})

    @property
    def prediction(self) -> NDArray[Any]:
        """The class with the largest logit, int64 [scored]."""
        return np.asarray(self.logits.argmax(axis=-1), dtype=np.int64)

    def matrix(self) -> NDArray[np.int64]:
        """Confusion counts: row = true class, column = predicted class."""
        return confusion(self.label, self.prediction, self.logits.shape[-1])

    def metrics(self, prefix: str) -> dict[str, float]:
        """Accuracy over all that is scored, macro-F1 and mean cross-entropy; of segments also the accuracy by piece."""
        matrix = self.matrix()
        shifted = self.logits - self.logits.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(shifted, self.label[:, None], axis=-1)[:, 0]
        loss = np.log(np.exp(shifted).sum(axis=-1)) - chosen
        accuracy = float(np.trace(matrix) / max(matrix.sum(), 1))
        metrics = {
            f"{prefix}/accuracy": accuracy,
            f"{prefix}/f1": macro_f1(matrix),
            f"{prefix}/loss": float(loss.mean()),
        }
        if self._of_segments:
            metrics[f"{prefix}/piece_accuracy"] = float(self._pieces()[1][:, 2].mean())
        return metrics

    def by_piece(self, names: Callable[[int], str]) -> dict[str, list[Any]]:
        """Piece -> notes or segments that are right, those that are scored, and whether the piece as a whole is right.

        A piece's class is that of the largest mean logit of its segments; a piece of note-level tasks has none, and
        the last number is 0. `names` gives the id of a piece by its number within the split.
        """
        numbers, counts = self._pieces()
        return {names(int(number)): row for number, row in zip(numbers, counts.tolist(), strict=True)}

    @property
    def _of_segments(self) -> bool:
        return bool((self.note < 0).all())

    def _pieces(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Numbers [pieces], and counts [pieces, 3] of what is correct and what is scored, and whether it is right."""
        number, first, row = np.unique(self.piece, return_index=True, return_inverse=True)
        scored = np.bincount(row)
        correct = np.bincount(row, weights=self.prediction == self.label).astype(np.int64)
        right = np.zeros_like(scored)
        if self._of_segments:
            sums = np.stack([np.bincount(row, weights=column) for column in self.logits.T], axis=1)
            right = (sums / scored[:, None]).argmax(axis=1) == self.label[first]
        return number, np.stack([correct, scored, right], axis=1).astype(np.int64)


class NumberPredictions(Predictions):
    """Of numbers: `label` float [segments], `logits` [segments, 1], both in the units of the labels.

    A piece is scored, and counts once: its number is the mean over its segments.
    """

    @property
    def prediction(self) -> NDArray[Any]:
        """float32 [segments]."""
        return np.asarray(self.logits[:, 0])

    def matrix(self) -> NDArray[np.int64]:
        """None, as there are no classes: int64 [0, 0]."""
        return np.zeros((0, 0), np.int64)

    def metrics(self, prefix: str) -> dict[str, float]:
        """By piece: explained variance (R²), mean absolute error, Spearman's rank correlation, mean squared error."""
        _, truth, said = self._whole()
        return {
            f"{prefix}/r2": r_squared(truth, said),
            f"{prefix}/mae": float(np.abs(truth - said).mean()),
            f"{prefix}/spearman": spearman(truth, said),
            f"{prefix}/loss": float(np.square(truth - said).mean()),
        }

    def by_piece(self, names: Callable[[int], str]) -> dict[str, list[Any]]:
        """Piece -> its number, and the predicted one."""
        return {names(int(piece)): [float(true), float(said)] for piece, true, said in zip(*self._whole(), strict=True)}

    def _whole(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Numbers of the pieces, their labels and the means of their predictions: [pieces] each."""
        number, truth, said = piece_means(self.piece, self.label, self.logits)
        return number, truth, said[:, 0]


class TagPredictions(Predictions):
    """Of tags: `label` float [segments, tags], 0 or 1, and `logits` [segments, tags].

    A piece is scored, and counts once: its logits are the means over its segments.
    """

    @property
    def prediction(self) -> NDArray[Any]:
        """Shares that a tag applies, float32 [segments, tags]."""
        return np.asarray(expit(self.logits))

    def matrix(self) -> NDArray[np.int64]:
        """None, as a piece may be in several classes: int64 [0, 0]."""
        return np.zeros((0, 0), np.int64)

    def metrics(self, prefix: str) -> dict[str, float]:
        """By piece: mean average precision, macro-F1 at even odds, share of right decisions, mean cross-entropy."""
        _, truth, logits = self._whole()
        tagged = truth > 0
        loss = np.logaddexp(0, np.where(tagged, -logits, logits))
        return {
            f"{prefix}/average_precision": float(mean_average_precision(truth, logits)[0]),
            f"{prefix}/f1": macro_tag_f1(tagged, logits > 0),
            f"{prefix}/accuracy": float(((logits > 0) == tagged).mean()),
            f"{prefix}/loss": float(loss.mean()),
        }

    def by_piece(self, names: Callable[[int], str]) -> dict[str, list[Any]]:
        """Piece -> 0 or 1 for every tag, then the predicted shares."""
        number, truth, logits = self._whole()
        rows = np.concatenate([truth, expit(logits)], axis=1).tolist()
        return {names(int(piece)): row for piece, row in zip(number, rows, strict=True)}

    def _whole(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Numbers of the pieces [pieces], their labels and the means of their logits: [pieces, tags] each."""
        number, truth, logits = piece_means(self.piece, self.label, self.logits)
        return number, truth, logits


KINDS: dict[str, type[Predictions]] = {"classes": Predictions, "number": NumberPredictions, "tags": TagPredictions}
"""By `Task.kind`."""


def piece_means(piece: NDArray[np.int64], *columns: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Numbers of the pieces that occur, and means by piece of columns [rows] or [rows, k]: float64."""
    number, row, count = np.unique(piece, return_inverse=True, return_counts=True)
    means = []
    for column in columns:
        sums = np.zeros((len(number), *column.shape[1:]))
        np.add.at(sums, row, column)
        means.append((sums.T / count).T)
    return number, *means
