"""Metrics of a run: exact sums that add up over micro-batches and workers, and rates over time."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor


class MaskedTotals:
    """Sums over the masked positions of each token type: cross-entropy, hits and positions.

    Means of means depend on how a batch was cut; sums do not.
    """

    def __init__(self, vocabulary: Mapping[str, int], device: torch.device) -> None:
        """`vocabulary`: token types -> number of ids, the weights of the loss (paper: 4, 18, 88 and 66 over 176)."""
        self.families = list(vocabulary)
        self.weights = np.array(list(vocabulary.values()), dtype=np.float64) / sum(vocabulary.values())
        self.sums = torch.zeros(3, len(vocabulary), dtype=torch.float64, device=device)
        self.roll = torch.zeros(2, dtype=torch.float64, device=device)

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Take in what `mlm_loss(..., reduction="sum")` says of a micro-batch, and its error of `roll` over `notes`."""
        for row, name in enumerate(("loss", "correct")):
            self.sums[row] += torch.stack([sums[f"{family}/{name}"].double() for family in self.families])
        self.sums[2] += sums["count"]
        if "roll" in sums:
            self.roll += torch.stack([sums["roll"].detach().double(), sums["notes"].to(self.roll)])

    def result(self, prefix: str) -> dict[str, float]:
        """Means over all workers since the start; every worker must call it."""
        totals, roll = self.sums.clone(), self.roll.clone()
        if dist.is_initialized():
            dist.all_reduce(totals)
            dist.all_reduce(roll)
        loss, correct, count = totals.cpu().numpy()
        means, hits = loss / np.maximum(count, 1), correct / np.maximum(count, 1)
        metrics = {f"{prefix}/loss": float(means @ self.weights), f"{prefix}/accuracy": float(hits @ self.weights)}
        if len(self.families) > 1:
            for family, mean, hit in zip(self.families, means, hits, strict=True):
                name = family.lower()
                metrics |= {f"{prefix}/loss/{name}": float(mean), f"{prefix}/accuracy/{name}": float(hit)}
        return metrics | ({f"{prefix}/roll": float(roll[0] / roll[1])} if roll[1] else {})


class Throughput:
    """Super tokens and arithmetic a second between two reports, and the time left."""

    def __init__(self, peak: float, device: torch.device) -> None:
        """`peak`: operations a second that all workers together could do; see `flops.peak_flops`."""
        self._peak, self._device = peak, device
        self.restart()

    def restart(self) -> None:
        """Begin a new interval: what came before (a validation, a checkpoint) is not training."""
        self._since = time.perf_counter()
        self.notes = 0
        """Real notes of this worker; neither padding nor REMI's other tokens are notes."""
        self.steps, self.flops = 0, 0.0
        """Of all workers; see `flops.step_flops`."""

    def result(self, steps_left: int, waited: float = 0.0, worked: float = 0.0) -> dict[str, float]:
        """Rates since the last call, which starts a new interval; every worker must call it.

        With `at`, the time by the first worker's clock, in seconds of the epoch, and this worker's share of the time
        that it waited for batches, and that making them took beside it; both in seconds.
        """
        seconds = max(time.perf_counter() - self._since, 1e-9)
        first = not dist.is_initialized() or dist.get_rank() == 0
        sums = torch.tensor([self.notes, time.time() * first], dtype=torch.float64, device=self._device)
        if dist.is_initialized():
            dist.all_reduce(sums)
        notes, now = sums.tolist()
        metrics = {
            "at": now,
            "throughput/super_tokens_per_s": notes / seconds,
            "throughput/steps_per_s": self.steps / seconds,
            "throughput/model_flops_per_s": self.flops / seconds,
            "throughput/mfu": self.flops / seconds / self._peak,
            "throughput/batches_waited": waited / seconds,
            "throughput/batches_made": worked / seconds,
            "throughput/eta_s": steps_left * seconds / max(self.steps, 1),
        }
        self.restart()
        return metrics


_NEVER = 2**62
_CELLS = 2**24
"""Numbers that an average precision holds in memory at a time."""


