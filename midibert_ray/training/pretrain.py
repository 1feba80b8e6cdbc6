"""Pre-training by masked language modelling: one worker's share of the work, and the loop over epochs.

Every draw is a function of (seed, epoch, step, row), so any layout of workers and micro-batches sees the
same batches with the same masks, and a resumed run goes on as if nothing had happened.

Where the authors' code cannot be had for any layout, protocol paper differs from it in two things: an epoch's last
batch is left out where it is not full, and accuracies are those of all masked positions, not means over batches.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from midibert_ray.data.hashing import row_keys
from midibert_ray.data.order import BatchOrder, holdout, keyed_hash, split_rows
from midibert_ray.data.roll import COLUMNS, ROWS
from midibert_ray.data.segments import Segments
from midibert_ray.data.store import TokenStore
from midibert_ray.settings.config import Config
from midibert_ray.training import engine as engines
from midibert_ray.training.build import plan_batch
from midibert_ray.training.engine import Progress
from midibert_ray.training.flops import peak_flops, step_flops
from midibert_ray.training.metrics import FiniteWatch, MaskedTotals, Throughput, memory_gib
from midibert_ray.training.prefetch import Prefetcher
from midibert_ray.training.step import MaskedStep, StepBatch

Report = Callable[[dict[str, Any], bool], None]
"""Takes metrics, and True where a checkpoint goes with them."""


class PretrainData:
    """Segments of all corpora, cut into a training and a validation part.

    The protocol says whether segments or pieces are held out, and whether test pieces of the downstream tasks are
    there. With `pretrain.splits=train` neither their validation nor their test pieces are, whatever the protocol.
    Raises ValueError where too little music is left for both parts.
    """

    def __init__(self, config: Config, stores: Sequence[TokenStore]) -> None:
        cut = functools.partial(
            Segments, stores, length=config.tokens.segment, representation=config.model.representation
        )
        fraction, protocol = config.pretrain.valid_fraction, config.protocol_in_force
        splits = None if protocol.pretrains_on_test else {"train", "valid", "pretrain"}
        if config.pretrain.splits == "train":
            splits = {"train", "pretrain"}
        if protocol.validates_by == "segment":
            self.train = self.valid = cut(splits=splits)
            self.train_rows, self.valid_rows = split_rows(len(self.train), seed=config.seed, fraction=fraction)
        else:
            pieces = (
                (store.corpus, store.piece_id(piece))
                for store in stores
                for piece in range(len(store))
                if splits is None or store.split(piece) in splits
            )
            held_out = holdout(pieces, seed=config.seed, fraction=fraction)
            self.train = cut(splits=splits, keep=lambda *piece: not held_out(*piece))
            self.valid = cut(splits=splits, keep=held_out)
            self.train_rows, self.valid_rows = np.arange(len(self.train)), np.arange(len(self.valid))
        if not len(self.train_rows) or not len(self.valid_rows):
            raise ValueError(
                f"{len(self.train_rows)} training and {len(self.valid_rows)} validation segments are too few; "
                "add music, or change pretrain.valid_fraction or tokens.segment"
            )
        self.order = BatchOrder(n=len(self.train_rows), batch_size=config.pretrain.batch, seed=config.seed)

    def steps(self, epochs: int) -> int:
        """Optimizer steps of so many epochs."""
        return epochs * self.order.batches_per_epoch


@dataclass(frozen=True)
class Share:
    """A worker's share of an optimizer step, on the host."""

    batches: list[StepBatch]
    """Its micro-batches."""
    lengths: NDArray[np.int64]
    """int64 [batch], real tokens of each row of the global batch."""
    masked: int
    """Masked positions of the global batch."""


