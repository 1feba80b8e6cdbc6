"""Two workers without Ray: two processes of torch's own that run what a test asks of them."""

import multiprocessing
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from midibert_ray.data.store import TokenStore
from midibert_ray.settings.config import Config
from midibert_ray.training import engine as engines
from midibert_ray.training.build import new_model
from midibert_ray.training.engine import Progress
from midibert_ray.training.pretrain import PretrainData, PretrainLoop, run_epochs
from midibert_ray.training.step import StepBatch


@dataclass(frozen=True)
class Task:
    """A stretch of a run."""

    config: Config
    store: str
    cache: str
    steps: int = 0
    """Step at which the stretch ends."""

    resume: Path | None = None
    """Checkpoint to start from."""

    save: Path | None = None
    """Where to write a checkpoint, each worker into a folder of its own below."""

    save_at: int = 0


@dataclass
class Trace:
    """What one worker saw."""

    losses: list[float] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    """Of each step, checksums of the masked segments in this worker's share, in order."""

    rates: list[float] = field(default_factory=list)
    decays: list[float] = field(default_factory=list)
    progress: Progress | None = None


def train(task: Task, rank: int, world: int) -> Trace:
    """Train one worker's share from the start or a checkpoint."""
    device, trace = torch.device("cpu"), Trace()
    data = PretrainData(task.config, [TokenStore.open(task.store, task.cache)])
    engine = engines.build(new_model(task.config), task.config, steps=100, device=device)
    progress = engines.load(engine, task.resume) if task.resume else Progress()
    trace.progress = replace(progress)
    trace.decays = [group["weight_decay"] for group in engine.optimizer.param_groups]
    job = PretrainLoop(task.config, data, engine, rank=rank, world=world, device=device)

    forward = job._forward

    def watched(batch: StepBatch, *, augmented: bool) -> dict[str, torch.Tensor]:
        masked, *_ = job.masking._corrupted(batch, augmented)
        pairs = zip(masked.inputs.numpy(), masked.where.numpy(), strict=True)
        trace.rows[-1] += [zlib.crc32(chosen.tobytes(), zlib.crc32(row.tobytes())) for row, chosen in pairs]
        return forward(batch, augmented=augmented)

    job._forward = watched  # type: ignore[method-assign]
    while progress.step < task.steps:
        trace.rows.append([])
        epoch, k = divmod(progress.step, data.order.batches_per_epoch)
        job.step(epoch, k, progress.step)
        progress.step += 1
        metrics = job.metrics(0)
        trace.losses.append(metrics["train/loss"] + metrics.get("train/roll", 0.0))
        trace.rates.append(engine.get_lr()[0])
        if task.save and progress.step == task.save_at:
            part = task.save / f"worker{rank}"
            part.mkdir(parents=True)
            engines.save(engine, progress, part)
    return trace


def train_to_the_end(task: Task, rank: int, world: int) -> list[dict[str, Any]]:
    """Train one worker's share of a whole run, as `training.worker` does under Ray Train; all its reports."""
    device = torch.device("cpu")
    data = PretrainData(task.config, [TokenStore.open(task.store, task.cache)])
    engine = engines.build(
        new_model(task.config), task.config, steps=data.steps(task.config.pretrain.epochs), device=device
    )
    reports: list[dict[str, Any]] = []
    loop = PretrainLoop(task.config, data, engine, rank=rank, world=world, device=device)
    run_epochs(loop, Progress(), lambda metrics, _: reports.append(metrics))
    return reports


def merged(folder: Path) -> Path:
    """The workers' parts of a checkpoint in one folder, as on the storage of a run."""
    whole = folder / "whole"
    for part in sorted(folder.glob("worker*")):
        shutil.copytree(part, whole, dirs_exist_ok=True)
    return whole


class Pair:
    """Two worker processes in one process group."""

    def __init__(self, meeting_point: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(2):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, str(meeting_point), there), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], task: Any) -> list[Any]:
        """function(task, rank, 2) in both processes; their results."""
        for pipe in self.pipes:
            pipe.send((function, task))
        results = []
        for pipe in self.pipes:
            if not pipe.poll(600):
                raise TimeoutError("a worker did not answer")
            results.append(pipe.recv())
            if isinstance(results[-1], Exception):
                raise results[-1]
        return results

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.close()
            process.join(timeout=10)
            process.kill()


def _serve(rank: int, meeting_point: str, pipe: Connection) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2)
    while True:
        try:
            function, task = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(function(task, rank, 2))
        except Exception as error:  # noqa: BLE001  # the test is told
            pipe.send(RuntimeError(f"worker {rank}: {error!r}"))
