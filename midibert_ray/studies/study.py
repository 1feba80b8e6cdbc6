"""A study: pre-trainings and fine-tuning trials run side by side by Ray Tune, resumable, recorded in MLflow.

Finished work is read from the folders of runs and trials, never from Tune's books: the same command again hands Tune
only what is still open, with the resources that are asked for now.
"""

import logging
import os
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune import FailureConfig, PlacementGroupFactory, RunConfig, TuneConfig, Tuner
from ray.tune.execution import class_cache

from midibert_ray import storage
from midibert_ray.settings.config import Config
from midibert_ray.studies import result as results
from midibert_ray.studies import sweep
from midibert_ray.studies.plan import PretrainingSpec, Spec, StudyPlan, TrialSpec, study_uri
from midibert_ray.studies.recorder import Picture, Recorder
from midibert_ray.studies.result import TrialResult
from midibert_ray.studies.scheduler import FAILURE, StudyScheduler, given_up
from midibert_ray.studies.trial import run_spec
from midibert_ray.studies.trials import Trial
from midibert_ray.training.console import HEAD, open_console
from midibert_ray.training.recipes import recipe
from midibert_ray.training.runs import finished, pin

logger = logging.getLogger(__name__)

TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # curves are in MLflow
    "TUNE_MAX_PENDING_TRIALS_PG": "64",  # the scheduler decides how many may wait; each is a demand for an autoscaler
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # its books are never read, and writing them takes longer with every trial
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer console prints tables whatever `verbose` says
}
"""Settings that Tune reads from the environment only."""


@dataclass(frozen=True)
class StudyResult:
    """A finished study."""

    key: str
    """Name and hash: the study's folder below `{root}/studies` and its parent run in MLflow."""
    outcomes: list[TrialResult]
    """Of the trials that finished."""
    failed: dict[Trial, str]
    """Trial -> reason, of those that did not."""
    stopped: list[Trial]
    """Draws that a sweep has stopped early."""


def study(plan: StudyPlan, picture: Picture | None = None) -> StudyResult:
    """Run all of a study, or what an earlier start of it left open; needs Ray, and all token stores.

    Raises:
        ValueError: where a task's corpus lacks a split or the labels of the task, or the study was started on other
            tokens.
    """
    pin(study_uri(plan.config, plan.key), plan.stores)
    encoders = _encoders(plan)
    done = {key for key in plan.trials if results.settled(plan.uri(key))}
    todo = open_specs(plan, encoders, done)
    logger.info(
        "study %s %s: %d of %d trials are done, %d of %d pre-trainings",
        *(plan.key, "goes on where it stopped" if done else "begins", len(done), len(plan.trials)),
        *(len(encoders), len(plan.pretrainings)),
    )
    recorder = Recorder(plan, picture, done)
    reasons = _finish(plan, recorder, todo, encoders) if todo else {}
    return _collect(plan, recorder, reasons)


def _encoders(plan: StudyPlan) -> dict[str, str]:
    """The finished pre-trainings -> addresses of their checkpoints."""
    return {key: run.checkpoint for key, entry in plan.pretrainings.items() if (run := finished(entry.config, key))}


def _finish(plan: StudyPlan, recorder: Recorder, todo: list[Spec], encoders: Mapping[str, str]) -> dict[str, str]:
    """Run all specs, and again those that Tune gave up too soon; the reasons of what failed, by key."""
    reasons: dict[str, str] = {}
    for _ in range(1 + plan.config.compute.max_failures):
        reasons |= _fit(plan, recorder, todo, encoders)
        again = recorder.take_given_up()
        todo = [item for item in todo if again & {item.key, item.encoder}]
        if not todo:
            break
        logger.info("done again, as their processes were lost: %s", ", ".join(sorted(again)))
        for item in todo:
            reasons.pop(item.key, None)
        encoders = _encoders(plan)
    return reasons


def _collect(plan: StudyPlan, recorder: Recorder, reasons: Mapping[str, str]) -> StudyResult:
    """All results; MLflow is given now what it has not got."""
    result = StudyResult(plan.key, [], {}, [])
    for key, entry in plan.trials.items():
        found = recorder.store(key)
        if found:
            result.outcomes.append(found)
        elif results.stopped(plan.uri(key)):
            result.stopped.append(entry.trial)
        else:
            result.failed[entry.trial] = reasons.get(key, "it left no outcome")
            recorder.fail(key, result.failed[entry.trial])
    return result


