"""A study before it runs: its trials, the pre-trainings that they share, and where everything lies."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

from midibert_ray import storage
from midibert_ray.music.tasks import TASKS, Task
from midibert_ray.settings.config import Config, require
from midibert_ray.settings.overrides import identity, replace
from midibert_ray.studies.trials import Trial, grid
from midibert_ray.training import start
from midibert_ray.training.runs import run_key

SECTIONS = (
    "seed",
    "corpora",
    "tokens",
    "mask",
    "augment",
    "model",
    "optimizer",
    "pretrain",
    "finetune",
    "rnn",
    "compute",
)
"""Fields that tell one study from another of the same name; the cells that are computed do not."""
SECTIONS = (
    *("seed", "corpora", "tokens", "mask", "augment", "model", "optimizer", "pretrain", "finetune", "rnn", "compute"),
)
"""Fields that tell one study from another of the same name; the cells that are computed do not."""
TRIAL_SECTIONS = ("seed", "tokens", "augment", "model", "optimizer", "finetune", "rnn", "compute")

Locate = Callable[[Config, Iterable[str]], Mapping[str, str]]
"""Takes a configuration and names of corpora, and gives the address of each one's token store, in their order."""


class Labelled(NamedTuple):
    """A task of somebody's own labels."""

    task: Task
    store: str
    """Address of the token store with these labels, divided for the study or its fold."""


FindLabels = Callable[[Config, int], Labelled | None]
"""Takes a trial's configuration and its study's seed; gives the task if it is a column of the corpus's own table."""


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
    task: Task
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
        own: dict[str, Any] = {} if TASKS.get(self.task.name) == self.task else {"task": asdict(self.task)}
        if self.start:
            own["start"] = self.start
        store = storage.basename(self.store)
        made_from = identity(self.config, TRIAL_SECTIONS, store=store, encoder=self.encoder, **own)
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


def make(config: Config, locate: Locate, find_labels: FindLabels = lambda config, seed: None) -> StudyPlan:
    """The plan of the study that a configuration describes, whether or not token stores have been written.

    Without `protocol.pretrains_on_test` (or with `pretrain.splits=train`) a pre-training on a corpus with labels of its
    own leaves out the pieces that its trials are tested on: each fold then needs one.

    Raises:
        ConfigError: where settings do not fit together.
        ValueError, FileNotFoundError: where `locate` does not find a corpus.
    """
    if config.study.corpus:
        config = replace(config, {"finetune.corpus": config.study.corpus})
    pretrainings: dict[str, PretrainingSpec] = {}
    trials: dict[str, TrialSpec] = {}
    for trial in grid(config):
        mine, encoder, key = trial.config(config), trial.pretraining(config), ""
        own = find_labels(mine, config.seed)
        if encoder:
            if encoder.pretrain.start:
                start.require_fit(start.PRETRAIN, encoder.pretrain.start, encoder)
            inputs = dict(locate(encoder, encoder.corpora.names))
            if own and mine.finetune.corpus in inputs and _leaves_out(encoder):
                inputs[mine.finetune.corpus] = own.store
            key = run_key(encoder, stores := tuple(inputs.values()))
            pretrainings.setdefault(key, PretrainingSpec(key=key, config=encoder, stores=stores))
        if own is None:
            (store,) = locate(mine, [task_corpus(mine, trial.task)]).values()
            own = Labelled(TASKS[trial.task], store)
        begin = "" if mine.finetune.init == "scratch" else start.inputs(mine, start.FINETUNE).get(start.FINETUNE, "")
        if begin:
            _require_start(trial, mine)
        spec = TrialSpec(trial=trial, config=mine, task=own.task, store=own.store, encoder=key, start=begin)
        trials[spec.key] = spec
    made_from: dict[str, Any] = start.inputs(config, start.PRETRAIN, start.FINETUNE)
    if config.study.folds:
        made_from["folds"] = config.study.folds
    key = f"{config.study.name}-{identity(config, SECTIONS, **made_from)}"
    return StudyPlan(config=config, key=key, trials=trials, pretrainings=pretrainings)


def _require_start(trial: Trial, config: Config) -> None:
    """Refuse weights that do not fit a trial, and a trial that is all about the pre-training that they replace."""
    given = f"a row that is not about pre-training, as finetune.start={config.finetune.start} takes its place"
    require(not trial.changes.keys() & {"pretrain.splits", "corpora.names"}, "study.variants", trial.variant, given)
    start.require_fit(start.FINETUNE, config.finetune.start, config)


def _leaves_out(config: Config) -> bool:
    """True where a pre-training reads the splits of a corpus."""
    return config.pretrain.splits == "train" or not config.protocol_in_force.pretrains_on_test
