"""Fine-tuning on one labelled task, on one device: train, choose the best epoch by validation, test once.

The supervised loop of the paper (§V-C), the same for MidiBERT and the recurrent baselines. Their `recipes` say how
they differ, and `objectives` what is learned of a batch's notes (note-level tasks) or segments (sequence-level ones).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from midibert_ray.data.hashing import row_keys
from midibert_ray.data.order import BatchOrder, keyed_hash
from midibert_ray.model.heads import MidiBertForNotes, MidiBertForSequences, freeze
from midibert_ray.model.midibert import MidiBertModel, MidiBertPreTrainedModel
from midibert_ray.model.recurrent import BiLstmNotes, BiLstmSequences
from midibert_ray.settings.config import Config, require
from midibert_ray.training.build import encoder_config
from midibert_ray.training.metrics import FiniteWatch
from midibert_ray.training.objectives import objective
from midibert_ray.training.predictions import KINDS, Predictions
from midibert_ray.training.recipes import TrialProgress, recipe
from midibert_ray.training.start import encoder_weights
from midibert_ray.training.task_data import Batch, TaskData

STATE_FILE = "trial.pt"

SAVE_S = 60.0
"""Seconds after the last save from which on an epoch is saved that is not the best so far."""

Classifier = MidiBertForNotes | MidiBertForSequences | BiLstmNotes | BiLstmSequences

Report = Callable[[dict[str, Any], Callable[[Path], None] | None], None]
"""Takes metrics, and a function that writes the trial's checkpoint into a folder, or None for metrics alone."""


def new_model(config: Config, data: TaskData, encoder: str | MidiBertPreTrainedModel) -> Classifier:
    """A model for the task, frozen as configured; raises ConfigError for more frozen layers than there are.

    `encoder` is a pre-trained model or its folder; read for `finetune.init=pretrained` alone, by no recurrent model.
    """
    torch.manual_seed(keyed_hash(config.seed, "head", config.finetune.task) % 2**63)
    settings, note_level = config.finetune, data.task.level == "note"
    if settings.model == "rnn":
        kind = BiLstmNotes if note_level else BiLstmSequences
        baseline = kind(num_classes=data.outputs, representation=config.model.representation)
        baseline.trusted = True
        return baseline
    layers = config.model.layers
    allowed = f"0 to model.layers={layers}"
    require(settings.freeze_layers <= layers, "finetune.freeze_layers", settings.freeze_layers, allowed)
    shape = encoder_config(config)
    shape.num_classes, shape.task = data.outputs, data.task.name
    shape.head = "linear" if settings.model == "probe" else settings.head
    shape.name_classes(data.classes, data.task.kind)
    model = MidiBertForNotes(shape) if note_level else MidiBertForSequences(shape)
    if settings.init == "pretrained":
        start = MidiBertModel.from_pretrained(encoder) if isinstance(encoder, str) else encoder
        model.midibert.load_state_dict(encoder_weights(start))
        model.config.lineage = start.config.lineage
    model.midibert.trusted = True
    freeze(model, settings.freeze, settings.freeze_layers)
    return model


