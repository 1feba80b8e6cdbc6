"""Pre-training by Ray Train, from a configuration to a finished run: started, restarted, recorded."""

import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback

from midibert_ray import storage, tracking
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import flatten
from midibert_ray.storage.lease import lease
from midibert_ray.training import start
from midibert_ray.training.build import parameter_counts, plan_batch
from midibert_ray.training.checkpoints import PREFIX, CheckpointError, drop_broken_books, remove_unfinished, says_full
from midibert_ray.training.console import HEAD, open_console
from midibert_ray.training.recorder import RunRecorder, dataset, open_log
from midibert_ray.training.runs import PretrainRun, finish, finished, note_settings, pin, run_key, run_uri
from midibert_ray.training.watchdog import Watch
from midibert_ray.training.worker import FINISHED, train_worker

logger = logging.getLogger(__name__)


def pretrain(
    config: Config, stores: Sequence[str], *, console: Any = None, callbacks: Sequence[UserCallback] = ()
) -> PretrainRun:
    """Run pre-training to its end, or go on where an earlier start of the same run stopped.

    Where another process is at work on the same run, wait for it, or take over when it is gone. A run that has
    finished is returned at once.

    Args:
        config: the whole configuration.
        stores: URIs of the token stores to train on.
        console: takes progress lines (see `open_console`); None opens a console here.
        callbacks: told of every report, beside MLflow.

    Raises:
        ConfigError: for a batch that cannot be divided over the workers.
        ValueError: where the run was started on other tokens.
        CheckpointError: where no checkpoint is sound, or one is another run's or would run a stranger's code.
        FloatingPointError: where the loss is no longer finite; starting again would end in the same place.
        ray.train.TrainingFailedError: where a worker failed more than `compute.max_failures` times.
    """
    batch, key = plan_batch(config), run_key(config, stores)
    folder, report = run_uri(config, key), console.put.remote if console else logger.info
    pin(folder, stores)
    note_settings(folder, config)
    if done := finished(config, key):
        logger.info("pre-training %s is there already: %s", key, done.checkpoint)
        return done
    with lease(folder, what=f"pre-training {key}", report=report) as held:
        if done := finished(config, key):  # by the process that was waited for
            return done
        counts = ", ".join(f"{name} {count:,}" for name, count in parameter_counts(config).items())
        logger.info("pre-training %s\n  parameters: %s\n  batch: %s", key, counts, batch)
        uris = tracking.uris(config)
        try:
            open_log(uris, config, key).datasets(dataset(store, config.pretrain.splits, "training") for store in stores)
            _fit(config, stores, key, console, callbacks)
            held.check()
            run = finish(config, key)
        except (ray.train.TrainingFailedError, FloatingPointError, CheckpointError):
            open_log(uris, config, key).finish("FAILED")
            raise
        log = open_log(uris, config, key)
        log.tag(checkpoint=run.checkpoint)
        log.model(run.checkpoint, "encoder", {"run": key, "step": run.step})
        log.finish()
        return run


def _fit(config: Config, stores: Sequence[str], key: str, console: Any, callbacks: Sequence[UserCallback]) -> None:
    """Start Ray Train, and wait for the end of the run; raises what `pretrain` does."""
    run = run_uri(config, key)
    with nullcontext(console) if console else open_console() as handle:
        _tidy(run, handle)
        try:
            result: Any = _trainer(config, stores, key, handle, callbacks).fit()
        except ray.train.ControllerError as error:
            if not says_full(error.controller_failure):
                raise
            raise ray.train.TrainingFailedError(  # it keeps a list of the checkpoints beside them
                f"the disk of {run} is too full for a checkpoint, and for Ray Train's list of them; free some space "
                "there, or lower compute.keep_checkpoints, then start the run again: it goes on from the last whole one"
            ) from error
        _tidy(run, handle)
    outcome = result.return_value
    if isinstance(outcome, FloatingPointError | CheckpointError):
        raise type(outcome)(f"pre-training {key}: {outcome}")
    if outcome != FINISHED:
        # Ray Train asks a worker for its error first, and then whether it still runs. One that fails in between has
        # neither, and passes for one that has finished.
        raise ray.train.TrainingFailedError(
            f"pre-training {key}: a worker failed, and Ray Train lost its error; start the run again, which goes on "
            f"from its last checkpoint"
        )


def _tidy(run: str, console: Any) -> None:
    """Remove what would keep Ray Train from starting, and what a kill left unfinished; no worker may be running."""
    if problem := drop_broken_books(run):
        console.put.remote(problem)
    for name in remove_unfinished(run, PREFIX):
        line = f"the checkpoint {name} of {storage.basename(run)} is removed, as its writing was broken off"
        console.put.remote(line)


class _Trainer(TorchTrainer):
    """Without the process that Ray Train starts beside each group of workers to divide datasets of Ray Data."""

    def _create_default_callbacks(self) -> list[Any]:
        ray_train: Any = super()  # the types of `ray.train` are those of its first version
        return [each for each in ray_train._create_default_callbacks() if not isinstance(each, DatasetsCallback)]


def _trainer(
    config: Config, stores: Sequence[str], key: str, console: Any, callbacks: Sequence[UserCallback]
) -> _Trainer:
    compute = config.compute
    # By default an actor of a Tune trial would be one of its placement group, which has no room for it.
    watching = ray.remote(num_cpus=0, resources=HEAD, scheduling_strategy="DEFAULT")(Watch)
    watch: Any = watching.remote(key, console)
    recorder = RunRecorder(tracking.uris(config), config, key, console, watch)
    system, runs = storage.filesystem(storage.root.runs(config.storage.root))
    # Ray Train looks for reports every 2 s, and a worker waits until its last one was taken. A look costs 20 ms of
    # a core, so looking more often than this takes its time from workers that fill a node.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    task = {"config": flatten(config), "stores": list(stores), "key": key, "console": console, "watch": watch}
    task["start"] = start.inputs(config, start.PRETRAIN).get(start.PRETRAIN, "")
    return _Trainer(
        train_worker,
        train_loop_config=task,
        torch_config=TorchConfig(backend="nccl" if compute.gpu else "gloo"),
        scaling_config=_scaling(config),
        run_config=RunConfig(
            name=key,
            storage_path=runs,
            storage_filesystem=system,
            failure_config=FailureConfig(max_failures=compute.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=compute.keep_checkpoints,
                checkpoint_score_attribute="valid/score",
                checkpoint_score_order="max",
            ),
            callbacks=[recorder, *callbacks],  # type: ignore[list-item]  # annotated by Tune's name
        ),
    )


def _scaling(config: Config) -> ScalingConfig:
    compute = config.compute
    return ScalingConfig(
        num_workers=compute.workers,
        use_gpu=compute.gpu,
        resources_per_worker={"CPU": compute.cpus_per_worker, **({"GPU": 1} if compute.gpu else {})},
        accelerator_type=compute.accelerator or None,
        placement_strategy=compute.placement,
    )
