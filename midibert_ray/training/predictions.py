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

        Args:
            level: `note` or `sequence`.
            rows: int64 [batch], numbers of the segments within the split.
            raw: these segments.
            targets: int64 [batch, time] or [batch]; IGNORE is not scored.
            logits: float [batch, time, outputs] or [batch, outputs].
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
            metrics[f"{prefix}/piece_accuracy"] = float(self._pieces().right.mean())
        return metrics

    def by_piece(self, names: Callable[[int], str]) -> dict[str, list[int]]:
        """Piece -> notes or segments that are right, those that are scored, and whether the piece as a whole is right.

        A piece's class is that of the largest mean logit of its segments; a piece of note-level tasks has none, and
        the last number is 0.

        Args:
            names: number of a piece within the split -> its id.
        """
        pieces = self._pieces()
        counts = np.stack([pieces.correct, pieces.scored, pieces.right], axis=1)
        return {names(int(number)): row for number, row in zip(pieces.number, counts.tolist(), strict=True)}

    @property
    def _of_segments(self) -> bool:
        return bool((self.note < 0).all())

    def _pieces(self) -> "_Pieces":
        number, first, row = np.unique(self.piece, return_index=True, return_inverse=True)
        scored = np.bincount(row)
        correct = np.bincount(row, weights=self.prediction == self.label).astype(np.int64)
        right = np.zeros_like(scored)
        if self._of_segments:
            sums = np.stack([np.bincount(row, weights=column) for column in self.logits.T], axis=1)
            right = (sums / scored[:, None]).argmax(axis=1) == self.label[first]
        return _Pieces(number, scored, correct, right.astype(np.int64))


@dataclass(frozen=True)
class _Pieces:
    """Counts of each piece, all int64 [pieces]."""

    number: NDArray[np.int64]
    scored: NDArray[np.int64]
    correct: NDArray[np.int64]
    right: NDArray[np.int64]