class FiniteWatch:
    """Finds the first step and worker whose loss or gradient is not finite, without waiting for the device."""

    def __init__(self, rank: int, device: torch.device) -> None:
        self._rank = rank
        self._first = torch.full((), _NEVER, dtype=torch.int64, device=device)

    def add(self, step: int, value: Tensor) -> None:
        """Look at a scalar of an optimizer step, such as this worker's loss."""
        self._first = torch.minimum(self._first, torch.where(torch.isfinite(value.detach()), _NEVER, step))

    def first(self) -> tuple[int, int] | None:
        """Step (counted from 1) and worker of the first value that is not finite; every worker must call it."""
        mine = torch.stack([self._first, torch.full_like(self._first, self._rank)])
        everyone = [mine]
        if dist.is_initialized():
            everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
            dist.all_gather(everyone, mine)
        step, worker = min((int(step), int(worker)) for step, worker in everyone)
        return None if step == _NEVER else (step, worker)


def confusion(labels: NDArray[np.int64], predictions: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts [classes, classes]: row = true class, column = predicted class."""
    return np.bincount(labels * classes + predictions, minlength=classes * classes).reshape(classes, classes)


def macro_f1(matrix: NDArray[np.int64]) -> float:
    """Mean F1 over the classes that occur as a label or as a prediction."""
    hits = np.diag(matrix).astype(np.float64)
    support = matrix.sum(axis=0) + matrix.sum(axis=1)
    scores = 2 * hits[support > 0] / support[support > 0]
    return float(scores.mean()) if len(scores) else 0.0


def r_squared(truth: NDArray[np.float64], said: NDArray[np.float64]) -> float:
    """Share of the variance of numbers [n] that predictions explain; 0 where all numbers are the same."""
    spread = np.square(truth - truth.mean()).sum()
    return float(1 - np.square(truth - said).sum() / spread) if spread > 0 else 0.0


def spearman(truth: NDArray[np.float64], said: NDArray[np.float64]) -> float:
    """Rank correlation of numbers [n] and predictions; 0 where either are all the same, or fewer than two."""
    if len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(said) == 0:
        return 0.0
    from scipy import stats  # here, as it takes a third of a second in every process of a study

    return float(stats.spearmanr(truth, said).statistic)


def mean_average_precision(
    truth: NDArray[Any], scores: NDArray[Any], weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Mean over tags of the average precision, the area below the steps of precision over recall: float64 [draws].

    truth (0 or 1) and scores: [n, tags]; weights: how often each of the n counts in each draw, [draws, n], or all once
    in a single draw. Equal scores are taken together. Tags that do not occur in a draw are left out; 0 where none does.
    """
    weights = np.ones((1, len(truth))) if weights is None else weights
    sums, known = np.zeros(len(weights)), np.zeros(len(weights))
    block = max(1, _CELLS // max(1, len(truth)))
    for tag in np.flatnonzero(truth.any(axis=0)):
        order = np.argsort(-scores[:, tag], kind="stable")
        ranked = -scores[order, tag]
        last = np.searchsorted(ranked, ranked, side="right") - 1
        for rows in (slice(start, start + block) for start in range(0, len(weights), block)):
            drawn = weights[rows][:, order]
            hits = drawn * (truth[order, tag] > 0)
            precision = hits.cumsum(axis=1)[:, last] / np.maximum(drawn.cumsum(axis=1)[:, last], 1)
            total = hits.sum(axis=1)
            sums[rows] += (hits * precision).sum(axis=1) / np.maximum(total, 1)
            known[rows] += total > 0
    return np.asarray(sums / np.maximum(known, 1))


def macro_tag_f1(truth: NDArray[np.bool_], said: NDArray[np.bool_]) -> float:
    """Mean F1 over the tags that occur or are predicted: bool [n, tags] each."""
    support = truth.sum(axis=0) + said.sum(axis=0)
    scores = 2 * (truth & said).sum(axis=0)[support > 0] / support[support > 0]
    return float(scores.mean()) if len(scores) else 0.0


def memory_gib(device: torch.device) -> float:
    """Largest memory of this process so far, in GiB: of the GPU where there is one, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