class Finetuning:
    """A model, its optimizer and its data; an epoch of training, an evaluation, a state to save."""

    def __init__(self, config: Config, data: TaskData, model: Classifier, device: torch.device) -> None:
        self.config, self.data, self.device = config, data, device
        self.model: Classifier = model
        model.to(device)  # type: ignore[arg-type]  # transformers' wrapper confuses its own signature
        self.recipe = recipe(config, data.task)
        self.optimizer = self.recipe.optimizer(model)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        seed = keyed_hash(config.seed, "order", config.finetune.task) % 2**31
        self.order = BatchOrder(n=len(data.learned), batch_size=self.recipe.batch, seed=seed, drop_last=False)
        self.objective = objective(config, data, device)
        self.progress = TrialProgress()
        self.best: dict[str, Tensor] = {}
        self.valid: Predictions | None = None
        """What the best weights said of the validation split, if this process has asked them."""
        self.recent: list[dict[str, Tensor]] = []
        """Weights after the last epochs, where their mean is wanted."""
        self.metrics: dict[str, float] = {}
        """Figures of the trial besides its metrics."""
        self.watch = FiniteWatch(0, device)

    def train_epoch(self) -> dict[str, float]:
        """Train one pass over the training split; mean loss and accuracy of the epoch.

        Raises FloatingPointError where the loss is no longer finite.
        """
        self.model.train()
        loss_sum = weight_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        hits = scored = torch.zeros((), dtype=torch.int64, device=self.device)
        with self._timed():
            for k in range(self.order.batches_per_epoch):
                # Seeded step by step, so that dropout after a resume is what it would have been.
                torch.manual_seed(keyed_hash(self.config.seed, "dropout", self.progress.step) % 2**63)
                rows = self.data.learned[self.order.indices(self.progress.epoch, k)]
                loss, weight, correct, count = self.learn(rows)
                loss_sum, weight_sum = loss_sum + loss, weight_sum + weight
                hits, scored = hits + correct, scored + count
            self.progress.epoch += 1
            self._check_finite()
            accuracy = {"train/accuracy": float(hits / scored)} if self.data.classes else {}  # a number has none
            return {"train/loss": float(loss_sum / weight_sum)} | accuracy

    def learn(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Train one step on some segments of the training split, by their numbers, int64 [batch].

        Four scalars: the loss summed over what is scored, the sum of the weights of it, how much of it is right, and
        how much it is.
        """
        seed, progress = keyed_hash(self.config.seed, "augment") % 2**31, self.progress
        keys = row_keys(seed, progress.epoch, progress.step, torch.arange(len(rows)))
        batch, _ = self.data.batch("train", rows, self.device, keys)
        logits = self._logits(batch)
        loss, weight = self.objective.loss(logits, batch.targets)
        # A last batch may be one segment of REMI without a Pitch token: nothing is scored then.
        self._step(loss / weight.clamp_min(1e-9))
        return loss.detach(), weight, *self.objective.hits(logits, batch.targets)

    def _logits(self, batch: Batch) -> Tensor:
        packed = {"packing": batch.packing} if batch.packing else {}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.compute.precision == "bf16"):
            output: Any = self.model(batch.tokens, batch.mask, **packed)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits  # a recurrent model gives no more
        return logits.float()

    def _step(self, loss: Tensor) -> None:
        factor = self.recipe.factor(self.progress, self.recipe.epochs * self.order.batches_per_epoch)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.progress.step += 1
        self.watch.add(self.progress.step, loss)

    def _check_finite(self) -> None:
        if problem := self.watch.first():
            last = self.progress.reports[-1] if self.progress.reports else {}
            known = ", ".join(f"{key} {value:.4g}" for key, value in last.items() if key != "epoch")
            raise FloatingPointError(
                f"the training loss is not finite at step {problem[0]:,} in epoch {self.progress.epoch}; "
                + (f"the last finite metrics, of epoch {last['epoch']}: {known}; " if last else "")
                + f"lower {self.recipe.rate_setting} (it was {self.recipe.rate:g}), or use compute.precision=fp32"
            )

    @torch.no_grad()
    def evaluate(self, split: str) -> Predictions:
        """Logits and labels of the segments of a split that a trial reads; see `TaskData.rows`."""
        self.model.eval()
        batches, size, read = [], self.recipe.batch, self.data.rows(split)
        kind = KINDS[self.data.task.kind]
        with self._timed():
            for start in range(0, len(read), size):
                rows = read[start : start + size]
                batch, raw = self.data.batch(split, rows, self.device)
                logits = self.objective.answers(self._logits(batch).cpu().numpy())
                batches.append(kind.of(self.data.task.level, rows, raw, batch.targets.cpu().numpy(), logits))
            return kind.joined(batches)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with the mean of its weights after the last `finetune.average` epochs; then again with its own."""
        count = self.config.finetune.average if self.config.finetune.model == "midibert" else 1
        if count == 1:
            yield
            return
        own = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.recent = [*self.recent, own][-count:]
        self.model.load_state_dict({name: torch.stack([each[name] for each in self.recent]).mean(0) for name in own})
        yield
        self.model.load_state_dict(own)

    def judge(self, valid: dict[str, float], said: Predictions) -> None:
        """Take in a validation's metrics, and hold on to the weights and what they said if it is the best so far."""
        self.progress.judge(self.recipe.score(valid))
        if self.progress.bad == 0:
            self.valid = said
            self.progress.accuracy = valid[f"valid/{self.data.task.metric}"]
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
        self.recipe.after_validation(self.progress, self.model, self.optimizer, self.best)

    def save_pretrained(self, folder: Path) -> None:
        """Write the model, whose outputs are then in the units of the labels: nothing is trained any more."""
        self.objective.finish(self.model)
        self.model.save_pretrained(folder)

    def save(self, folder: Path) -> None:
        """Write all that `load` needs to go on after the last epoch."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best}
        torch.save(state | {"recent": self.recent, "progress": vars(self.progress)}, folder / STATE_FILE)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(folder / STATE_FILE, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress, self.best = TrialProgress(**state["progress"]), state["best"]
        self.recent = state.get("recent", [])

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.progress.seconds += time.perf_counter() - start


def finetune(job: Finetuning, report: Report, split: str = "test") -> Predictions:
    """From where a trial stands to its end; returns the predictions of the best weights on a split.

    The test split is scored once, with the weights that were best in validation, or not at all. Epochs that are not the
    best so far are learned again after a kill, and come to the same figures.
    """
    for metrics in job.progress.reports:
        report(metrics, None)
    saved = time.monotonic()
    while not job.recipe.over(job.progress):
        metrics = job.train_epoch()
        with job.averaged():
            said = job.evaluate("valid")
            valid = said.metrics("valid")
            job.judge(valid, said)
        job.progress.reports = [metrics | valid | {"epoch": job.progress.epoch, "valid/best": job.progress.accuracy}]
        saves = job.progress.bad == 0 or time.monotonic() - saved > SAVE_S
        report(job.progress.reports[-1], job.save if saves else None)
        saved = time.monotonic() if saves else saved
    job.model.load_state_dict(job.best)
    return job.evaluate(split)
