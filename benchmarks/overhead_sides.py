"""The sides that overhead.py compares: each takes the steps of a run in a fresh process and prints seconds as JSON.

    python benchmarks/overhead_sides.py store --root /tmp/a               # the songs of the package, tokenized
    python benchmarks/overhead_sides.py plain --root /tmp/b --store URI   # `ray` and `beside` likewise

overhead.py takes their turns and says what they are.
"""

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CORE = 0
"""The core of all workers with `--one-core`."""

IDLE_ACTORS = 8
"""Processes that Ray Train keeps beside its workers: controller, synchronization, preemption watcher and the like."""


def main() -> None:
    options = _options()
    print(json.dumps(WORK[options.side](options)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=WORK)
    parser.add_argument("--root", required=True, help="a folder for what is written")
    parser.add_argument("--store", help="the address that `store` has printed")
    parser.add_argument("--stage", type=int, help="of ZeRO, where DeepSpeed's engine takes the steps of the plain loop")
    shape(parser)
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args()


def shape(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what steps are taken, and how many."""
    parser.add_argument(
        "--intervals", type=int, default=3, help="intervals of a run that count, after one that does not"
    )
    parser.add_argument("--log-every", type=int, default=10, help="steps of an interval")
    parser.add_argument("--attention", default="rope", help="the faster one, as overhead weighs more there")
    parser.add_argument("--size", type=int, default=256, help="width of the four layers")
    parser.add_argument("--segment", type=int, default=512, help="time steps of a segment")
    parser.add_argument("--one-core", action="store_true", help="all workers on one core, all else on the others")


def command(options: argparse.Namespace, side: str, workers: int) -> list[object]:
    """The command line of a side whose steps are as options of `shape` say."""
    names = ("intervals", "log_every", "attention", "size", "segment")
    settings = [x for name in names for x in (f"--{name.replace('_', '-')}", getattr(options, name))]
    settings += ["--one-core"] * options.one_core
    return [sys.executable, __file__, side, "--workers", workers, *settings]


def _config(options: argparse.Namespace) -> Any:
    from midibert_ray.settings.overrides import replace
    from midibert_ray.settings.presets import preset

    return replace(
        preset("small"),
        {
            "corpora.names": ("sample",),
            "tokens.segment": options.segment,
            "model.attention": options.attention,
            "model.hidden": options.size,
            "model.feed_forward": 4 * options.size,
            "optimizer.schedule": "constant",
            "pretrain.epochs": 1000,
            "pretrain.valid_every": 1000,
            "pretrain.patience": 0,
            "compute.workers": options.workers,
            "compute.log_every": options.log_every,
            "storage.root": options.root,
            "storage.cache": str(Path(options.root, "cache")),
        },
    )


def _data(config: Any, options: argparse.Namespace) -> tuple[Any, Any]:
    """The segments, and the configuration with as many epochs as the wanted intervals take."""
    from midibert_ray.data.store import TokenStore
    from midibert_ray.settings.overrides import replace
    from midibert_ray.training.pretrain import PretrainData

    data = PretrainData(config, [TokenStore.open(options.store, config.storage.cache)])
    epochs = -(-(options.intervals + 1) * options.log_every // data.order.batches_per_epoch)
    return data, replace(config, {"pretrain.epochs": epochs})


def make_store(options: argparse.Namespace) -> str:
    """Tokenize the sample; its address."""
    from midibert_ray import pipeline
    from midibert_ray.cli.driver import start_ray

    start_ray()
    config = _config(options)
    return pipeline.tokenize(pipeline.plan(config))[0].uri


def with_ray(options: argparse.Namespace) -> list[float]:
    """Seconds a step of each interval of a run under Ray Train and DeepSpeed."""
    from midibert_ray import tracking
    from midibert_ray.cli.driver import start_ray
    from midibert_ray.training.launch import pretrain
    from midibert_ray.training.runs import run_key

    if options.one_core:
        _leave_the_core()
        threading.Thread(target=_keep_ray_workers_on_it, daemon=True).start()
    start_ray()
    _, config = _data(_config(options), options)
    pretrain(config, [options.store])
    tracker = tracking.Tracker(tracking.uris(config))
    run = tracker.find(tracking.PRETRAINING, run_key(config, [options.store]))
    rates = [rate for _, rate in tracker.curve(run.info.run_id, "throughput/steps_per_s")]
    return [1 / rate for rate in rates[: options.intervals + 1]]


def beside_idle_ray(options: argparse.Namespace) -> list[float]:
    """Seconds a step of each interval of the plain loop, while Ray stands by."""
    import ray

    from midibert_ray.cli.driver import start_ray

    if options.one_core:
        _leave_the_core()
    start_ray()
    idle = [ray.remote(num_cpus=0)(_Idle).remote() for _ in range(IDLE_ACTORS)]
    ray.get([actor.ready.remote() for actor in idle])
    return in_plain_torch(options)


def _leave_the_core() -> None:
    """Let this process, and all that it starts, run on any core but the workers'."""
    os.sched_setaffinity(0, os.sched_getaffinity(0) - {CORE})


def _keep_on_the_core(process: int) -> None:
    """Let all threads that a process has now, and what they start, run on the workers' core alone."""
    for thread in Path(f"/proc/{process}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {CORE})


def _keep_ray_workers_on_it() -> None:
    """Look for the workers of Ray Train again and again, as they come late and make more threads."""
    import psutil

    while True:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):  # it has ended meanwhile
                if "ray::RayTrainWorker" in process.name():
                    _keep_on_the_core(process.pid)
        time.sleep(1)


class _Idle:
    """An actor that does nothing."""

    def ready(self) -> bool:
        return True


def in_plain_torch(options: argparse.Namespace) -> list[float]:
    """Seconds a step of each interval of the plain loop."""
    import torch.multiprocessing

    root = Path(options.root)
    root.mkdir(parents=True)
    if options.workers == 1:
        plain_worker(0, options)
    else:
        torch.multiprocessing.spawn(plain_worker, (options,), nprocs=options.workers)
    return json.loads((root / "seconds.json").read_text())


def plain_worker(rank: int, options: argparse.Namespace) -> None:
    """One process of the plain loop; the first one writes down the seconds."""
    import torch
    import torch.distributed as dist

    from midibert_ray.training.step import MaskedStep

    torch.set_num_threads(1)
    if options.one_core:
        _keep_on_the_core(os.getpid())
    data, config = _data(_config(options), options)
    world, root = options.workers, Path(options.root).resolve()
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{world}"}  # DeepSpeed asks for them
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{root}/meeting", rank=rank, world_size=world)
    model, take = _torch_step(config) if options.stage is None else _deepspeed_step(config, options.stage)
    per_epoch, masking, since = data.order.batches_per_epoch, MaskedStep(config), time.perf_counter()
    seconds = []
    for step in range((options.intervals + 1) * options.log_every):
        take(_loss(model, masking, data, step, rank, step // per_epoch, step % per_epoch))
        if (step + 1) % options.log_every == 0:
            seconds.append((time.perf_counter() - since) / options.log_every)
            since = time.perf_counter()
    if rank == 0:
        (root / "seconds.json").write_text(json.dumps(seconds))
    if world > 1:
        dist.destroy_process_group()


def _torch_step(config: Any) -> tuple[Any, Callable[[Any], None]]:
    """A model, and what takes a step with a loss of it."""
    import torch

    from midibert_ray.training.build import new_model
    from midibert_ray.training.optimizer import adamw

    model: Any = new_model(config).train()
    if config.compute.workers > 1:
        model = torch.nn.parallel.DistributedDataParallel(model)
    settings = config.optimizer
    rates = {"lr": settings.lr, "eps": settings.eps, "weight_decay": settings.weight_decay}
    optimizer = adamw(model.parameters(), config.protocol_in_force, **rates)

    def take(loss: Any) -> None:
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()

    return model, take


def _deepspeed_step(config: Any, stage: int) -> tuple[Any, Callable[[Any], None]]:
    """The same by the engine that jobs build."""
    import torch

    from midibert_ray.settings.overrides import replace
    from midibert_ray.training import engine
    from midibert_ray.training.build import new_model

    own = replace(config, {"compute.zero_stage": stage})
    built = engine.build(new_model(own), own, steps=10**6, device=torch.device("cpu"))
    built.train()

    def take(loss: Any) -> None:
        built.backward(loss)
        engine.step(built)

    return built, take


def _loss(model: Any, masking: Any, data: Any, step: int, rank: int, epoch: int, k: int) -> Any:
    """Loss of this worker's rows; the mean over workers is that over all masked positions of the batch."""
    import torch

    from midibert_ray.data.hashing import row_keys

    config, rows = masking.config, data.train_rows[data.order.indices(epoch, k)]
    total = int(masking.counts(data.train.lengths(rows)).sum())
    share = len(rows) // config.compute.workers
    mine = slice(rank * share, (rank + 1) * share)
    keys, raw = row_keys(config.seed, epoch, step, torch.arange(len(rows)))[mine], data.train.gather(rows[mine])
    batch = masking.batch(raw.tokens, raw.length, keys, notes=0, augmented=False)
    return masking(model, batch, augmented=False)["loss"] * config.compute.workers / total


WORK = {"store": make_store, "ray": with_ray, "beside": beside_idle_ray, "plain": in_plain_torch}

if __name__ == "__main__":
    main()
