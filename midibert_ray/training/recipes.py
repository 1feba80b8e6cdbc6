"""Recipes for a labelled task: MidiBERT is trained by AdamW, the recurrent baselines by SGD.

A recipe has a `batch` (segments a step), `epochs` (at most), a `rate` (the highest) and the `rate_setting` that it
comes from. It keeps no state: all that changes while a trial runs stands in its `TrialProgress`, so that a resumed
trial goes on as if nothing had happened.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from midibert_ray.model.heads import stages
from midibert_ray.music.tasks import TASKS, Task
from midibert_ray.settings.config import Config, OptimizerConfig
from midibert_ray.training.engine import Progress
from midibert_ray.training.optimizer import adamw, rate_factor

RNN_BATCH = 16
"""Batch of the authors' recurrent baselines."""


@dataclass
class TrialProgress(Progress):
    """The state of a trial."""

    accuracy: float = 0.0
    """Validation accuracy of the best epoch."""
    falls: int = 0
    """Number of times that the rate fell, after too many epochs without a better validation."""
    seconds: float = 0.0
    """Time spent on training and scoring, over all starts of the trial."""


class AdamwRecipe:
    """AdamW by the settings `finetune.*`: the best epoch is that of the highest validation accuracy (paper §V-C)."""

    rate_setting = "finetune.lr"

    def __init__(self, config: Config, task: Task | None = None) -> None:
        self._config, settings = config, config.finetune
        self._metric = (task or TASKS[config.finetune.task]).metric
        self.batch, self.rate = settings.batch, settings.lr
        self.epochs = 1 if settings.model == "probe" else settings.epochs

    def optimizer(self, model: Any) -> Optimizer:
        """AdamW of the protocol over all that learns; each stage below the head learns more slowly by `layer_decay`."""
        settings, eps = self._config.finetune, self._config.optimizer.eps
        downwards = enumerate(reversed(list(stages(model))))
        factors = {parameter: settings.layer_decay**depth for depth, stage in downwards for parameter in stage}
        rates: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
        return adamw(model.parameters(), self._config.protocol_in_force, eps=eps, factors=factors, **rates)

    def factor(self, progress: TrialProgress, steps: int) -> float:
        """Factor of all rates at the next of so many steps: 1, or with `warmup` up to 1 and then down to 0."""
        if not (share := self._config.finetune.warmup):
            return 1.0
        course = OptimizerConfig(schedule="linear", warmup_steps=max(1, round(share * steps)))
        return rate_factor(course, steps)(progress.step)

    def score(self, valid: Mapping[str, float]) -> float:
        """The task's metric."""
        return valid[f"valid/{self._metric}"]

    def after_validation(self, *_: Any) -> None:
        """Nothing is changed: too many epochs without a better one end the trial."""

    def over(self, progress: TrialProgress) -> bool:
        """True after all epochs, or `patience` of them without a better one."""
        return progress.epoch >= self.epochs or 0 < self._config.finetune.patience <= progress.bad


class SgdRecipe:
    """SGD with momentum by the settings `rnn.*`: the best epoch is that of the lowest validation loss.

    After `rnn.patience` epochs without a lower one the rate falls. The authors' code then goes on from where it
    stands; with `rnn_returns_to_best` of the protocol training goes on from the best weights.
    """

    rate_setting = "rnn.lr"

    def __init__(self, config: Config, task: Task | None = None) -> None:
        self._settings, self._protocol = config.rnn, config.protocol_in_force
        self.batch, self.epochs = config.rnn.batch or RNN_BATCH, config.rnn.epochs
        self.rate = config.rnn.lr or (task or TASKS[config.finetune.task]).rnn_lr

    def optimizer(self, model: Any) -> Optimizer:
        """SGD over all parameters."""
        return SGD(model.parameters(), lr=self.rate, momentum=0.9)

    def factor(self, progress: TrialProgress, steps: int) -> float:
        """Factor of the rate: less with each fall."""
        return self._settings.factor**progress.falls

    def score(self, valid: Mapping[str, float]) -> float:
        """Loss of a validation, negative; higher is better."""
        return -valid["valid/loss"]

    def after_validation(
        self, progress: TrialProgress, model: nn.Module, optimizer: Optimizer, best: Mapping[str, Tensor]
    ) -> None:
        """Let the rate fall, and the momentum go, after `patience` epochs without a lower loss."""
        if progress.bad < self._settings.patience:
            return
        progress.falls, progress.bad = progress.falls + 1, 0
        optimizer.state.clear()
        if self._protocol.rnn_returns_to_best:
            model.load_state_dict(best)

    def over(self, progress: TrialProgress) -> bool:
        """True after all epochs, or `stops` falls of the rate."""
        return progress.epoch >= self.epochs or progress.falls >= self._settings.stops


Recipe = AdamwRecipe | SgdRecipe


def recipe(config: Config, task: Task | None = None) -> Recipe:
    """The recipe of a configuration's kind of model; `task` is needed for one that is not among `TASKS`."""
    return SgdRecipe(config, task) if config.finetune.model == "rnn" else AdamwRecipe(config, task)
