"""The variations of a study, as a list of trials: each is a name and a few dotted settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from midibert_ray.settings.config import Config, StudyConfig
from midibert_ray.settings.overrides import flatten, replace
from midibert_ray.settings.validators import FOLDER
from midibert_ray.studies import paper, sweep

_RNN = {"finetune.model": "rnn", "finetune.init": "scratch", "finetune.freeze": "none"}
_SCRATCH = {"finetune.init": "scratch", "finetune.freeze": "none"}
_TUNED = {"finetune.init": "pretrained", "finetune.freeze": "none"}
_REMI = {"model.representation": "remi"}
_BY_PITCH = {"protocol.order": "pitch"}
_NOISE = _TUNED | {"pretrain.objective": "noise", "mask.fraction": 0.3}
_ROLL = {"pretrain.roll": 0.0057}
"""M2BERT's weight, 1/176."""

VARIANTS: dict[str, dict[str, Any]] = {
    "pretrained": _TUNED,
    "freeze-backbone": {"finetune.init": "pretrained", "finetune.freeze": "backbone"},
    "freeze-attention": {"finetune.init": "pretrained", "finetune.freeze": "attention"},
    "probe": {"finetune.init": "pretrained", "finetune.freeze": "backbone", "finetune.model": "probe"},
    "scratch": _SCRATCH,
    "rnn": _RNN,
    "remi": _TUNED | _REMI,
    "rnn-remi": _RNN | _REMI,
    "train-splits": _TUNED | {"pretrain.splits": "train"},
    "pop1k7-asap": _TUNED | {"corpora.names": ("pop1k7", "asap")},
    "pretrained-by-pitch": _TUNED | _BY_PITCH,
    "scratch-by-pitch": _SCRATCH | _BY_PITCH,
    "rnn-by-pitch": _RNN | _BY_PITCH,
    "mask-30": _TUNED | {"mask.fraction": 0.3},
    "noise": _NOISE,
    "noise-roll": _NOISE | _ROLL,
    "noise-roll-transpose": _NOISE | _ROLL | {"augment.transpose": 6, "augment.stage": "pretrain"},
    "segment-1024": _TUNED | {"tokens.segment": 1024},
    "constant-rate": _TUNED | {"finetune.warmup": 0.0},
    "layer-decay": _TUNED | {"finetune.layer_decay": 0.8},
    "average-3": _TUNED | {"finetune.average": 3},
}
"""Rows of the paper's tables, and of ours: how a trial starts, what it freezes, what it was pre-trained on."""
OF_SEGMENTS = ("pretrain.batch", "finetune.batch", "finetune.train_segments", "finetune.valid_segments")
"""Settings that count segments: of longer ones a variant has fewer, so that they are as many notes."""
OF_FINETUNING = ("seed", "finetune.", "rnn.", "study.")
"""Settings in which trials may differ that share a pre-trained encoder."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A cell of a table, with one seed."""

    task: str
    """The column."""
    variant: str
    """Key of VARIANTS: the row."""
    protocol: str
    seed: int
    fold: int = 0
    """The fold that is tested, from 1; 0 where nothing is divided into folds."""
    draw: int | None = field(default=None, compare=False)
    """Number of the draw, in a sweep."""
    changes: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Dotted settings in which the trial differs from the study's configuration."""

    @property
    def tags(self) -> dict[str, Any]:
        """The tags in MLflow that tell it from the study's other trials."""
        told = {"task": self.task, "variant": self.variant, "seed": self.seed, "protocol": self.protocol}
        return told | ({"fold": self.fold} if self.fold else {})

    @classmethod
    def of(cls, tags: Mapping[str, Any]) -> "Trial":
        """The trial that has these `tags`."""
        task, variant, protocol = (str(tags[name]) for name in ("task", "variant", "protocol"))
        return cls(task=task, variant=variant, protocol=protocol, seed=int(tags["seed"]), fold=int(tags.get("fold", 0)))

    @property
    def name(self) -> str:
        """Unique within a study; a folder name, and what MLflow shows."""
        return f"{self.task}-{self.variant}-{self.protocol}-seed{self.seed}" + f"-fold{self.fold}" * bool(self.fold)

    def config(self, base: Config) -> Config:
        return replace(base, self.changes)

    def pretraining(self, base: Config) -> Config | None:
        """The configuration of the pre-training that the trial starts from; None where it starts from random weights,
        or from those of `finetune.start`.

        Trials that differ in what only fine-tuning reads share one.
        """
        if self.config(base).finetune.init == "scratch" or base.finetune.start:
            return None
        return replace(base, {key: value for key, value in self.changes.items() if not key.startswith(OF_FINETUNING)})


def variants(config: Config) -> tuple[str, ...]:
    """The rows of a study: those of the paper's tables that it asks for, or only some of them.

    With labels of somebody's own, the rows that stand where none are asked for include a linear probe.
    """
    rows, chosen = paper.variants(config.study.tables), config.study.variants
    if config.finetune.corpus.startswith(FOLDER) and chosen == StudyConfig().variants:
        chosen = (*chosen, "probe")
    return tuple(row for row in rows if not chosen or row in chosen) if rows else chosen


def changes(variant: str, config: Config) -> dict[str, Any]:
    """The settings in which a row differs from the study's configuration."""
    own = VARIANTS[variant]
    longer = own.get("tokens.segment", config.tokens.segment) / config.tokens.segment
    if longer == 1:
        return own
    values = flatten(config)
    return own | {name: max(1, round(values[name] / longer)) for name in OF_SEGMENTS if values[name]}


def grid(config: Config) -> list[Trial]:
    """All protocols × tasks × variants × seeds × folds of a configuration, as its lists have them; or a sweep's draws.

    Draws all start from the pre-trained encoder and have the same seed.
    """
    protocols = config.study.protocols or (config.tokens.protocol,)
    if config.study.draws:
        return [
            Trial(
                task=task,
                variant=f"draw{number:03d}",
                protocol=protocol,
                seed=config.seed,
                draw=number,
                changes=sweep.draw(config, number) | _TUNED | {"tokens.protocol": protocol, "finetune.task": task},
            )
            for protocol, task, number in product(protocols, config.study.tasks, range(config.study.draws))
        ]
    seeds = range(config.seed, config.seed + config.study.seeds)
    folds = range(1, config.study.folds + 1) if config.study.folds else (0,)
    return [
        Trial(
            task=task,
            variant=variant,
            protocol=protocol,
            seed=seed,
            fold=fold,
            changes=changes(variant, config)
            | {"tokens.protocol": protocol, "finetune.task": task, "finetune.fold": fold, "seed": seed},
        )
        for protocol, task, variant, seed, fold in product(
            protocols, config.study.tasks, variants(config), seeds, folds
        )
    ]
