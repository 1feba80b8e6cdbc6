"""A study: many fine-tuning trials run side by side by Ray Tune, resumable, recorded in MLflow."""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner

from midibert_ray import storage
from midibert_ray.config import Config
from midibert_ray.data.store import TokenStore
from midibert_ray.music.tasks import TASKS
from midibert_ray.overrides import flatten, from_flat, identity, replace
from midibert_ray.studies import figures, outcome, table
from midibert_ray.studies.outcome import Outcome
from midibert_ray.studies.recorder import Recorder
from midibert_ray.training.finetune import Finetuning, TaskData, finetune, new_model

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


def task_corpus(config: Config, task: str) -> str:
    """The labelled corpus of a task: `finetune.corpus`, or the task's own."""
    return config.finetune.corpus or TASKS[task].corpus


def study_key(config: Config, stores: Mapping[str, str], encoder: str) -> str:
    """The name of the study that a configuration, its token stores and its encoder describe."""
    inputs = {"stores": sorted(_last(store) for store in stores.values()), "encoder": encoder}
    return f"{storage.check_name('study.name', config.study.name)}-{identity(config, SECTIONS, **inputs)}"


def study(config: Config, *, stores: Mapping[str, str], encoder: str, checkpoint: str) -> StudyResult:
    """Run all trials of a study, or those that an earlier start of the same study left open.

    Args:
        config: the configuration that the trials vary.
        stores: corpus -> address of its token store, for every task.
        encoder: identity of the pre-trained encoder (the key of its run).
        checkpoint: address of its checkpoint.

    Raises:
        ValueError: where a task's corpus lacks a split or the labels of the task.
    """
    for task in config.study.tasks:  # what cannot work is said now, not by every trial
        store = TokenStore.open(stores[task_corpus(config, task)], cache_dir=config.storage.cache)
        TaskData(replace(config, {"finetune.task": task}), store)
    key = study_key(config, stores, encoder)
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
        tune.with_parameters(run_trial, base=flatten(config), stores=stores, encoder=checkpoint),
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
    """All outcomes, from the trials' last checkpoints; those that MLflow missed are stored there now."""
    outcomes, failed = [], {}
    for result in results:
        trial = recorder.trials[result.config["trial"]["name"]]
        if result.error or result.checkpoint is None:
            failed[trial.name] = str(result.error or "no checkpoint").strip().splitlines()[-1]
            continue
        with result.checkpoint.as_directory() as folder:
            outcomes.append(outcome.read_all(folder)[0])
            if not recorder.log.finished(trial):
                recorder.store(trial, folder)
    return StudyResult(key, outcomes, failed)


def run_trial(space: dict[str, Any], *, base: dict[str, Any], stores: dict[str, str], encoder: str) -> None:
    """One trial, in a process of its own: fine-tune on the task, score the test split, report."""
    config = replace(from_flat(base), space["trial"]["changes"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(config.compute.cpus_per_trial)))
    store = TokenStore.open(stores[task_corpus(config, config.finetune.task)], cache_dir=config.storage.cache)
    data = TaskData(config, store)
    with Checkpoint(encoder).as_directory() as folder:
        job = Finetuning(config, data, new_model(config, data, folder), device)
    earlier = tune.get_checkpoint()
    if earlier:
        with earlier.as_directory() as folder:
            if outcome.read(Path(folder)):
                return  # killed after its last report: there is nothing left to do
            job.load(Path(folder))
    predictions = finetune(job, _report)
    scores = predictions.figures("test") | {"valid/best": job.progress.best}
    variant = space["trial"]["name"].removeprefix(f"{data.task.name}-").rpartition("-seed")[0]
    result = Outcome(
        trial=space["trial"]["name"],
        task=data.task.name,
        variant=variant,
        seed=config.seed,
        epoch=job.progress.epoch,
        figures=scores,
        classes=list(data.classes),
        confusion=predictions.matrix().tolist(),
    )
    content = outcome.predictions_table(data, store, predictions)

    def write(folder: Path) -> None:
        outcome.write(folder, result, content)
        job.model.save_pretrained(folder)

    _report(scores | {"epoch": job.progress.epoch}, write)


def _report(figures: dict[str, Any], write: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch))
        tune.report(figures, checkpoint=Checkpoint.from_directory(scratch))


def _last(address: str) -> str:
    return address.rstrip("/").rpartition("/")[2]
