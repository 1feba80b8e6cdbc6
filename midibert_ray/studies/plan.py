"""A study before it runs: its trials, the pre-trainings that they share, and where everything lies."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

from midibert_ray import storage
from midibert_ray.data.store import TokenStore, open_store
from midibert_ray.music.tasks import TASKS, Task, one_task
from midibert_ray.settings.config import Config, StorageConfig, require
from midibert_ray.settings.overrides import identity, replace
from midibert_ray.settings.validators import corpora_of
from midibert_ray.studies.trials import Trial, grid
from midibert_ray.training import start
from midibert_ray.training.runs import run_key
from midibert_ray.training.task_data import TaskData

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


FindLabels = Callable[[Config, str, int], Labelled | None]
"""Takes a trial's configuration, a corpus and its study's seed; gives the task if it is a column of that corpus's own
table."""


def task_corpora(config: Config, task: str) -> tuple[str, ...]:
    """The labelled corpora that a task is learned from: `finetune.corpus`, or the task's own."""
    return corpora_of(config.finetune.corpus) or (TASKS[task].corpus,)


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
    stores: tuple[str, ...]
    """Addresses of the token stores of its task."""
    tests: tuple[str, ...] = ()
    """Addresses of those whose test pieces it is tested on besides."""
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
        if self.tests:
            own["tests"] = [storage.basename(uri) for uri in self.tests]
        store = ",".join(storage.basename(uri) for uri in self.stores)
        made_from = identity(self.config, TRIAL_SECTIONS, store=store, encoder=self.encoder, **own)
        return f"{self.trial.name}-{made_from}"

    def data(self, opened: Callable[[str, StorageConfig], TokenStore] = open_store) -> TaskData:
        """Its segments and labels; `opened` opens a token store."""
        stores, tests = ([opened(uri, self.config.storage) for uri in uris] for uris in (self.stores, self.tests))
        return TaskData(self.config, stores, self.task, tests)

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
        labelled = (uri for trial in self.trials.values() for uri in (*trial.stores, *trial.tests))
        return tuple(dict.fromkeys((*pretrained, *labelled)))

    def uri(self, trial: str) -> str:
        """The folder of a trial, by key."""
        return storage.join(study_uri(self.config, self.key), trial)


def study_uri(config: Config, key: str) -> str:
    """The folder of a study."""
    return storage.join(storage.root.studies(config.storage.root), key)


def make(config: Config, locate: Locate, find_labels: FindLabels = lambda config, name, seed: None) -> StudyPlan:
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
        names = task_corpora(mine, trial.task)
        task, stores, own = _labelled(mine, (*names, *config.study.tests), config.seed, locate, find_labels)
        if encoder:
            if encoder.pretrain.start:
                start.require_fit(start.PRETRAIN, encoder.pretrain.start, encoder)
            inputs = dict(locate(encoder, encoder.corpora.names))
            if _leaves_out(encoder):
                inputs |= {name: uri for name, uri in own.items() if name in inputs}
            key = run_key(encoder, tokens := tuple(inputs.values()))
            pretrainings.setdefault(key, PretrainingSpec(key=key, config=encoder, stores=tokens))
        begin = "" if mine.finetune.init == "scratch" else start.inputs(mine, start.FINETUNE).get(start.FINETUNE, "")
        if begin:
            _require_start(trial, mine)
        learned, tests = (tuple(stores[name] for name in some) for some in (names, config.study.tests))
        spec = TrialSpec(trial=trial, config=mine, task=task, stores=learned, tests=tests, encoder=key, start=begin)
        trials[spec.key] = spec
    made_from: dict[str, Any] = start.inputs(config, start.PRETRAIN, start.FINETUNE)
    if config.study.folds:
        made_from["folds"] = config.study.folds
    key = f"{config.study.name}-{identity(config, SECTIONS, **made_from)}"
    return StudyPlan(config=config, key=key, trials=trials, pretrainings=pretrainings)


def _labelled(
    config: Config, names: Iterable[str], seed: int, locate: Locate, find_labels: FindLabels
) -> tuple[Task, dict[str, str], dict[str, str]]:
    """A trial's task, the token stores of some corpora by name, and of these those that have labels of their own."""
    found = {name: find_labels(config, name, seed) for name in names}
    own = {name: labels.store for name, labels in found.items() if labels}
    rest = [name for name in found if name not in own]
    given = f"0, as {', '.join(rest)} has no table of labels, or class folders, to divide"
    require(not (rest and config.study.folds), "study.folds", config.study.folds, given)
    tasks = [labels.task if labels else TASKS[config.finetune.task] for labels in found.values()]
    return one_task(tasks), {**own, **(locate(config, rest) if rest else {})}, own


def _require_start(trial: Trial, config: Config) -> None:
    """Refuse weights that do not fit a trial, and a trial that is all about the pre-training that they replace."""
    given = f"a row that is not about pre-training, as finetune.start={config.finetune.start} takes its place"
    require(not trial.changes.keys() & {"pretrain.splits", "corpora.names"}, "study.variants", trial.variant, given)
    start.require_fit(start.FINETUNE, config.finetune.start, config)


def _leaves_out(config: Config) -> bool:
    """True where a pre-training reads the splits of a corpus."""
    return config.pretrain.splits == "train" or not config.protocol_in_force.pretrains_on_test