class PretrainLoop:
    """A worker of a run: its rows of each batch, its forward and backward passes, its sums."""

    def __init__(
        self, config: Config, data: PretrainData, engine: Any, *, rank: int, world: int, device: torch.device
    ) -> None:
        self.config, self.data, self.engine = config, data, engine
        self.protocol = config.protocol_in_force
        self.rolled = ROWS * COLUMNS if config.pretrain.roll else 0
        self.rank, self.world, self.device = rank, world, device
        self.plan, self.masking = plan_batch(config), MaskedStep(config)
        self.masking.prepare(engine.module)
        self.shares = Prefetcher(lambda place: self._share(*place), self._next)
        self.totals = self._new_totals()
        self.throughput = Throughput(world * peak_flops(device, config.compute.precision), device)
        self.watch = FiniteWatch(rank, device)
        self.lr = 0.0
        """Learning rate of the last step."""
        self.finite: dict[str, Any] = {}
        """The last report, all of it finite numbers."""

    def step(self, epoch: int, k: int, step: int) -> None:
        """Take an optimizer step on batch k of an epoch; `step` counts from the start of the run."""
        share = self.shares.take((epoch, k, step))
        torch.manual_seed(keyed_hash(self.config.seed, "dropout", step, self.rank) % 2**63)
        self.engine.train()
        self.lr = self.engine.get_lr()[0]
        for batch in share.batches:
            sums = self._forward(batch, augmented=True)
            # DeepSpeed averages over micro-batches and workers; we want the mean over all masked positions.
            loss = sums["loss"] / max(share.masked, 1)
            if weight := self.config.pretrain.roll:
                loss = loss + weight * sums["roll"] / int(share.lengths.sum())
            self.engine.backward(loss * self.plan.accumulation * self.world)
            engines.step(self.engine)
            self.totals.add(sums)
            self.throughput.notes += batch.notes
            self.watch.add(step + 1, loss)
        # ZeRO leaves a step out whose gradient is not finite, and tells nobody but its log.
        norm = math.inf if self.engine.skipped_steps else self.engine.get_global_grad_norm()
        if norm is not None:
            self.watch.add(step + 1, norm if isinstance(norm, Tensor) else torch.full((), norm, device=self.device))
        self.throughput.steps += 1
        self.throughput.flops += step_flops(self.engine.module.config, share.lengths, share.masked, self.rolled)

    def _share(self, epoch: int, k: int, step: int) -> Share:
        rows = self.data.train_rows[self.data.order.indices(epoch, k)]
        keys = row_keys(self.config.seed, epoch, step, torch.arange(len(rows)))
        lengths = self.masking.lengths(self.data.train.lengths(rows), keys)
        micro, first = self.plan.micro_batch, self.rank * self.plan.micro_batch * self.plan.accumulation
        batches = [
            self._batch(self.data.train, rows[start : start + micro], keys[start : start + micro], augmented=True)
            for start in range(first, first + micro * self.plan.accumulation, micro)
        ]
        return Share(batches, lengths, int(self.masking.counts(lengths).sum()))

    def _next(self, place: tuple[int, int, int]) -> tuple[int, int, int] | None:
        """The batch after another one: epoch, number in it, step."""
        epoch, k, step = place
        if k + 1 == self.data.order.batches_per_epoch:
            epoch, k = epoch + 1, -1
        return None if epoch == self.config.pretrain.epochs else (epoch, k + 1, step + 1)

    def _batch(self, segments: Segments, rows: NDArray[np.int64], keys: Tensor, *, augmented: bool) -> StepBatch:
        raw = segments.gather(rows)
        notes = int((raw.note >= 0).sum())
        batch = self.masking.batch(raw.tokens, raw.length, keys, notes=notes, augmented=augmented)
        return batch.pin() if self.device.type == "cuda" else batch

    def metrics(self, steps_left: int) -> dict[str, float]:
        """Means since the last call, over all workers."""
        metrics = self.totals.result("train")
        self.totals = self._new_totals()
        norm = self.engine.get_global_grad_norm()
        metrics |= {} if norm is None else {"optimizer/gradient_norm": float(norm)}
        rates = self.throughput.result(steps_left, self.shares.waited, self.shares.worked)
        self.shares.restart()
        return metrics | {"optimizer/lr": self.lr, "memory/gib": memory_gib(self.device)} | rates

    @torch.no_grad()
    def validate(self, epoch: int) -> dict[str, float]:
        """Loss and accuracy on the validation part; the workers take turns in micro-batches."""
        self.engine.eval()
        totals, rows = self._new_totals(), self.data.valid_rows
        # The authors draw new masks for every validation; a fixed mask makes epochs comparable.
        draw = epoch if self.protocol.redraws_valid_masks else 0
        keys = row_keys(keyed_hash(self.config.seed, "valid") % 2**31, draw, 0, torch.arange(len(rows)))
        micro, stride = self.plan.micro_batch, self.plan.micro_batch * self.world
        end = len(rows) + self.rank * micro

        def batch(start: int) -> StepBatch:
            # A worker without rows in the last turn still takes part: ZeRO 3 gathers weights in the forward pass.
            mine = slice(start, start + micro) if start < len(rows) else slice(0, 1)
            return self._batch(self.data.valid, rows[mine], keys[mine], augmented=False)

        batches = Prefetcher(batch, lambda start: start + stride if start + stride < end else None)
        for start in range(self.rank * micro, end, stride):
            sums = self._forward(batches.take(start), augmented=False)
            if start < len(rows):
                totals.add(sums)
        return totals.result("valid")

    def _forward(self, batch: StepBatch, *, augmented: bool) -> dict[str, Tensor]:
        return self.masking(self.engine, batch.to(self.device), augmented=augmented)

    def _new_totals(self) -> MaskedTotals:
        vocabulary = self.engine.module.config.vocabulary
        return MaskedTotals(dict(zip(vocabulary.families, vocabulary.sizes, strict=True)), self.device)


