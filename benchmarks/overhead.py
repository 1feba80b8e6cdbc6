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
import tempfile
from pathlib import Path
from statistics import mean, median

import harness
import overhead_sides

TARGETS = {1: 0.025, 2: 0.05}
"""By number of workers."""
REPORTS_TARGET = 0.03
REPORTED_STEPS = 3000
SIDES = ("plain", "beside", "ray")
STAGES = (0, 1, 2)
"""Of ZeRO, those that `--engines` compares."""

Turn = dict[str, list[float]]
"""Seconds a step of each interval that counts, by side."""


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        store = harness.measure([*overhead_sides.command(options, "store", 1), "--root", folder])
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
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], choices=TARGETS)
    parser.add_argument("--rounds", type=int, default=3, help="turns of both sides")
    overhead_sides.shape(parser)
    return parser.parse_args()


def _turn(options: argparse.Namespace, workers: int, store: str, root: Path) -> Turn:
    """One run of each side."""
    turn = {}
    for side in SIDES:
        command = [*overhead_sides.command(options, side, workers), "--store", store, "--root", root / side]
        turn[side] = harness.measure(command)[1:]
    return turn


def _engines(options: argparse.Namespace, store: str, root: Path) -> str:
    """The table of two workers that torch's reducer, or one of DeepSpeed's, keeps together."""
    found: dict[int | None, list[list[float]]] = {stage: [] for stage in (None, *STAGES)}
    for number in range(options.rounds):
        for stage, turns in found.items():
            command = overhead_sides.command(options, "plain", 2) + ["--stage", stage] * (stage is not None)
            command += ["--store", store, "--root", root / f"{number}-{stage}"]
            turns.append(harness.measure(command)[1:])
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
            command = overhead_sides.command(argparse.Namespace(**vars(options) | changes), "ray", 1)
            command += ["--store", store, "--root", root / f"{number}-every-{every}"]
            seconds.append(mean(harness.measure(command)[1:]))
            print(f"round {number + 1}  every {every:,}  {1000 * seconds[-1]:.2f} ms/step", flush=True)
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
