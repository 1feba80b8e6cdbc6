"""Objectives by kind of task: the loss of a model's outputs, and what these say in the units of the labels."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from midibert_ray.settings.config import Config
from midibert_ray.training.task_data import IGNORE, TaskData


class ClassObjective:
    """Cross-entropy over the notes or segments that are scored."""

    def __init__(self, config: Config, data: TaskData, device: torch.device) -> None:
        self.smoothing = config.finetune.label_smoothing
        self.weights: Tensor | None = None
        if config.finetune.class_balance:
            self.weights = torch.from_numpy(data.class_weights()).to(device)

    def loss(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss summed over what is scored, and the sum of the weights that a mean divides it by.

        logits: float [..., outputs]; targets: int64 [...], IGNORE is not scored.
        """
        logits, targets, weights = logits.flatten(0, -2), targets.flatten(), self.weights
        scored = targets != IGNORE
        loss = F.cross_entropy(
            logits, targets, weights, ignore_index=IGNORE, reduction="sum", label_smoothing=self.smoothing
        )
        return loss, scored.sum() if weights is None else (weights[targets.clamp_min(0)] * scored).sum()

    def hits(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of what is right, and of what is scored."""
        return (logits.argmax(-1) == targets).sum(), (targets != IGNORE).sum()

    def answers(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs in the units of the labels: logits as they are."""
        return logits

    def finish(self, model: nn.Module) -> None:
        """Make a model give `answers` by itself; it does."""


class NumberObjective:
    """Squared error, of labels that have mean 0 and deviation 1 in what is learned from."""

    def __init__(self, config: Config, data: TaskData, device: torch.device) -> None:
        values = data.learned_labels()
        self.mean, self.scale = float(values.mean()), float(values.std()) or 1.0

    def loss(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss summed over segments, and their number; logits: float [b, 1], targets: float [b]."""
        expected = (targets - self.mean) / self.scale
        return F.mse_loss(logits[:, 0], expected, reduction="sum"), targets.new_tensor(len(targets))

    def hits(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """A number is neither right nor wrong: 0 of 0."""
        return torch.zeros_like(targets[0], dtype=torch.int64), torch.zeros_like(targets[0], dtype=torch.int64)

    def answers(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs in the units of the labels."""
        return np.asarray(logits * self.scale + self.mean, np.float32)

    @torch.no_grad()
    def finish(self, model: nn.Module) -> None:
        """Make a model give `answers` by itself: the last layer takes mean and deviation in."""
        last = output_layer(model)
        last.weight.mul_(self.scale)
        last.bias.mul_(self.scale).add_(self.mean)


class TagObjective:
    """Binary cross-entropy of every tag."""

    def __init__(self, config: Config, data: TaskData, device: torch.device) -> None:
        self.weights: Tensor | None = None
        if config.finetune.class_balance:
            shares = data.learned_labels().mean(axis=0).clip(1e-3, 1 - 1e-3)
            self.weights = torch.from_numpy(((1 - shares) / shares).astype(np.float32)).to(device)

    def loss(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss summed over segments and tags, and their number; logits and targets: float [b, tags]."""
        loss = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.weights, reduction="sum")
        return loss, targets.new_tensor(targets.numel())

    def hits(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of right decisions, and of all."""
        return ((logits > 0) == (targets > 0)).sum(), torch.full_like(targets[0, 0], targets.numel()).long()

    def answers(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs in the units of the labels: logits as they are."""
        return logits

    def finish(self, model: nn.Module) -> None:
        """Make a model give `answers` by itself; it does."""


Objective = ClassObjective | NumberObjective | TagObjective


def objective(config: Config, data: TaskData, device: torch.device) -> Objective:
    """The objective of a task's kind."""
    kinds: dict[str, type[Objective]] = {"classes": ClassObjective, "number": NumberObjective, "tags": TagObjective}
    return kinds[data.task.kind](config, data, device)


def output_layer(model: Any) -> nn.Linear:
    """The last layer of a model for a task."""
    last: nn.Linear = model.output if hasattr(model, "output") else model.head.output
    return last
