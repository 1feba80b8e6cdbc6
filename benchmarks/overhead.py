"""What Ray Train and DeepSpeed cost: a step of our pre-training run beside the same step in a plain torch loop.

    python benchmarks/overhead.py --write                          # about twenty-five minutes on two cores
    python benchmarks/overhead.py --workers 1 --rounds 5 --write   # two workers need two idle cores
    python benchmarks/overhead.py --one-core --workers 2 --write   # the same beside a core that is left free
    python benchmarks/overhead.py --one-core --engines --write     # what of that is DeepSpeed alone, without any Ray
    python benchmarks/overhead.py --reports --write                # the last table alone, a quarter of an hour
    python benchmarks/overhead.py --rounds 1 --intervals 2 --log-every 2 --size 32 --segment 64

Ours is `launch.pretrain` on the 32 songs of the package: Ray Train, DeepSpeed (ZeRO stage 1, the default), a report
to MLflow every few steps, checkpoint and validation at the end only. Plain is the shortest loop that takes the same
steps: the same model, batches, masks, loss, clipping and AdamW; with two workers torch's
DistributedDataParallel over gloo. One thread a worker on both sides.

Where every core has a worker, Ray's daemons take their time from the workers. How much that is by itself is what
`beside an idle Ray` shows: the plain loop again, while a Ray with as many idle actors as Ray Train keeps stands by.

How much is left where nobody takes a worker's core is what `--one-core` shows: the workers of both sides share one
core, and all processes of Ray but these have the others. What `--engines` shows is the plain loop of two workers with
DeepSpeed's engine in place of DistributedDataParallel, by ZeRO stage: as much is the most that torch's reducer under
our own engine could save.

Only the steady state counts. Both sides measure the wall time of intervals of `--log-every` steps, reports
included: ours are those that the run itself reports (`throughput/steps_per_s` in MLflow), the first of each run is
dropped. Runs take turns, each in fresh processes, Ray too, so that Ray's own daemons weigh on our side only.
`overhead` is the median over rounds of (median of our intervals / median of the plain ones) - 1, and what the target
is held against; `by fastest` compares the fastest interval of each side, which a busy neighbour disturbs least.
`spread` is how far the plain side's own rounds lie apart: differences below it say nothing.

The last table (`--reports`) is what frequent points of curves cost: a tiny model, whose steps take milliseconds, with
one point every 10 steps beside one every 1,000. A step never waits for a report, so that both take as long.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import harness

TARGETS = {1: 0.025, 2: 0.05}
"""By number of workers."""
REPORTS_TARGET = 0.03
REPORTED_STEPS = 3000
SIDES = ("plain", "beside", "ray")
STAGES = (0, 1, 2)
"""Of ZeRO, those that `--engines` compares."""

CORE = 0
"""The core of all workers with `--one-core`."""

IDLE_ACTORS = 8
"""Processes that Ray Train keeps beside its workers: controller, synchronization, preemption watcher and the like."""

Turn = dict[str, list[float]]
"""Seconds a step of each interval that counts, by side."""


def main() -> None:
    options = _options()
    if options.worker:
        print(json.dumps(WORKERS[options.worker](options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        store = harness.measure([*_command(options, "store", 1), "--root", folder])
        if options.reports:
            _publish("reports", _reports(options, store, Path(folder)), options)
            return
        if options.engines:
            _publish("overhead engines", _engines(options, store, Path(folder)), options)
            return
        found: dict[int, list[Turn]] = {workers: [] for workers in options.workers}
        for number in range(options.rounds):
            for workers, turns in found.items():
                turns.append(_turn(options, workers, store, Path(folder, f"{number}-{workers}")))
                shown = "  ".join(f"{side} {median(seconds):.3f} s/step" for side, seconds in turns[-1].items())
                print(f"round {number + 1}  {workers} worker(s)  {shown}", flush=True)
    _publish("overhead one core" if options.one_core else "overhead", _table(found, options), options)


def _publish(section: str, rows: str, options: argparse.Namespace) -> None:
    software = harness.versions("torch", "ray", "deepspeed")
    harness.publish(section, rows, options, hardware=harness.machine(), software=software)


def _options() -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--reports", action="store_true", help="what frequent reports cost, and nothing else")
    parser.add_argument("--engines", action="store_true", help="two workers without Ray, by engine, and nothing else")
    parser.add_argument("--one-core", action="store_true", help="all workers on one core, all else on the others")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], choices=TARGETS)
    parser.add_argument("--rounds", type=int, default=3, help="turns of both sides")
    parser.add_argument(
        "--intervals", type=int, default=3, help="intervals of a run that count, after one that does not"
    )
    parser.add_argument("--log-every", type=int, default=10, help="steps of an interval")
    parser.add_argument("--attention", default="rope", help="the faster one, as overhead weighs more there")
    parser.add_argument("--size", type=int, default=256, help="width of the four layers")
    parser.add_argument("--segment", type=int, default=512, help="time steps of a segment")
    for hidden in ("--worker", "--root", "--store"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--stage", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _turn(options: argparse.Namespace, workers: int, store: str, root: Path) -> Turn:
    """One run of each side."""
    turn = {}
    for side in SIDES:
        command = [*_command(options, side, workers), "--store", store, "--root", root / side]
        turn[side] = harness.measure(command)[1:]
    return turn


def _engines(options: argparse.Namespace, store: str, root: Path) -> str:
    """The table of two workers that torch's reducer, or one of DeepSpeed's, keeps together."""
    found: dict[int | None, list[list[float]]] = {stage: [] for stage in (None, *STAGES)}
    for number in range(options.rounds):
        for stage, turns in found.items():
            command = [*_command(options, "plain", 2), "--store", store, "--root", root / f"{number}-{stage}"]
            turns.append(harness.measure(command + ["--stage", stage] * (stage is not None))[1:])
            print(f"round {number + 1}  ZeRO {stage}  {median(turns[-1]):.3f} s/step", flush=True)
    plain, rows = found[None], []
    for stage, turns in found.items():
        ratios = [median(own) / median(other) for own, other in zip(turns, plain, strict=True)]
        over = [f"{median(ratios) - 1:+.1%}", f"{min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%}"]
        seconds = median(median(turn) for turn in turns)
        name = "DistributedDataParallel" if stage is None else f"DeepSpeed, ZeRO {stage}"
        rows.append([name, f"{seconds:.3f}", *(over if stage is not None else ["", ""])])
    where = " on one core" if options.one_core else ""
    shape = f"2 workers{where}, no Ray (4x{options.size} {options.attention}, 12 × {options.segment})"
    return harness.table((shape, "s/step", "more", "in single rounds"), rows)


def _reports(options: argparse.Namespace, store: str, root: Path) -> str:
    """The table of a tiny model that reports often, and seldom."""
    found: dict[int, list[float]] = {10: [], 1000: []}
    for number in range(options.rounds):
        for every, seconds in found.items():
            changes = {"size": 32, "segment": 64, "log_every": every, "intervals": REPORTED_STEPS // every}
            command = _command(argparse.Namespace(**vars(options) | changes), "ray", 1)
            command += ["--store", store, "--root", root / f"{number}-every-{every}"]
            seconds.append(mean(harness.measure(command)[1:]))
    often, seldom = map(median, found.values())
    cost = often / seldom - 1
    head = (
        "reports, 1 worker (4x32, 64)",
        "every 10, ms/step",
        "every 1,000, ms/step",
        "difference",
        "target",
        "holds",
    )
    row = ["a point of every curve", f"{1000 * often:.2f}", f"{1000 * seldom:.2f}", f"{cost:+.1%}"]
    return harness.table(head, [[*row, f"≤ {REPORTS_TARGET:.0%}", harness.verdict(cost, most=REPORTS_TARGET)]])


def _command(options: argparse.Namespace, worker: str, workers: int) -> list[object]:
    names = ("intervals", "log_every", "attention", "size", "segment")
    settings = [x for name in names for x in (f"--{name.replace('_', '-')}", getattr(options, name))]
    settings += ["--one-core"] * options.one_core
    return [sys.executable, __file__, "--worker", worker, "--workers", workers, *settings]


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
            "compute.workers": options.workers[0],
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
    if options.workers[0] == 1:
        plain_worker(0, options)
    else:
        torch.multiprocessing.spawn(plain_worker, (options,), nprocs=options.workers[0])
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
    world, root = options.workers[0], Path(options.root).resolve()
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


WORKERS = {"store": make_store, "ray": with_ray, "plain": in_plain_torch, "beside": beside_idle_ray}


def _table(found: dict[int, list[Turn]], options: argparse.Namespace) -> str:
    rows = []
    for workers, turns in found.items():
        plain, beside, ours = ([median(turn[side]) for turn in turns] for side in SIDES)
        fastest, _, our_fastest = (min(min(turn[side]) for turn in turns) for side in SIDES)
        idle, overhead = (
            median(own / other for own, other in zip(side, plain, strict=True)) - 1 for side in (beside, ours)
        )
        row = [f"{workers}", f"{median(plain):.3f}", f"{median(ours):.3f}", f"{idle:+.1%}", f"{overhead:+.1%}"]
        row += [f"{our_fastest / fastest - 1:+.1%}", f"{max(plain) / min(plain) - 1:.1%}"]
        rows.append([*row, f"≤ {TARGETS[workers]:.1%}", harness.verdict(overhead, most=TARGETS[workers])])
    where = " on one core" if options.one_core else ""
    shape = f"workers{where} (4x{options.size} {options.attention}, 12 × {options.segment})"
    head = (
        shape,
        "plain s/step",
        "ours s/step",
        "beside an idle Ray",
        "overhead",
        "by fastest",
        "spread",
        "target",
        "holds",
    )
    return harness.table(head, rows)


if __name__ == "__main__":
    main()