def score(config: Config, metrics: dict[str, float]) -> float:
    """The number that a validation is judged by, higher is better: its accuracy, or its negative loss."""
    return metrics["valid/accuracy"] if config.protocol_in_force.judged_by == "accuracy" else -metrics["valid/loss"]


def run_epochs(loop: PretrainLoop, progress: Progress, report: Report) -> None:
    """From where a run stands to its end: step, report every few steps, validate and save every few epochs.

    Raises FloatingPointError where the loss is no longer finite.
    """
    settings, per_epoch = loop.config.pretrain, loop.data.order.batches_per_epoch
    steps = loop.data.steps(settings.epochs)
    # A resumed run first says again what may not have been written down; it travels with the first new report.
    for metrics in progress.reports:
        report(metrics, False)
        loop.finite = metrics
    # While the controller is busy with a checkpoint's reports (it imports MLflow at the first ones), those of the next
    # wait in a queue, and the worker waits with those of a third: that checkpoint is on the disk, and must hold all.
    waiting = 0, 0
    loop.throughput.restart()
    while progress.epoch < settings.epochs and not (settings.patience and progress.bad >= settings.patience):
        last = progress.epoch + 1 == settings.epochs
        validates = last or (progress.epoch + 1) % settings.valid_every == 0
        for k in range(per_epoch):
            loop.step(progress.epoch, k, progress.step)
            progress.step += 1
            # The interval before a checkpoint is reported with it, so that a resumed run starts a fresh one too.
            if progress.step % loop.config.compute.log_every == 0 and not (validates and k + 1 == per_epoch):
                progress.reports.append(_finite(loop, progress, loop.metrics(steps - progress.step)))
                report(progress.reports[-1], False)
        progress.epoch += 1
        if validates:
            metrics = _finite(loop, progress, loop.metrics(steps - progress.step) | loop.validate(progress.epoch))
            metrics["valid/score"] = score(loop.config, metrics)
            progress.judge(metrics["valid/score"])
            progress.reports.append(metrics)
            report(progress.reports[-1], True)
            progress.reports = progress.reports[waiting[0] :]
            waiting = waiting[1], len(progress.reports) - waiting[1]
            loop.throughput.restart()


def _finite(loop: PretrainLoop, progress: Progress, metrics: dict[str, float]) -> dict[str, Any]:
    """The metrics and where the run stands; in every worker FloatingPointError where one is not a finite number."""
    non_finite = [key for key, value in metrics.items() if not math.isfinite(value)]
    first = loop.watch.first()
    if not non_finite and first is None:
        where = {"step": progress.step, "epoch": progress.epoch, "steps": loop.data.steps(loop.config.pretrain.epochs)}
        loop.finite = metrics | where
        return loop.finite
    if first:
        problem = f"loss or gradient is not finite at step {first[0]:,} on worker {first[1]}"
    else:
        problem = f"{non_finite[0]} is {metrics[non_finite[0]]} at step {progress.step:,} on every worker"
    losses = {key: value for key, value in loop.finite.items() if key.startswith(("train/", "valid/"))}
    known = ", ".join(f"{key} {value:.4g}" for key, value in losses.items())
    before = f"the last finite metrics, of step {loop.finite['step']:,}: {known}" if known else "none was finite before"
    raise FloatingPointError(
        f"{problem}; {before}; lower optimizer.lr, add optimizer.warmup_steps, or use compute.precision=fp32"
    )
