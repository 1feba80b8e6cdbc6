"""A study: many fine-tuning trials run side by side by Ray Tune, resumable, recorded in MLflow."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner

from midibert_ray import storage
from midibert_ray.config import Config
from midibert_ray.data.store import TokenStore
from midibert_ray.overrides import flatten, identity, replace
from midibert_ray.studies import figures, table
from midibert_ray.studies.outcome import Outcome
from midibert_ray.studies.recorder import Recorder
from midibert_ray.studies.run_trial import run_trial, task_corpus
from midibert_ray.training.finetune import TaskData
from midibert_ray.training.inputs import pin

logger = logging.getLogger(__name__)

SECTIONS = ("seed", "tokens", "model", "optimizer", "finetune", "study", "compute")

TUNE_SETTINGS = {
    "TUNE_GLOBAL_CHECKPOINT_S": "2",  # a driver that is killed forgets what came after the last snapshot
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer console prints tables whatever `verbose` says
}
"""What Tune reads from the environment only."""


@dataclass(frozen=True)
class StudyResult:
    """A finished study."""

    key: str
    """Name and hash: the study's folder below `{root}/studies` and its parent run in MLflow."""

    outcomes: list[Outcome]
    """Of the trials that finished."""

    failed: dict[str, str]
    """Trial -> reason, of those that did not."""


def study_key(config: Config, stores: Mapping[str, str], encoder: str) -> str:
    """The name of the study that a configuration, its token stores and its encoder describe."""
    inputs = {"stores": sorted(map(storage.basename, stores.values())), "encoder": encoder}
    return f"{storage.check_name('study.name', config.study.name)}-{identity(config, SECTIONS, **inputs)}"


def study(config: Config, *, stores: Mapping[str, str], encoder: str, checkpoint: str) -> StudyResult:
    """Run all trials of a study, or those that an earlier start of the same study left open.

    Args:
        config: the configuration that the trials vary.
        stores: corpus -> address of its token store, for every task.
        encoder: identity of the pre-trained encoder (the key of its run).
        checkpoint: address of its checkpoint.

    Raises:
        ValueError: where a task's corpus lacks a split or the labels of the task, or the study was started on other
            tokens.
    """
    for task in config.study.tasks:  # what cannot work is said now, not by every trial
        store = TokenStore.open(stores[task_corpus(config, task)], cache_dir=config.storage.cache)
        TaskData(replace(config, {"finetune.task": task}), store)
    key = study_key(config, stores, encoder)
    pin(storage.join(storage.resolve(config.storage.root), "studies", key), stores.values())
    recorder = Recorder(config, key, encoder)
    logger.info("study %s: %d trials", key, len(recorder.trials))
    result = _collect(key, _tuner(config, key, recorder, dict(stores), checkpoint).fit(), recorder)
    log = recorder.log
    log.parent.data(table.to_csv(result.outcomes).encode(), "results.csv")
    log.parent.text(table.to_markdown(result.outcomes, result.failed), "results.md")
    log.parent.json([json.loads(item.to_json()) for item in result.outcomes], "results.json")
    if result.outcomes:
        log.parent.figure(figures.bars(table.cells(result.outcomes)), "results.png")
    log.parent.finish("FAILED" if result.failed else "FINISHED")
    return result


def _tuner(config: Config, key: str, recorder: Recorder, stores: dict[str, str], checkpoint: str) -> Tuner:
    compute = config.compute
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, base=flatten(config), study=key, stores=stores, encoder=checkpoint),
        {"cpu": compute.cpus_per_trial, "gpu": compute.gpus_per_trial},
    )
    space = {
        "trial": tune.grid_search(
            [{"name": trial.name, "changes": dict(trial.changes)} for trial in recorder.trials.values()]
        )
    }
    folder = storage.join(storage.resolve(config.storage.root), "studies")
    logging.getLogger("ray.tune.utils.util").setLevel(logging.ERROR)  # it warns when a tracking server takes its time
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    if Tuner.can_restore(storage.join(folder, key)):
        logger.info("study %s goes on where it stopped", key)
        return Tuner.restore(
            storage.join(folder, key), trainable, param_space=space, resume_unfinished=True, resume_errored=True
        )
    return Tuner(
        trainable,
        param_space=space,
        tune_config=TuneConfig(
            max_concurrent_trials=compute.max_concurrent_trials or None,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
            reuse_actors=True,
        ),
        run_config=RunConfig(
            name=key,
            storage_path=folder,
            failure_config=FailureConfig(max_failures=compute.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=[recorder],
            verbose=0,
        ),
    )


def _trial_name(trial: Any) -> str:
    return str(trial.config["trial"]["name"])


def _collect(key: str, results: Any, recorder: Recorder) -> StudyResult:
    """All outcomes; those that MLflow missed are stored there now."""
    errors = {result.config["trial"]["name"]: result.error for result in results}
    outcomes, failed = [], {}
    for name, trial in recorder.trials.items():
        found = recorder.store(trial)
        if found:
            outcomes.append(found)
        else:
            failed[name] = str(errors.get(name) or "it left no outcome").strip().splitlines()[-1]
    return StudyResult(key, outcomes, failed)
