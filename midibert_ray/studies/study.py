"""A study: pre-trainings and fine-tuning trials run side by side by Ray Tune, resumable, recorded in MLflow.

What is done is read from the folders of runs and trials, never from Tune's books: the same command again hands Tune
only what is still open, with the resources that are asked for now.
"""

import logging
import os
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, PlacementGroupFactory, RunConfig, TuneConfig, Tuner
from ray.tune.execution import class_cache

from midibert_ray import storage
from midibert_ray.data.store import open_store
from midibert_ray.report.publish import publish
from midibert_ray.settings.overrides import flatten
from midibert_ray.studies import result as outcome
from midibert_ray.studies import sweep
from midibert_ray.studies.plan import Plan, PlannedTrial, Pretraining, study_address
from midibert_ray.studies.recorder import Recorder
from midibert_ray.studies.result import Outcome
from midibert_ray.studies.scheduler import FAILURE, FINETUNE, PRETRAIN, Agenda, Work, given_up
from midibert_ray.studies.trial import run_work
from midibert_ray.training.console import HEAD, open_console
from midibert_ray.training.recipes import recipe
from midibert_ray.training.runs import finished, pin
from midibert_ray.training.task_data import TaskData

logger = logging.getLogger(__name__)

TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # curves are in MLflow
    "TUNE_MAX_PENDING_TRIALS_PG": "64",  # the agenda decides how many may wait; each is a demand for an autoscaler
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a sweep's scheduler compares draws, not their pre-training
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

    stopped: list[str]
    """Draws that a sweep has stopped early."""

    published: bool = False
    """Whether MLflow has its tables; where not, `publish.unpublished` names the study until it has."""


def study(plan: Plan) -> StudyResult:
    """Run all of a study, or what an earlier start of it left open; needs Ray, and all token stores.

    Raises:
        ValueError: where a task's corpus lacks a split or the labels of the task, or the study was started on other
            tokens.
    """
    pin(study_address(plan.config, plan.key), plan.stores)
    encoders = _encoders(plan)
    done = {key for key in plan.trials if outcome.settled(plan.address(key))}
    todo = open_work(plan, encoders, done)
    logger.info(
        "study %s %s: %d of %d trials are done, %d of %d pre-trainings",
        *(plan.key, "goes on where it stopped" if done else "begins", len(done), len(plan.trials)),
        *(len(encoders), len(plan.pretrainings)),
    )
    recorder = Recorder(plan)
    reasons = _finish(plan, recorder, todo, encoders) if todo else {}
    result = _collect(plan, recorder, reasons)
    return replace(result, published=publish(recorder.log, plan))


def _encoders(plan: Plan) -> dict[str, str]:
    """Pre-trainings that have finished, and the addresses of their checkpoints."""
    return {key: run.checkpoint for key, entry in plan.pretrainings.items() if (run := finished(entry.config, key))}


def _finish(plan: Plan, recorder: Recorder, todo: list[Work], encoders: Mapping[str, str]) -> dict[str, str]:
    """Do the work, and again what Tune gave up too soon; the reasons of what failed, by name."""
    reasons: dict[str, str] = {}
    for _ in range(1 + plan.config.compute.max_failures):
        reasons |= _fit(plan, recorder, todo, encoders)
        again = recorder.take_given_up()
        todo = [item for item in todo if again & {item.name, item.needs}]
        if not todo:
            break
        logger.info("done again, as their processes were lost: %s", ", ".join(sorted(again)))
        reasons = {name: reason for name, reason in reasons.items() if name not in {item.name for item in todo}}
        encoders = _encoders(plan)
    return reasons


def _collect(plan: Plan, recorder: Recorder, reasons: Mapping[str, str]) -> StudyResult:
    """All outcomes; those that MLflow missed are stored there now."""
    recorder.leave_stored()
    result = StudyResult(plan.key, [], {}, [])
    for key, entry in plan.trials.items():
        found = recorder.store(key)
        if found:
            result.outcomes.append(found)
        elif outcome.stopped(plan.address(key)):
            result.stopped.append(entry.trial.name)
        else:
            result.failed[entry.trial.name] = reasons.get(key, "it left no outcome")
            recorder.fail(key, result.failed[entry.trial.name])
    return result


