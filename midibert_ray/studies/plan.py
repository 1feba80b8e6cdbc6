"""A study before it runs: its trials, the pre-trainings that they share, and where everything lies."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from midibert_ray import storage
from midibert_ray.music.tasks import TASKS
from midibert_ray.settings.config import Config, require
from midibert_ray.settings.overrides import identity
from midibert_ray.studies.trials import Trial, grid
from midibert_ray.training import start
from midibert_ray.training.runs import run_key

SECTIONS = ("seed", "corpora", "tokens", "mask", "model", "optimizer", "pretrain", "finetune", "rnn", "compute")
"""What makes one study differ from another of the same name; which of its cells are computed does not."""
TRIAL_SECTIONS = ("seed", "tokens", "model", "optimizer", "finetune", "rnn", "compute")

Locate = Callable[[Config, Iterable[str]], Mapping[str, str]]
"""Takes a configuration and names of corpora, and gives the address of each one's token store, in their order."""


def task_corpus(config: Config, task: str) -> str:
    """The labelled corpus of a task: `finetune.corpus`, or the task's own."""
    return config.finetune.corpus or TASKS[task].corpus


@dataclass(frozen=True, kw_only=True)
class PretrainingSpec:
    """A pre-training that some trials start from."""

    key: str
    """Name and hash of its run."""
    config: Config
    stores: tuple[str, ...]
    """Addresses of its token stores, in the order of `corpora.names`."""
    encoder: ClassVar[str] = ""
    """It starts from random weights."""

    @property
    def resources(self) -> dict[str, float]:
        """CPUs and GPUs that it holds while it runs, all of them by Train's workers."""
        compute = self.config.compute
        return {"CPU": compute.workers * compute.cpus_per_worker, "GPU": compute.workers * compute.gpu}

    @property
    def slots(self) -> int:
        """How much it counts towards `compute.max_concurrent_trials`."""
        return self.config.compute.workers


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """A trial, and what it is made from."""

    trial: Trial
    config: Config
    store: str
    """Address of the token store of its task."""
    encoder: str = ""
    """Key of its pre-training; empty where it has none."""
    start: str = ""
    """Digest of the weights of `finetune.start`, if it starts from them."""
    slots: ClassVar[int] = 1

    @functools.cached_property
    def key(self) -> str:
        """The trial's name and a hash of all that it is made from: its folder, and its key in MLflow."""
        begin = {"start": self.start} if self.start else {}
        made_from = identity(
            self.config, TRIAL_SECTIONS, store=storage.basename(self.store), encoder=self.encoder, **begin
        )
        return f"{self.trial.name}-{made_from}"

    @property
    def resources(self) -> dict[str, float]:
        """CPUs and GPUs that it holds while it runs."""
        return {"CPU": self.config.compute.cpus_per_trial, "GPU": self.config.compute.gpus_per_trial}


Spec = PretrainingSpec | TrialSpec
"""The spec of one of Tune's trials."""


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """The pre-trainings and trials of a study, and the settings that name it."""

    config: Config
    key: str
    """Name and hash: the study's folder below `{root}/studies`, and its parent run in MLflow."""
    trials: Mapping[str, TrialSpec]
    """By key, in the order of the tables."""
    pretrainings: Mapping[str, PretrainingSpec]
    """By key, each once."""

    @property
    def stores(self) -> tuple[str, ...]:
        """Addresses of all token stores that it reads, each once."""
        pretrained = (store for run in self.pretrainings.values() for store in run.stores)
        return tuple(dict.fromkeys((*pretrained, *(trial.store for trial in self.trials.values()))))

    def uri(self, trial: str) -> str:
        """The folder of a trial, by key."""
        return storage.join(study_uri(self.config, self.key), trial)


def study_uri(config: Config, key: str) -> str:
    """The folder of a study."""
    return storage.join(storage.root.studies(config.storage.root), key)


def make(config: Config, locate: Locate) -> StudyPlan:
    """The plan of the study that a configuration describes, whether or not token stores have been written.

    Raises:
        ConfigError: where settings do not fit together.
        ValueError, FileNotFoundError: where `locate` does not find a corpus.
    """
    pretrainings: dict[str, PretrainingSpec] = {}
    trials: dict[str, TrialSpec] = {}
    for trial in grid(config):
        mine, encoder, key = trial.config(config), trial.pretraining(config), ""
        if encoder:
            if encoder.pretrain.start:
                start.require_fit(start.PRETRAIN, encoder.pretrain.start, encoder)
            inputs = tuple(locate(encoder, encoder.corpora.names).values())
            key = run_key(encoder, inputs)
            pretrainings.setdefault(key, PretrainingSpec(key=key, config=encoder, stores=inputs))
        (store,) = locate(mine, [task_corpus(mine, trial.task)]).values()
        begin = "" if mine.finetune.init == "scratch" else start.inputs(mine, start.FINETUNE).get(start.FINETUNE, "")
        if begin:
            _require_start(trial, mine)
        spec = TrialSpec(trial=trial, config=mine, store=store, encoder=key, start=begin)
        trials[spec.key] = spec
    begin = start.inputs(config, start.PRETRAIN, start.FINETUNE)
    key = f"{config.study.name}-{identity(config, SECTIONS, **begin)}"
    return StudyPlan(config=config, key=key, trials=trials, pretrainings=pretrainings)


def _require_start(trial: Trial, config: Config) -> None:
    """Refuse weights that do not fit a trial, and a trial that is all about the pre-training that they replace."""
    given = f"a row that is not about pre-training, as finetune.start={config.finetune.start} takes its place"
    require(not trial.changes.keys() & {"pretrain.splits", "corpora.names"}, "study.variants", trial.variant, given)
    start.require_fit(start.FINETUNE, config.finetune.start, config)
