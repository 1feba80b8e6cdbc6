"""What a study varies, as a list of trials: each is a name and a few dotted settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from midibert_ray.config import Config
from midibert_ray.overrides import replace

VARIANTS: dict[str, dict[str, str]] = {
    "pretrained": {"finetune.init": "pretrained", "finetune.freeze": "none"},
    "freeze-backbone": {"finetune.init": "pretrained", "finetune.freeze": "backbone"},
    "freeze-attention": {"finetune.init": "pretrained", "finetune.freeze": "attention"},
    "scratch": {"finetune.init": "scratch", "finetune.freeze": "none"},
}
"""Rows of the ablation (paper Table III): how a trial starts, and what it freezes."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One cell of a table, with one seed."""

    task: str
    """Downstream task: the column."""

    variant: str
    """Key of VARIANTS: the row."""

    seed: int

    changes: Mapping[str, Any] = field(default_factory=dict)
    """Dotted settings in which the trial differs from the study's configuration."""

    @property
    def name(self) -> str:
        """Unique within a study; a folder name, and what MLflow shows."""
        return f"{self.task}-{self.variant}-seed{self.seed}"

    def config(self, base: Config) -> Config:
        """The trial's whole configuration."""
        return replace(base, self.changes)


def grid(config: Config) -> list[Trial]:
    """All tasks × variants × seeds of a configuration, in the order of its lists."""
    return [
        Trial(task=task, variant=variant, seed=seed, changes=VARIANTS[variant] | {"finetune.task": task, "seed": seed})
        for task in config.study.tasks
        for variant in config.study.variants
        for seed in range(config.seed, config.seed + config.study.seeds)
    ]
