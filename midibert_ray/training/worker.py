"""One worker of a pre-training run, as Ray Train starts it: restore, train, store checkpoints."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import get_device

from midibert_ray import storage
from midibert_ray.data.store import open_store
from midibert_ray.settings.overrides import from_flat
from midibert_ray.training import engine as engines
from midibert_ray.training.build import new_model
from midibert_ray.training.checkpoints import CheckpointError, explain_full_disk, newest_sound, store, unused_name
from midibert_ray.training.pretrain import PretrainData, PretrainLoop, run_epochs
from midibert_ray.training.runs import INPUTS, run_address

logger = logging.getLogger(__name__)

FINISHED = ""
"""Returned by a worker that has come to the end of its run."""


def train_worker(task: dict[str, Any]) -> Any:
    """Train one worker's share of a run; Ray Train calls it again after a failure.

    Args:
        task: `config` (flat), `stores` (URIs), `key` of the run, `console`.

    Returns:
        FINISHED; or, where the loss is no longer finite, why the run cannot go on: an error would only be tried
        again, and every draw would be the same.
    """
    config = from_flat(task["config"])
    run = run_address(config, task["key"])
    _require_visible(run)
    context, device = ray.train.get_context(), get_device()
    if device.type == "cpu":
        torch.set_num_threads(config.compute.cpus_per_worker)
    data = PretrainData(config, [open_store(store, config.storage) for store in task["stores"]])
    engine = engines.build(new_model(config), config, steps=data.steps(config.pretrain.epochs), device=device)
    progress, broken = _restore(engine, run, task["console"])
    rank, world = context.get_world_rank(), context.get_world_size()
    loop = PretrainLoop(config, data, engine, rank=rank, world=world, device=device)
    needed = engines.checkpoint_bytes(engine)

    def upload(shards: Checkpoint, name: str) -> Checkpoint:
        return _store(Path(shards.path), run, name, rank)

    def report(metrics: dict[str, Any], with_checkpoint: bool) -> None:
        if not with_checkpoint:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as scratch:
            engines.save(engine, progress, Path(scratch), task["key"])
            checkpoint, name = Checkpoint.from_directory(scratch), unused_name(progress.step, broken)
            with explain_full_disk(run, needed, ", or lower compute.keep_checkpoints"):
                ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name, checkpoint_upload_fn=upload)

    try:
        run_epochs(loop, progress, report)
    except FloatingPointError as error:
        return str(error)
    return FINISHED


def _require_visible(run: str) -> None:
    """Make sure that a run's folder is the one that the driver wrote to, and not this node's own of the same name."""
    if not storage.exists(storage.join(run, INPUTS)):
        raise FileNotFoundError(f"{run} is not on this node; storage.root must be visible from every node")


def _store(shards: Path, run: str, name: str, rank: int) -> Checkpoint:
    """Copy this worker's shards of a checkpoint to the run's folder.

    Ray Train's own copy would not tell of an object that S3 refused, and would leave the order of files to chance.
    """
    _require_visible(run)
    checkpoint = storage.join(run, name)
    store(shards, checkpoint, rank)
    system, path = storage.filesystem(checkpoint)
    return Checkpoint(path, system)


def _restore(engine: Any, address: str, console: Any) -> tuple[engines.Progress, frozenset[str]]:
    """Load the newest sound checkpoint of a run, if there is one; also the names of newer ones that are broken.

    The folders count, not Ray Train's list: a checkpoint may have been complete, or cut off, before it got there.

    Raises:
        CheckpointError: where the run had checkpoints and none is sound any more.
    """
    system, run = storage.filesystem(address)
    found: Any = None
    if ray.train.get_context().get_world_rank() == 0:  # reads all of it, so one worker is enough
        choice = newest_sound(system, run)
        for problem in choice.broken.values():
            start = f"goes on from {choice.name}" if choice.name else "starts from the beginning"
            line = f"a broken checkpoint is passed over, the run {start}: {problem}"
            logger.warning(line)
            console.put.remote(line)
        # One object for all workers: those of a node fetch it together, once.
        found = choice.name and Checkpoint(f"{run}/{choice.name}", system), dict(choice.broken)
    checkpoint, broken = broadcast_from_rank_zero(found)
    if checkpoint is None:
        if ray.train.get_checkpoint():
            raise CheckpointError(
                f"no checkpoint of the run in {run} is whole ({'; '.join(broken.values())}); bring one of them back "
                "from a copy, or remove that folder to start the run again"
            )
        return engines.Progress(), frozenset(broken)
    with checkpoint.as_directory() as folder:
        return engines.load(engine, Path(folder)), frozenset(broken)
