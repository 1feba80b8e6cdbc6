"""A labelled task's corpus under each protocol: its segments, their labels, and the input of a model."""

import functools
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from midibert_ray.data.order import Permutation
from midibert_ray.data.segments import SegmentBatch, Segments
from midibert_ray.data.store import TokenStore
from midibert_ray.model.midibert import IGNORE
from midibert_ray.model.packing import Packing
from midibert_ray.music.tasks import TASKS, Task, note_labels, sequence_label
from midibert_ray.settings.config import Config
from midibert_ray.training.build import packing


@dataclass(frozen=True)
class Batch:
    """The input of a model for some segments, on its device."""

    tokens: Tensor
    """int64 [batch, time, 4], or [batch, time] for REMI."""
    mask: Tensor | None
    """bool [batch, time]: positions that are attended to; None: all are read, as a recurrent model does in the
    authors' code."""
    targets: Tensor
    """int64 [batch, time] for note-level tasks, [batch] for sequence-level ones; IGNORE (padding, and in REMI all
    but Pitch tokens) is not scored."""
    packing: Packing | None
    """How the segments share rows; None where each has its own."""


def require_splits(task: Task, corpus: str, splits: Collection[str]) -> None:
    """Raise ValueError for a corpus that is not divided for fine-tuning, naming the splits that it lacks."""
    missing = {"train", "valid", "test"} - set(splits)
    if missing:
        raise ValueError(
            f"task {task.name} needs the splits train, valid and test, but the token store of {corpus} "
            f"has no {', '.join(sorted(missing))}; give finetune.corpus a corpus with splits"
        )


def require_labels(task: Task, corpus: str, labels: Collection[str | None]) -> None:
    """Raise ValueError for a corpus whose pieces do not all have a label of a sequence-level task, naming another."""
    unknown = set(labels) - set(task.classes)
    if unknown:
        raise ValueError(
            f"task {task.name} needs the labels {', '.join(task.classes)}, but pieces of {corpus} "
            f"are labelled {sorted(map(str, unknown))[0]!r}; set finetune.corpus={task.corpus}"
        )


class TaskData:
    """The segments and labels of one task's corpus under one protocol.

    Raises ValueError where the corpus lacks a split or the labels of the task.
    """

    def __init__(self, config: Config, store: TokenStore) -> None:
        self.config = config
        self.task: Task = TASKS[config.finetune.task]
        self.protocol = config.protocol_in_force
        self.outputs = len(self.task.classes) + int(self.protocol.padding_class and self.task.level == "note")
        self.classes = (("padding",) if self.outputs > len(self.task.classes) else ()) + self.task.classes
        cut = functools.partial(
            Segments,
            [store],
            length=config.tokens.segment,
            representation=config.model.representation,
            drop_short_last=self.protocol.drops_short_rows and self.task.drops_short_rows,
        )
        require_splits(self.task, store.corpus, store.splits)
        self.splits = {name: cut(splits={name}) for name in ("train", "valid", "test")}
        count, limit = len(self.splits["train"]), config.finetune.train_segments
        self.learned = np.arange(count)
        """int64 [k], the segments of the training split that are learned from, ascending."""
        if 0 < limit < count:
            self.learned = np.sort(Permutation(count, ("train segments", self.task.name))(np.arange(limit)))
        if self.task.level == "sequence":
            require_labels(self.task, store.corpus, {store.label(piece) for piece in range(len(store))})

    def batch(self, split: str, rows: NDArray[np.int64], device: torch.device) -> tuple[Batch, SegmentBatch]:
        """Some segments of a split as the model's input, and as they lie in the store."""
        raw = self.splits[split].gather(rows)
        arrays = (raw.tokens, *self._labels(split, raw))
        tokens, targets, attended = (torch.from_numpy(array).to(device) for array in arrays)
        if self.config.finetune.model == "rnn":
            read = None if self.protocol.rnn_reads_padding else torch.from_numpy(self._real(raw)).to(device)
            return Batch(tokens.long(), read, targets.long(), None), raw
        allowed = self.protocol.packs_task(self.task.level)
        layout = packing(self.config, raw.length, raw.tokens.shape[1], device, allowed=allowed)
        return Batch(tokens.long(), attended, targets.long(), layout), raw

    def class_weights(self) -> NDArray[np.float32]:
        """What each class counts in the loss where classes are balanced: float32 [outputs].

        Inverse to how often a class is a label in the training split, and 1 in the mean over these labels; 0 for a
        class that is none of them.
        """
        counts, segments = np.zeros(self.outputs, dtype=np.int64), self.splits["train"]
        for start in range(0, len(self.learned), 256):
            raw = segments.gather(self.learned[start : start + 256])
            labels, _ = self._labels("train", raw)
            counts += np.bincount(labels[labels != IGNORE], minlength=self.outputs)
        weights, seen = np.zeros(self.outputs, dtype=np.float32), counts > 0
        weights[seen] = counts.sum() / (seen.sum() * counts[seen])
        return weights

    def _labels(self, split: str, raw: SegmentBatch) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Targets, and the positions that are attended to."""
        real = self._real(raw)
        if self.task.level == "sequence":
            labels = [sequence_label(self.task, self.splits[split].label(int(piece)) or "") for piece in raw.piece]
            return np.asarray(labels, dtype=np.int64), np.ones_like(real) if self.protocol.attends_padding else real
        classes = np.where(raw.note >= 0, note_labels(self.task, raw), 0).astype(np.int64)  # 0: none
        targets = np.where(classes > 0, classes if self.protocol.padding_class else classes - 1, IGNORE)
        return targets, classes > 0 if self.protocol.attends_labelled else real

    def _real(self, raw: SegmentBatch) -> NDArray[np.bool_]:
        time = np.arange(raw.tokens.shape[1])
        return np.asarray(time[None, :] < raw.length[:, None])
