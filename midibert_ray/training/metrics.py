"""Metrics of a run: exact sums that add up over micro-batches and workers, and rates over time."""

import time
from collections.abc import Mapping

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
        """Start at zero.

        Args:
            vocabulary: token types and the number of their ids, which are the weights of the loss
                (paper: 4, 18, 88 and 66 over 176).
            device: where the sums are kept.
        """
        self.families = list(vocabulary)
        self.weights = np.array(list(vocabulary.values()), dtype=np.float64) / sum(vocabulary.values())
        self.sums = torch.zeros(3, len(vocabulary), dtype=torch.float64, device=device)

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Take in what `mlm_loss(..., reduction="sum")` says of a micro-batch."""
        for row, name in enumerate(("loss", "correct")):
            self.sums[row] += torch.stack([sums[f"{family}/{name}"].double() for family in self.families])
        self.sums[2] += sums["count"]

    def result(self, prefix: str) -> dict[str, float]:
        """Means over all workers since the start; every worker must call it."""
        totals = self.sums.clone()
        if dist.is_initialized():
            dist.all_reduce(totals)
        loss, correct, count = totals.cpu().numpy()
        means, hits = loss / np.maximum(count, 1), correct / np.maximum(count, 1)
        metrics = {f"{prefix}/loss": float(means @ self.weights), f"{prefix}/accuracy": float(hits @ self.weights)}
        if len(self.families) > 1:
            for family, mean, hit in zip(self.families, means, hits, strict=True):
                name = family.lower()
                metrics |= {f"{prefix}/loss/{name}": float(mean), f"{prefix}/accuracy/{name}": float(hit)}
        return metrics


class Throughput:
    """Super tokens and arithmetic a second between two reports, and the time left."""

    def __init__(self, peak: float, device: torch.device) -> None:
        """Start an interval.

        Args:
            peak: floating-point operations a second that all workers together could do; see `flops.peak_flops`.
            device: where numbers are that workers add up.
        """
        self._peak, self._device = peak, device
        self.restart()

    def restart(self) -> None:
        """Begin a new interval: what came before (a validation, a checkpoint) is not training."""
        self._since = time.perf_counter()
        self._notes = self._steps = 0
        self._flops = 0.0

    def add_notes(self, notes: int) -> None:
        """Count the real notes of a micro-batch of this worker; neither padding nor REMI's other tokens are notes."""
        self._notes += notes

    def add_step(self, flops: float) -> None:
        """Count a step of all workers by its `flops.step_flops`."""
        self._flops += flops
        self._steps += 1

    def result(self, steps_left: int) -> dict[str, float]:
        """Rates since the last call, which starts a new interval; every worker must call it."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        notes = torch.tensor(float(self._notes), dtype=torch.float64, device=self._device)
        if dist.is_initialized():
            dist.all_reduce(notes)
        metrics = {
            "throughput/super_tokens_per_s": float(notes) / seconds,
            "throughput/steps_per_s": self._steps / seconds,
            "throughput/model_flops_per_s": self._flops / seconds,
            "throughput/mfu": self._flops / seconds / self._peak,
            "throughput/eta_s": steps_left * seconds / max(self._steps, 1),
        }
        self.restart()
        return metrics


class FiniteWatch:
    """Finds the first step and worker whose loss or gradient is not finite, without waiting for the device."""

    def __init__(self, rank: int, device: torch.device) -> None:
        self._rank = rank
        self._first = torch.full((), _NEVER, dtype=torch.int64, device=device)

    def add(self, step: int, value: Tensor) -> None:
        """Look at a scalar of an optimizer step, such as this worker's loss."""
        seen = torch.where(torch.isfinite(value.detach()), _NEVER, step)
        self._first = torch.minimum(self._first, seen)

    def first(self) -> tuple[int, int] | None:
        """Step (counted from 1) and worker of the first value that is not finite; every worker must call it."""
        mine = torch.stack([self._first, torch.full_like(self._first, self._rank)])
        everyone = [mine]
        if dist.is_initialized():
            everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
            dist.all_gather(everyone, mine)
        step, worker = min((int(step), int(worker)) for step, worker in everyone)
        return None if step == _NEVER else (step, worker)


_NEVER = 2**62


def confusion(labels: NDArray[np.int64], predictions: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts [classes, classes]: row = true class, column = predicted class."""
    return np.bincount(labels * classes + predictions, minlength=classes * classes).reshape(classes, classes)


def macro_f1(matrix: NDArray[np.int64]) -> float:
    """Mean F1 over the classes that occur as a label or as a prediction."""
    hits = np.diag(matrix).astype(np.float64)
    support = matrix.sum(axis=0) + matrix.sum(axis=1)
    scores = 2 * hits[support > 0] / support[support > 0]
    return float(scores.mean()) if len(scores) else 0.0


def memory_gib(device: torch.device) -> float:
    """Largest memory of this process so far, in GiB: of the GPU where there is one, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
