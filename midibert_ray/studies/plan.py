"""A study on paper: its trials, the pre-trainings that they share, and where everything lies."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from midibert_ray import storage
from midibert_ray.music.tasks import TASKS
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import identity
from midibert_ray.studies.trials import Trial, grid
from midibert_ray.training.launch import run_key

SECTIONS = ("seed", "corpora", "tokens", "mask", "model", "optimizer", "pretrain", "finetune", "rnn", "compute")
"""What makes one study differ from another of the same name; which of its cells are computed does not."""

TRIAL_SECTIONS = ("seed", "tokens", "model", "optimizer", "finetune", "rnn", "compute")

Locate = Callable[[Config, Iterable[str]], dict[str, str]]
"""Takes a configuration and names of corpora, and gives the address of each one's token store."""


def task_corpus(config: Config, task: str) -> str:
    """The labelled corpus of a task: `finetune.corpus`, or the task's own."""
    return config.finetune.corpus or TASKS[task].corpus


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A pre-training that some trials start from."""

    key: str
    """Name and hash of its run, wherever it was begun."""

    config: Config
    stores: tuple[str, ...]
    """Addresses of its token stores, in the order of `corpora.names`."""


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """A trial, and what it is made from."""

    trial: Trial
    config: Config
    """Its whole configuration."""

    store: str
    """Address of the token store of its task."""

    encoder: str
    """Key of its pre-training; empty where it starts from random weights."""

    @property
    def key(self) -> str:
        """The trial's name and a hash of all that it is made from: its folder, and its key in MLflow."""
        made_from = identity(self.config, TRIAL_SECTIONS, store=storage.basename(self.store), encoder=self.encoder)
        return f"{self.trial.name}-{made_from}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All of a study."""

    config: Config
    key: str
    """Name and hash: the study's folder below `{root}/studies`, and its parent run in MLflow."""

    trials: Mapping[str, PlannedTrial]
    """By key, in the order of the tables."""

    pretrainings: Mapping[str, Pretraining]
    """By key, each once."""

    tokens: tuple[tuple[Config, tuple[str, ...]], ...]
    """Configurations that differ in how tokens are made, and the corpora that are needed so."""

    @property
    def stores(self) -> tuple[str, ...]:
        """Addresses of all token stores that it reads, each once."""
        pretrained = (store for run in self.pretrainings.values() for store in run.stores)
        return tuple(dict.fromkeys((*pretrained, *(trial.store for trial in self.trials.values()))))

    def address(self, trial: str) -> str:
        """The folder of a trial, by key."""
        return storage.join(study_address(self.config, self.key), trial)


def study_address(config: Config, key: str) -> str:
    """The folder of a study."""
    return storage.join(storage.resolve(config.storage.root), "studies", key)


def study_key(config: Config) -> str:
    """The name of the study that a configuration describes."""
    return f"{config.study.name}-{identity(config, SECTIONS)}"


def make(config: Config, locate: Locate) -> Plan:
    """The plan of the study that a configuration describes.

    Args:
        config: the configuration that the trials vary.
        locate: finds token stores, whether or not they have been written.

    Raises:
        ConfigError: where settings do not fit together.
        ValueError, FileNotFoundError: where `locate` does not find a corpus.
    """
    found: dict[str, tuple[Config, dict[str, str]]] = {}

    def stores(of: Config, names: Iterable[str]) -> tuple[str, ...]:
        made_by = json.dumps([of.tokens.protocol, of.protocol_in_force.switched("tokens")])
        _, known = found.setdefault(made_by, (of, {}))
        missing = [name for name in names if name not in known]
        known |= locate(of, missing) if missing else {}
        return tuple(known[name] for name in names)

    pretrainings: dict[str, Pretraining] = {}
    trials: dict[str, PlannedTrial] = {}
    for trial in grid(config):
        mine, encoder = trial.config(config), trial.pretraining(config)
        run = _pretraining(encoder, stores(encoder, encoder.corpora.names)) if encoder else None
        if run:
            pretrainings.setdefault(run.key, run)
        (store,) = stores(mine, [task_corpus(mine, trial.task)])
        planned = PlannedTrial(trial=trial, config=mine, store=store, encoder=run.key if run else "")
        trials[planned.key] = planned
    return Plan(
        config=config,
        key=study_key(config),
        trials=trials,
        pretrainings=pretrainings,
        tokens=tuple((of, tuple(known)) for of, known in found.values()),
    )


def _pretraining(config: Config, stores: tuple[str, ...]) -> Pretraining:
    return Pretraining(key=run_key(config, stores), config=config, stores=stores)
