"""Predictions of a model on a split, note by note or segment by segment, and their scores."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from midibert_ray.data.segments import SegmentBatch
from midibert_ray.training.metrics import confusion, macro_f1
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
    label: NDArray[np.int64]
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
    def prediction(self) -> NDArray[np.int64]:
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

    def by_piece(self, names: Callable[[int], str]) -> dict[str, list[int]]:
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
