"""A labelled task's corpora under each protocol: their segments, the labels, and the input of a model."""

from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from midibert_ray.data.augment import augment_segments
from midibert_ray.data.order import Permutation
from midibert_ray.data.segments import SegmentBatch, Segments
from midibert_ray.data.store import TokenStore
from midibert_ray.model.midibert import IGNORE
from midibert_ray.model.packing import Packing
from midibert_ray.music.tasks import TASKS, Task, note_labels, sequence_label, sequence_number, sequence_tags
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
    but Pitch tokens) is not scored. Numbers: float32 [batch]; tags: float32 [batch, tags], 0 or 1."""
    packing: Packing | None
    """How the segments share rows; None where each has its own."""


SPLITS = frozenset({"train", "valid", "test"})
"""The splits of a corpus that is learned from."""


def require_splits(task: Task, corpus: str, splits: Collection[str], needed: AbstractSet[str] = SPLITS) -> None:
    """Raise ValueError for a corpus that lacks splits which a task needs, naming them."""
    if missing := needed - set(splits):
        whole = needed == SPLITS
        what = "the splits train, valid and test" if whole else "the split test"
        where = "finetune.corpus" if whole else "study.tests"
        raise ValueError(
            f"task {task.name} needs {what}, but the token store of {corpus} "
            f"has no {', '.join(sorted(missing))}; give {where} a corpus with splits"
        )


def require_labels(task: Task, corpus: str, labels: Collection[str | None]) -> None:
    """Raise ValueError for a corpus whose pieces do not all have a label of a sequence-level task, naming another."""
    unknown = set(labels) - set(task.classes)
    if unknown:
        raise ValueError(
            f"task {task.name} needs the labels {', '.join(task.classes)}, but pieces of {corpus} "
            f"are labelled {sorted(map(str, unknown))[0]!r}; set finetune.corpus={task.corpus}"
        )


def split_of(corpus: str) -> str:
    """The split of a corpus that is tested besides."""
    return f"test/{corpus}"


def several(stores: TokenStore | Sequence[TokenStore]) -> Sequence[TokenStore]:
    """Some stores, or one as one of them."""
    return stores if isinstance(stores, Sequence) else (stores,)


def cut(config: Config, stores: Sequence[TokenStore], task: Task, splits: AbstractSet[str]) -> Segments:
    """The segments of some splits as a task has them."""
    return Segments(
        stores,
        splits=splits,
        length=config.tokens.segment,
        representation=config.model.representation,
        drop_short_last=config.protocol_in_force.drops_short_rows and task.drops_short_rows,
        labelled=task.labelled,
    )


class TaskData:
    """The segments and labels of one task's corpora under one protocol.

    Raises ValueError where a corpus lacks a split or the labels of the task.
    """

    def __init__(
        self,
        config: Config,
        stores: TokenStore | Sequence[TokenStore],
        task: Task | None = None,
        tests: Sequence[TokenStore] = (),
    ) -> None:
        """Cut the segments.

        Args:
            config: of a trial.
            stores: of the corpora that are learned from, and whose test pieces are the split `test`.
            task: needed for one that is not among `TASKS`, where `finetune.task` names it.
            tests: of corpora whose test pieces are splits of their own; see `split_of`.
        """
        stores = several(stores)
        self.config = config
        self.task: Task = task or TASKS[config.finetune.task]
        self.protocol = config.protocol_in_force
        padded = self.protocol.padding_class and self.task.level == "note"
        self.classes = (("padding",) if padded else ()) + self.task.classes
        self.outputs = len(self.classes) or 1
        """Outputs of a model: the classes or tags, or one number."""
        for store in stores:
            require_splits(self.task, store.corpus, store.splits)
        for store in tests:
            require_splits(self.task, store.corpus, store.splits, {"test"})
        self.splits = {name: cut(config, stores, self.task, {name}) for name in ("train", "valid", "test")}
        self.splits |= {split_of(store.corpus): cut(config, [store], self.task, {"test"}) for store in tests}
        self.learned = self._drawn("train", config.finetune.train_segments)
        """int64 [k], the segments of the training split that are learned from, ascending."""
        self.validated = self._drawn("valid", config.finetune.valid_segments)
        """int64 [k], those of the validation split that are asked, ascending."""
        for store in (*stores, *tests) if self.task.level == "sequence" and self.task.kind == "classes" else ():
            labels = {store.label(piece, self.task.column) for piece in store.select(None, self.task.labelled).tolist()}
            require_labels(self.task, store.corpus, labels)

    def _drawn(self, split: str, limit: int) -> NDArray[np.int64]:
        """So many segments of a split, the same for all models and seeds; 0: all."""
        count = len(self.splits[split])
        if not 0 < limit < count:
            return np.arange(count)
        return np.sort(Permutation(count, (f"{split} segments", self.task.name))(np.arange(limit)))

    def rows(self, split: str) -> NDArray[np.int64]:
        """The segments of a split that a trial reads, by their numbers: int64 [k], ascending; of a test split all."""
        chosen = {"train": self.learned, "valid": self.validated}
        return chosen[split] if split in chosen else np.arange(len(self.splits[split]))

    @property
    def tests(self) -> list[str]:
        """The corpora that are tested besides."""
        return [name.removeprefix(split_of("")) for name in self.splits if name.startswith(split_of(""))]

    def batch(
        self, split: str, rows: NDArray[np.int64], device: torch.device, keys: torch.Tensor | None = None
    ) -> tuple[Batch, SegmentBatch]:
        """Some segments of a split as the model's input, and as they lie in the store.

        With keys (int64 [batch], `hashing.row_keys`) they are augmented as `augment.*` and `finetune.octave` have it.
        """
        raw = self.splits[split].gather(rows)
        settings = self.config.augment.at("finetune")
        octave = self.config.finetune.octave if self.task.melody else 0
        if keys is not None and (settings or octave):
            line = self._melody(raw) if octave else None
            raw = augment_segments(raw, keys, octave=octave, line=line, **settings)
        arrays = (raw.tokens, *self._labels(split, raw))
        tokens, targets, attended = (torch.from_numpy(array).to(device) for array in arrays)
        if self.config.finetune.model == "rnn":
            read = None if self.protocol.rnn_reads_padding else torch.from_numpy(self._real(raw)).to(device)
            return Batch(tokens.long(), read, targets, None), raw
        allowed = self.protocol.packs_task(self.task.level)
        layout = packing(self.config, raw.length, raw.tokens.shape[1], device, allowed=allowed)
        return Batch(tokens.long(), attended, targets, layout), raw

    def labels(self, split: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The targets of some segments of a split, as in `Batch.targets`."""
        return self._labels(split, self.splits[split].gather(rows))[0]

    def learned_labels(self) -> NDArray[Any]:
        """The targets of all segments that are learned from, of a sequence-level task."""
        pieces, _ = self.splits["train"].locate(self.learned)
        return self._piece_labels("train", pieces)

    def class_weights(self) -> NDArray[np.float32]:
        """Weights of the classes in the loss where classes are balanced: float32 [outputs].

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

    def _labels(self, split: str, raw: SegmentBatch) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Targets, and the positions that are attended to."""
        real = self._real(raw)
        if self.task.level == "sequence":
            labels = self._piece_labels(split, raw.piece)
            return labels, np.ones_like(real) if self.protocol.attends_padding else real
        classes = np.where(raw.note >= 0, note_labels(self.task, raw), 0).astype(np.int64)  # 0: none
        targets = np.where(classes > 0, classes if self.protocol.padding_class else classes - 1, IGNORE)
        return targets, classes > 0 if self.protocol.attends_labelled else real

    def _melody(self, raw: SegmentBatch) -> NDArray[np.bool_]:
        """The notes of the melody, bool [batch, time]."""
        melody = 1 + self.task.classes.index(self.task.melody)
        return np.asarray((raw.note >= 0) & (note_labels(self.task, raw) == melody))

    def _piece_labels(self, split: str, pieces: NDArray[np.int64]) -> NDArray[Any]:
        """The labels of pieces: int64 [n]; numbers: float32 [n]; tags: float32 [n, tags], 0 or 1."""
        labels = [self.splits[split].label(int(piece), self.task.column) or "" for piece in pieces]
        if self.task.kind == "number":
            return np.array([sequence_number(self.task, label) for label in labels], np.float32)
        if self.task.kind == "tags":
            applies = np.zeros((len(labels), len(self.task.classes)), np.float32)
            for row, label in enumerate(labels):
                applies[row, list(sequence_tags(self.task, label))] = 1
            return applies
        return np.array([sequence_label(self.task, label) for label in labels], np.int64)

    def _real(self, raw: SegmentBatch) -> NDArray[np.bool_]:
        time = np.arange(raw.tokens.shape[1])
        return np.asarray(time[None, :] < raw.length[:, None])
