"""Fine-tuning on one labelled task, on one device: train, choose the best epoch by validation, test once.

The supervised loop of the paper (§V-C): cross-entropy over the notes of a batch (note-level tasks) or over
its segments (sequence-level tasks), AdamW at a constant rate, early stop by validation accuracy.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from midibert_ray.config import Config
from midibert_ray.data.order import BatchOrder, keyed_hash
from midibert_ray.data.store import SegmentBatch, Segments, TokenStore
from midibert_ray.model.heads import MidiBertForNotes, MidiBertForSequences, freeze
from midibert_ray.model.midibert import MidiBertModel
from midibert_ray.model.packing import Packing
from midibert_ray.music.tasks import TASKS, Task, note_labels, sequence_label
from midibert_ray.training.engine import Progress
from midibert_ray.training.metrics import FiniteWatch, confusion, macro_f1
from midibert_ray.training.optimizer import adamw
from midibert_ray.training.pretrain import encoder_config, packing

IGNORE = -100
"""Target of a position that is not scored: padding, and in REMI all but Pitch tokens."""

STATE_FILE = "trial.pt"

Classifier = MidiBertForNotes | MidiBertForSequences

Report = Callable[[dict[str, Any], Callable[[Path], None] | None], None]
"""Takes figures, and a function that writes the trial's checkpoint into a folder, or None for figures alone."""


@dataclass(frozen=True)
class Batch:
    """What a model sees of some segments, on its device."""

    tokens: Tensor
    """int64 [batch, time, 4], or [batch, time] for REMI."""

    mask: Tensor
    """bool [batch, time]: positions that are attended to."""

    targets: Tensor
    """int64 [batch, time] for note-level tasks, [batch] for sequence-level ones; IGNORE is not scored."""

    packing: Packing | None
    """How the segments share rows."""


class TaskData:
    """The segments and labels of one task's corpus under one protocol."""

    def __init__(self, config: Config, store: TokenStore) -> None:
        """Open the train, valid and test segments.

        Raises:
            ValueError: where the corpus lacks a split or the labels of the task.
        """
        self.config = config
        self.task: Task = TASKS[config.finetune.task]
        self.paper = config.tokens.protocol == "paper"
        # The authors give padding a class of its own, which a model may choose (and then is wrong).
        self.outputs = len(self.task.classes) + int(self.paper and self.task.level == "note")
        self.classes = (("padding",) if self.outputs > len(self.task.classes) else ()) + self.task.classes
        cut = functools.partial(
            Segments,
            [store],
            length=config.tokens.segment,
            representation=config.model.representation,
            drop_short_last=self.paper and self.task.drops_short_rows,
        )
        missing = {"train", "valid", "test"} - store.splits
        if missing:
            raise ValueError(
                f"task {self.task.name} needs the splits train, valid and test, but the token store of {store.corpus} "
                f"has no {', '.join(sorted(missing))}; give finetune.corpus a corpus with splits"
            )
        self.splits = {name: cut(splits={name}) for name in ("train", "valid", "test")}
        if self.task.level == "sequence":
            self._check_labels(store)

    def _check_labels(self, store: TokenStore) -> None:
        unknown = {store.label(piece) for piece in range(len(store))} - set(self.task.classes)
        if unknown:
            raise ValueError(
                f"task {self.task.name} needs the labels {', '.join(self.task.classes)}, but pieces of {store.corpus} "
                f"are labelled {sorted(map(str, unknown))[0]!r}; set finetune.corpus={self.task.corpus}"
            )

    def batch(self, split: str, rows: NDArray[np.int64], device: torch.device) -> tuple[Batch, SegmentBatch]:
        """Some segments of a split as the model's input, and as they lie in the store."""
        raw = self.splits[split].gather(rows)
        targets, attended = self._sequence(split, raw) if self.task.level == "sequence" else self._notes(raw)
        tensors = (torch.from_numpy(array).to(device) for array in (raw.tokens, attended, targets))
        tokens, mask, goal = tensors
        layout = packing(self.config, raw.length, raw.tokens.shape[1], device)
        return Batch(tokens.long(), mask, goal.long(), layout), raw

    def _notes(self, raw: SegmentBatch) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        labels = np.where(raw.note >= 0, note_labels(self.task, raw.part, raw.velocity), 0).astype(np.int64)
        if self.paper:  # scored and attended are the labelled positions: in REMI the Pitch tokens alone
            return np.where(labels > 0, labels, IGNORE), labels > 0
        return np.where(labels > 0, labels - 1, IGNORE), self._real(raw)

    def _sequence(self, split: str, raw: SegmentBatch) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        labels = [sequence_label(self.task, self.splits[split].label(int(piece)) or "") for piece in raw.piece]
        real = self._real(raw)  # the authors attend to padding, and pool over it
        return np.asarray(labels, dtype=np.int64), np.ones_like(real) if self.paper else real

    def _real(self, raw: SegmentBatch) -> NDArray[np.bool_]:
        time = np.arange(raw.tokens.shape[1])
        return np.asarray(time[None, :] < raw.length[:, None])