def open_specs(plan: StudyPlan, encoders: Mapping[str, str], done: Set[str]) -> list[Spec]:
    """The work that is left: pre-trainings that open trials wait for, then the trials, longest first.

    A short trial at the end fills a gap, a long one would make one.

    Raises:
        ValueError: where a task's corpus lacks a split or the labels of the task; what cannot work is said now, not by
            every trial.
    """
    trials = [entry for key, entry in plan.trials.items() if key not in done]
    needed = {entry.encoder for entry in trials} - encoders.keys()
    first = [spec for key, spec in plan.pretrainings.items() if key in needed]
    segments: dict[tuple[str, ...], int] = {}

    def size(entry: TrialSpec) -> int:
        """Segments that it learns from at most, over all its epochs."""
        config = entry.config
        kind = (entry.trial.task, *entry.stores, config.model.representation)
        if kind not in segments:
            segments[kind] = len(entry.data().learned)
        return segments[kind] * recipe(config, entry.task).epochs

    return [*first, *sorted(trials, key=size, reverse=True)]


def _resources(space: dict[str, Any]) -> PlacementGroupFactory:
    """The resources that Tune reserves: for a pre-training none, as its workers are Train's own affair."""
    spec: Spec = space["spec"]
    if isinstance(spec, PretrainingSpec):
        return PlacementGroupFactory([HEAD])
    return PlacementGroupFactory([{name: amount for name, amount in spec.resources.items() if amount}])


def _fit(plan: StudyPlan, recorder: Recorder, todo: list[Spec], encoders: Mapping[str, str]) -> dict[str, str]:
    config = plan.config
    _prepare_tune()
    scheduler = StudyScheduler(
        todo, encoders=encoders, cluster=ray.cluster_resources, slots=config.compute.max_concurrent_trials
    )
    with open_console() as console:
        trainable = tune.with_parameters(run_spec, study=plan.key, folder=study_uri(config, plan.key), console=console)
        tuner = Tuner(
            tune.with_resources(trainable, _resources),
            tune_config=TuneConfig(
                search_alg=scheduler,
                num_samples=len(todo),
                trial_name_creator=_key,
                trial_dirname_creator=_key,
                scheduler=sweep.DrawScheduler(config, _column) if config.study.draws else None,
                reuse_actors=not config.study.draws,  # a trial that is stopped leaves its thread behind
            ),
            run_config=_run_config(config, plan.key, recorder),
        )
        ended: Any = tuner.fit()
        reasons = {storage.basename(result.path): reason for result in ended if (reason := _failure(result))}
    for key, entry in plan.trials.items():
        if entry.encoder in reasons:
            reasons.setdefault(key, given_up(entry.encoder, reasons[entry.encoder]))
    return reasons


def _prepare_tune() -> None:
    """Set what Tune takes from its process alone."""
    for name in ("ray.tune.utils.util", "ray.tune.analysis.experiment_analysis"):
        # They warn when a tracking server takes its time, and that Tune's own curves are not there.
        logging.getLogger(name).setLevel(logging.ERROR)
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    # Tune would copy the driver's keys into the trials' runtime environment, which Ray logs and shows on its dashboard.
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
        {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
    )


def _run_config(config: Config, key: str, recorder: Recorder) -> RunConfig:
    system, studies = storage.filesystem(storage.root.studies(config.storage.root))
    return RunConfig(
        name=key,
        storage_path=studies,
        storage_filesystem=system,
        failure_config=FailureConfig(max_failures=config.compute.max_failures),
        callbacks=[recorder],
        verbose=0,
    )


def _column(trial: Any) -> str:
    """Protocol and task of a trial of Tune; empty for a pre-training."""
    spec: Spec = trial.config["spec"]
    return "" if isinstance(spec, PretrainingSpec) else f"{spec.trial.protocol} {spec.trial.task}"


def _key(trial: Any) -> str:
    return str(trial.config["spec"].key)


def _failure(result: Any) -> str:
    """Why a trial did not finish; empty where it did."""
    if result.error:
        return (str(result.error).strip() or repr(result.error)).splitlines()[-1]
    return str((result.metrics or {}).get(FAILURE, ""))
