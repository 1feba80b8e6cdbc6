"""A search for better fine-tuning settings: random draws, of which ASHA stops the poor ones early.

Draw *n* is a function of (seed, n), so that the same command searches the same settings, and one that asks for
more draws keeps those that are there. A sweep chooses by validation and never looks at the test split.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

from midibert_ray.data.order import keyed_hash
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import flatten
from midibert_ray.settings.text import piped
from midibert_ray.studies.result import BEST, METRIC_WORDS, TrialResult

LAYER_DECAY = (1.0, 0.95, 0.9, 0.8, 0.65)
WARMUP = (0.0, 0.06, 0.1, 0.2)
HEADS = ("paper", "linear")


def draw(config: Config, number: int) -> dict[str, Any]:
    """The settings of a draw, counted from 0.

    The rate is drawn within a factor of ten around `finetune.lr`, evenly in its logarithm; epochs are half, all or
    twice `finetune.epochs`; the rest comes from what is usual for models of BERT's kind.
    """
    random = np.random.default_rng(keyed_hash(config.seed, "sweep", number))
    lr = math.exp(random.uniform(math.log(config.finetune.lr / 10), math.log(config.finetune.lr * 10)))
    epochs = config.finetune.epochs
    return {
        "finetune.lr": float(f"{lr:.3g}"),
        "finetune.layer_decay": float(random.choice(LAYER_DECAY)),
        "finetune.warmup": float(random.choice(WARMUP)),
        "finetune.epochs": int(random.choice([max(1, epochs // 2), epochs, 2 * epochs])),
        "finetune.head": str(random.choice(HEADS)),
        "finetune.freeze_layers": int(random.integers(0, config.model.layers)),
    }


class DrawScheduler(FIFOScheduler):
    """ASHA for each column of a sweep: of the draws that reach 1, 3, 9 ... epochs, the better third goes on.

    The scores of two tasks, or of one task under two protocols, say nothing of each other. None is stopped for having
    come to the last epoch that a draw can have: it has yet to write what it found.
    """

    def __init__(self, config: Config, column: Callable[[Any], str]) -> None:
        """`column`: of a trial of Tune, what it is compared within. Pre-trainings, without a score, are let alone."""
        super().__init__()
        asha = partial(
            AsyncHyperBandScheduler,
            time_attr="epoch",
            metric=BEST,
            mode="max",
            max_t=2 * config.finetune.epochs,
            grace_period=1,
            reduction_factor=3,
            stop_last_trials=False,
        )
        self._column, self._columns = column, defaultdict[str, AsyncHyperBandScheduler](asha)

    def _of(self, trial: Any) -> AsyncHyperBandScheduler:
        return self._columns[self._column(trial)]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return str(self._of(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_remove(tune_controller, trial)


def ranking(outcomes: Sequence[TrialResult]) -> dict[str, list[TrialResult]]:
    """Task -> its draws that were not stopped early, best first by validation; of equals the earlier draw."""
    tasks = dict.fromkeys(item.task for item in outcomes)
    ranked = sorted(outcomes, key=lambda item: (-item.metrics[BEST], item.variant))
    return {task: [item for item in ranked if item.task == task] for task in tasks}


def settings(config: Config, outcome: TrialResult) -> str:
    """The settings of a draw as they stand on a command line, such as that of the paper study."""
    drawn = draw(config, outcome.draw) if outcome.draw is not None else {}
    before = flatten(config)
    return " ".join(f"{key}={value}" for key, value in drawn.items() if value != before[key])


def report(config: Config, outcomes: Sequence[TrialResult]) -> str:
    """Markdown: of every task the draws that were not stopped, best first, and the best as a command line has it."""
    parts = []
    for task, ranked in ranking(outcomes).items():
        rows = [["draw", f"validation {METRIC_WORDS[ranked[0].kind]} in %", "epochs", "settings"]]
        for item in ranked:
            rows.append([item.variant, f"{100 * item.metrics[BEST]:.2f}", str(item.epoch), settings(config, item)])
        parts += [piped(rows), f"Best for {task}, for another study: `{settings(config, ranked[0])}`"]
    return "\n\n".join(parts) + "\n"