def new_model(config: Config, data: TaskData, encoder: str) -> Classifier:
    """A model with the task's head, frozen as configured.

    Args:
        config: `finetune.init` and `finetune.freeze` say how it starts and what learns.
        data: gives the number of outputs.
        encoder: folder of a pre-trained model; not read for `finetune.init=scratch`.
    """
    torch.manual_seed(keyed_hash(config.seed, "head", config.finetune.task) % 2**63)
    kind = MidiBertForNotes if data.task.level == "note" else MidiBertForSequences
    shape = encoder_config(config)
    shape.num_classes = data.outputs
    model = kind(shape)
    if config.finetune.init == "pretrained":
        model.midibert = MidiBertModel.from_pretrained(encoder)
    freeze(model, config.finetune.freeze)
    return model


class Finetuning:
    """A model, its optimizer and its data; an epoch of training, an evaluation, a state to save."""

    def __init__(self, config: Config, data: TaskData, model: Classifier, device: torch.device) -> None:
        self.config, self.data, self.device = config, data, device
        self.model: Classifier = model
        model.to(device)  # type: ignore[arg-type]  # transformers' wrapper confuses its own signature
        settings = config.finetune
        self.optimizer = adamw(
            model.parameters(),
            config.tokens.protocol,
            lr=settings.lr,
            eps=config.optimizer.eps,
            weight_decay=settings.weight_decay,
        )
        seed = keyed_hash(config.seed, "order", settings.task) % 2**31
        self.order = BatchOrder(n=len(data.splits["train"]), batch_size=settings.batch, seed=seed, drop_last=False)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.watch = FiniteWatch(0, device)

    def train_epoch(self) -> dict[str, float]:
        """One pass over the training split; mean loss and accuracy of the epoch.

        Raises:
            FloatingPointError: where the loss is no longer finite.
        """
        self.model.train()
        loss_sum = torch.zeros((), device=self.device)
        hits = scored = torch.zeros((), dtype=torch.int64, device=self.device)
        for k in range(self.order.batches_per_epoch):
            # Seeded step by step, so that dropout after a resume is what it would have been.
            torch.manual_seed(keyed_hash(self.config.seed, "dropout", self.progress.step) % 2**63)
            batch, _ = self.data.batch("train", self.order.indices(self.progress.epoch, k), self.device)
            loss, correct, count = self._loss(batch)
            self.optimizer.zero_grad(set_to_none=True)
            (loss / count).backward()
            self.optimizer.step()
            self.progress.step += 1
            self.watch.add(self.progress.step, loss)
            loss_sum, hits, scored = loss_sum + loss.detach(), hits + correct, scored + count
        self.progress.epoch += 1
        if fault := self.watch.first():
            last = self.progress.reports[-1] if self.progress.reports else {}
            known = ", ".join(f"{key} {value:.4g}" for key, value in last.items() if key != "epoch")
            raise FloatingPointError(
                f"the training loss is not finite at step {fault.step:,} in epoch {self.progress.epoch}; "
                + (f"the last finite figures, of epoch {last['epoch']}: {known}; " if last else "")
                + "lower finetune.lr, or use compute.precision=fp32"
            )
        return {"train/loss": float(loss_sum / scored), "train/accuracy": float(hits / scored)}

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.compute.precision == "bf16"):
            logits = self.model(batch.tokens, batch.mask, batch.packing)
        logits, targets = logits.float().flatten(0, -2), batch.targets.flatten()
        loss = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        count = (targets != IGNORE).sum()
        return loss, (logits.argmax(-1) == targets).sum(), count

    @torch.no_grad()
    def evaluate(self, split: str) -> "Predictions":
        """Logits and labels of all segments of a split."""
        self.model.eval()
        segments, parts = self.data.splits[split], []
        for start in range(0, len(segments), self.config.finetune.batch):
            rows = np.arange(start, min(start + self.config.finetune.batch, len(segments)))
            batch, raw = self.data.batch(split, rows, self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.compute.precision == "bf16"):
                logits = self.model(batch.tokens, batch.mask, batch.packing).float()
            parts.append(Predictions.of(self.data, rows, raw, batch.targets.cpu().numpy(), logits.cpu().numpy()))
        return Predictions.joined(parts)

    def keep_if_best(self, accuracy: float) -> None:
        """Take in a validation accuracy and hold on to the weights if it is the best so far."""
        self.progress.judge(accuracy)
        if self.progress.bad == 0:
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    @property
    def over(self) -> bool:
        """Whether all epochs are done, or too many went by without a better validation."""
        settings = self.config.finetune
        return self.progress.epoch >= settings.epochs or 0 < settings.patience <= self.progress.bad

    def save(self, folder: Path) -> None:
        """Write all that `load` needs to go on after the last epoch."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best}
        torch.save(state | {"progress": vars(self.progress)}, folder / STATE_FILE)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(folder / STATE_FILE, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress, self.best = Progress(**state["progress"]), state["best"]


@dataclass(frozen=True)
class Predictions:
    """What a model says of every scored position (note-level) or segment (sequence-level) of a split."""

    piece: NDArray[np.int64]
    """Number of the piece within the store."""

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
        data: TaskData,
        rows: NDArray[np.int64],
        raw: SegmentBatch,
        targets: NDArray[np.int64],
        logits: NDArray[np.float32],
    ) -> "Predictions":
        """The scored positions of one batch."""
        if data.task.level == "sequence":
            return cls(raw.piece, rows, np.full(len(rows), -1), targets, logits)
        row, position = np.nonzero(targets != IGNORE)
        return cls(raw.piece[row], rows[row], raw.note[row, position], targets[row, position], logits[row, position])

    @classmethod
    def joined(cls, parts: list["Predictions"]) -> "Predictions":
        """Several batches as one."""
        names = cls.__dataclass_fields__
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    @property
    def prediction(self) -> NDArray[np.int64]:
        """The class with the largest logit, int64 [scored]."""
        return np.asarray(self.logits.argmax(axis=-1), dtype=np.int64)

    def matrix(self) -> NDArray[np.int64]:
        """Confusion counts: row = true class, column = predicted class."""
        return confusion(self.label, self.prediction, self.logits.shape[-1])

    def figures(self, prefix: str) -> dict[str, float]:
        """Accuracy over all that is scored, macro-F1 and mean cross-entropy."""
        matrix = self.matrix()
        shifted = self.logits - self.logits.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(shifted, self.label[:, None], axis=-1)[:, 0]
        loss = np.log(np.exp(shifted).sum(axis=-1)) - chosen
        accuracy = float(np.trace(matrix) / max(matrix.sum(), 1))
        return {f"{prefix}/accuracy": accuracy, f"{prefix}/f1": macro_f1(matrix), f"{prefix}/loss": float(loss.mean())}


def finetune(job: Finetuning, report: Report) -> Predictions:
    """From where a trial stands to its end; returns the predictions of the best weights on the test split.

    The test split is scored once, with the weights that were best in validation.
    """
    for figures in job.progress.reports:
        report(figures, None)
    while not job.over:
        figures = job.train_epoch()
        valid = job.evaluate("valid").figures("valid")
        job.keep_if_best(valid["valid/accuracy"])
        job.progress.reports = [figures | valid | {"epoch": job.progress.epoch, "valid/best": job.progress.best}]
        report(job.progress.reports[-1], job.save)
    job.model.load_state_dict(job.best)
    return job.evaluate("test")