def open_work(plan: Plan, encoders: Mapping[str, str], done: Set[str]) -> list[Work]:
    """What is left to do: pre-trainings that open trials wait for, then the trials, longest first.

    A short trial at the end fills a gap, a long one would make one.

    Args:
        plan: the study.
        encoders: pre-trainings that have finished.
        done: keys of trials that have.

    Raises:
        ValueError: where a task's corpus lacks a split or the labels of the task; what cannot work is said now, not by
            every trial.
    """
    trials = {key: entry for key, entry in plan.trials.items() if key not in done}
    needed = {entry.encoder for entry in trials.values()} - encoders.keys() - {""}
    first = [_pretraining(entry) for key, entry in plan.pretrainings.items() if key in needed]
    sizes = _sizes(trials)
    return first + [_finetuning(key, trials[key]) for key in sorted(trials, key=lambda key: -sizes[key])]


def _sizes(trials: Mapping[str, PlannedTrial]) -> dict[str, int]:
    """Segments that each trial learns from at most, over all its epochs."""
    segments: dict[tuple[str, ...], int] = {}
    sizes = {}
    for key, entry in trials.items():
        config = entry.config
        kind = (entry.trial.task, entry.store, config.model.representation)
        if kind not in segments:
            store = open_store(entry.store, config.storage)
            segments[kind] = len(TaskData(config, store).learned)
        sizes[key] = segments[kind] * recipe(config).epochs
    return sizes


def _pretraining(entry: Pretraining) -> Work:
    compute = entry.config.compute
    resources = {"CPU": compute.workers * compute.cpus_per_worker, "GPU": compute.workers * compute.gpu}
    return Work(
        name=entry.key,
        kind=PRETRAIN,
        config=flatten(entry.config),
        stores=entry.stores,
        needs_resources=resources,
        slots=compute.workers,
    )


def _finetuning(key: str, entry: PlannedTrial) -> Work:
    compute = entry.config.compute
    return Work(
        name=key,
        kind=FINETUNE,
        config=flatten(entry.config),
        stores=(entry.store,),
        needs=entry.encoder,
        needs_resources={"CPU": compute.cpus_per_trial, "GPU": compute.gpus_per_trial},
    )


def _resources(space: dict[str, Any]) -> PlacementGroupFactory:
    """What Tune reserves for a trial; a pre-training is driven from the head, its workers are Train's own affair."""
    work = space["work"]
    if work["kind"] == PRETRAIN:
        return PlacementGroupFactory([HEAD])
    return PlacementGroupFactory([{name: amount for name, amount in work["needs_resources"].items() if amount}])


def _fit(plan: Plan, recorder: Recorder, todo: list[Work], encoders: Mapping[str, str]) -> dict[str, str]:
    """Let Tune do the work; the reasons of what failed, by name."""
    config = plan.config
    agenda = Agenda(todo, encoders=encoders, cluster=ray.cluster_resources, slots=config.compute.max_concurrent_trials)
    for name in ("ray.tune.utils.util", "ray.tune.analysis.experiment_analysis"):
        # They warn when a tracking server takes its time, and that Tune's own curves are not there.
        logging.getLogger(name).setLevel(logging.ERROR)
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    # Tune would copy the driver's keys into the trials' runtime environment, which Ray logs and shows on its dashboard.
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
        {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
    )
    system, studies = storage.filesystem(storage.root.studies(config.storage.root))
    with open_console() as console:
        trainable = tune.with_parameters(run_work, study=plan.key, folder=study_address(config, plan.key), sink=console)
        tuner = Tuner(
            tune.with_resources(trainable, _resources),
            tune_config=TuneConfig(
                search_alg=agenda,
                num_samples=len(todo),
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
                scheduler=sweep.asha(config) if config.study.draws else None,
                reuse_actors=not config.study.draws,  # a trial that is stopped leaves its thread behind
            ),
            run_config=RunConfig(
                name=plan.key,
                storage_path=studies,
                storage_filesystem=system,
                failure_config=FailureConfig(max_failures=config.compute.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                callbacks=[recorder],
                verbose=0,
            ),
        )
        results: Any = tuner.fit()
        reasons = {storage.basename(result.path): reason for result in results if (reason := _failure(result))}
    for key, entry in plan.trials.items():
        if entry.encoder in reasons:
            reasons.setdefault(key, given_up(entry.encoder, reasons[entry.encoder]))
    return reasons


def _trial_name(trial: Any) -> str:
    return str(trial.config["work"]["name"])


def _failure(result: Any) -> str:
    """Why a trial did not finish; empty where it did."""
    if result.error:
        return (str(result.error).strip() or repr(result.error)).splitlines()[-1]
    return str((result.metrics or {}).get(FAILURE, ""))
