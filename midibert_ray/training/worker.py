"""A worker of a pre-training run, as Ray Train starts it: restore, train, store checkpoints."""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import get_device

from midibert_ray import storage
from midibert_ray.data.store import open_store
from midibert_ray.settings.config import ConfigError
from midibert_ray.settings.overrides import from_flat
from midibert_ray.training import engine as engines
from midibert_ray.training import node, start
from midibert_ray.training.build import new_model
from midibert_ray.training.checkpoints import CheckpointError, explain_full_disk, newest_sound, store, unused_name
from midibert_ray.training.pretrain import PretrainData, PretrainLoop, run_epochs
from midibert_ray.training.runs import INPUTS, run_uri
from midibert_ray.training.watchdog import Pulse

logger = logging.getLogger(__name__)

FINISHED = "finished"
"""Returned by a worker that has come to the end of its run."""

REPORT_S = 5.0
"""Seconds between two reports of points."""


def train_worker(task: dict[str, Any]) -> Any:
    """Train one worker's share of a run; Ray Train calls it again after a failure.

    Args:
        task: `config` (flat), `stores` (URIs), `key` of the run, `console`, `watch`, `start` (digest of the weights to
            begin with, if there are such).

    Returns:
        FINISHED; or the error for which the run cannot go on: raised, it would only be tried again, and in vain.
    """
    config = from_flat(task["config"])
    run = run_uri(config, task["key"])
    _require_visible(run)
    context, device = ray.train.get_context(), get_device()
    if device.type == "cpu":
        torch.set_num_threads(config.compute.cpus_per_worker)
    data = PretrainData(config, [open_store(store, config.storage) for store in task["stores"]])
    try:
        model = start.begin(new_model(config), config, task.get("start", ""))
        engine = engines.build(model, config, steps=data.steps(config.pretrain.epochs), device=device)
        progress, problems = _restore(engine, run, task["console"])
    except ConfigError as error:
        return CheckpointError(str(error))
    except CheckpointError as error:
        return error
    rank, world = context.get_world_rank(), context.get_world_size()
    loop = PretrainLoop(config, data, engine, rank=rank, world=world, device=device)
    pulse = Pulse(task["watch"], rank, config.compute.watchdog_s)
    # Of the engine, as hooks of its model would be compiled with it.
    engine.register_forward_pre_hook(lambda *_: pulse.beat(progress.step))
    points = Points(ray.train.report, progress.reports, rank)

    def report(metrics: dict[str, Any], with_checkpoint: bool) -> None:
        points.add(metrics, send=not with_checkpoint)
        if with_checkpoint:
            pulse.rest(progress.step)
            _send_checkpoint(points, engine, progress, run, unused_name(progress.step, problems))

    outcome: Any = FINISHED
    try:
        run_epochs(loop, progress, report)
    except FloatingPointError as error:
        outcome = error
    pulse.rest(progress.step)
    points.send()
    return outcome


class Points:
    """Points of curves on their way to the controller: sent together, once in `REPORT_S`, so that no step waits.

    Ray Train looks for reports about once a second, and a worker waits until its last one was taken. It wants as many
    of every worker, so all go by the first one's clock, which each point carries.
    """

    def __init__(self, report: Callable[..., None], earlier: list[dict[str, Any]], rank: int = 0) -> None:
        """`earlier`: those that a resumed run says again, which need not be sent before the first new one."""
        self._report, self._rank = report, rank
        self._points: list[dict[str, Any]] = []
        self._sent = earlier[-1]["at"] if earlier else 0.0

    def add(self, point: dict[str, Any], *, send: bool) -> None:
        """Take in a point; with `send`, all go if the time has come."""
        self._points.append(point)
        if send and point["at"] - self._sent >= REPORT_S:
            self.send()

    def send(self, **checkpoint: Any) -> None:
        """Report all points, if there are any; the last one's values also stand for themselves."""
        if self._points:
            last = self._points[-1]
            own = {"points": self._points, "usage": node.usage(self._rank), node.HARDWARE: node.hardware()}
            self._report(last | own, **checkpoint)
            self._points, self._sent = [], last["at"]


def _send_checkpoint(points: Points, engine: Any, progress: engines.Progress, run: str, name: str) -> None:
    """Write this worker's shards, and report the points along with them."""

    def upload(shards: Checkpoint, name: str) -> Checkpoint:
        # Ray Train's own copy would not tell of an object that S3 refused, and leaves the order of files to chance.
        _require_visible(run)
        store(Path(shards.path), storage.join(run, name), engine.global_rank)
        return Checkpoint(*reversed(storage.filesystem(storage.join(run, name))))

    with tempfile.TemporaryDirectory() as scratch:
        engines.save(engine, progress, Path(scratch), storage.basename(run))
        checkpoint, needed = Checkpoint.from_directory(scratch), engines.checkpoint_bytes(engine)
        with explain_full_disk(run, needed, ", or lower compute.keep_checkpoints"):
            points.send(checkpoint=checkpoint, checkpoint_dir_name=name, checkpoint_upload_fn=upload)


def _require_visible(run: str) -> None:
    if not storage.exists(storage.join(run, INPUTS)):
        raise FileNotFoundError(f"{run} is not on this node; storage.root must be visible from every node")


def _restore(engine: Any, uri: str, console: Any) -> tuple[engines.Progress, dict[str, str]]:
    """Load the newest sound checkpoint of a run, if there is one; also the newer damaged ones, and why.

    The folders count, not Ray Train's list: a checkpoint may have been complete, or cut off, before it got there.

    Raises:
        CheckpointError: in all workers, where the run had checkpoints and none is sound any more, or the sound one
            cannot be loaded.
    """
    system, run = storage.filesystem(uri)
    found: Any = None
    if ray.train.get_context().get_world_rank() == 0:  # reads all of it, so one worker is enough
        choice = newest_sound(system, run)
        for problem in choice.problems.values():
            start = f"goes on from {choice.name}" if choice.name else "starts from the beginning"
            line = f"a broken checkpoint is passed over, the run {start}: {problem}"
            logger.warning(line)
            console.put.remote(line)
        # One object for all workers: those of a node fetch it together, once.
        found = choice.name and Checkpoint(f"{run}/{choice.name}", system), choice.problems
    checkpoint, problems = broadcast_from_rank_zero(found)
    if checkpoint is None:
        if ray.train.get_checkpoint():
            raise CheckpointError(
                f"no checkpoint of the run in {run} is whole ({'; '.join(problems.values())}); bring one of them back "
                "from a copy, or remove that folder to start the run again"
            )
        return engines.Progress(), problems
    with checkpoint.as_directory() as folder:
        return engines.load(engine, Path(folder)), problems
