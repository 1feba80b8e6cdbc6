"""How well a study fills its slots: the time it takes beside the ideal packing of its trials.

    python benchmarks/study.py --write
    python benchmarks/study.py --seeds 1 --epochs 1   # a look

Real trials on the 32 songs of the package, pre-training included: {melody, velocity} x {pre-trained, frozen backbone,
frozen attention, from scratch} x seeds, two at a time, one thread each. A piece of work counts from the first
step to the last score, as it says itself; processes, imports, data, checkpoints and MLflow are what the study adds.
`ideal` is the shortest packing of these times on two slots that one can hope for: longest first, each on the slot that
is free first, trials of the encoder after it. `study` is the wall time from the call to the tables. A trial's time
is taken within the study, where two run side by side, so that the memory that they share weighs on both timings.
"""

import argparse
import heapq
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import harness

SLOTS = 2
TARGET = 1.2


def main() -> None:
    options = _options()
    if options.worker:
        print(json.dumps(_study(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = harness.measure([sys.executable, __file__, *sys.argv[1:], "--worker", folder])
    software = harness.versions("ray", "torch", "mlflow")
    harness.publish("study", _table(found), options, hardware=harness.machine(), software=software)


def _options() -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=2, help="seeds a cell")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of a trial")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def _study(options: argparse.Namespace) -> dict[str, Any]:
    import ray

    from midibert_ray import pipeline, tracking
    from midibert_ray.settings.overrides import replace
    from midibert_ray.settings.presets import preset

    changes = {
        "storage.root": options.worker,
        "study.variants": ("pretrained", "freeze-backbone", "freeze-attention", "scratch"),
        "study.seeds": options.seeds,
        "finetune.epochs": options.epochs,
        "finetune.patience": 0,
        "compute.workers": 1,
        "compute.max_concurrent_trials": SLOTS,
    }
    plan = pipeline.plan(replace(preset("debug"), changes), study=True)
    ray.init("local", num_cpus=SLOTS, log_to_driver=False)
    pipeline.tokenize(plan)
    begin = time.perf_counter()
    result = pipeline.study(plan)
    seconds = time.perf_counter() - begin
    tracker = tracking.Tracker(tracking.uris(plan.config))
    (run,) = tracker.parents(tracking.PRETRAINING)
    rates = tracker.curve(run.info.run_id, "throughput/steps_per_s")
    steps = max(step for step, _ in rates)
    return {
        "study": seconds,
        "encoder": steps * len(rates) / sum(rate for _, rate in rates),
        "tuned": [item.seconds for item in result.outcomes if item.variant != "scratch"],
        "free": [item.seconds for item in result.outcomes if item.variant == "scratch"],
    }


def ideal(encoder: float, tuned: Sequence[float], free: Sequence[float]) -> float:
    """Seconds of a packing on the slots: the encoder first, its trials after it, whatever is longest first."""
    slots = [(encoder, True)] + [(0.0, False)] * (SLOTS - 1)
    heapq.heapify(slots)
    waiting, ready = sorted(tuned, reverse=True), sorted(free, reverse=True)
    while waiting or ready:
        now, _ = heapq.heappop(slots)
        if waiting and now >= encoder:
            ready, waiting = sorted([*ready, *waiting], reverse=True), []
        if not ready:
            heapq.heappush(slots, (encoder, False))
            continue
        heapq.heappush(slots, (now + ready.pop(0), False))
    return max(now for now, _ in slots)


def _table(found: dict[str, Any]) -> str:
    best = ideal(found["encoder"], found["tuned"], found["free"])
    work = [*found["tuned"], *found["free"]]
    ratio = found["study"] / best
    row = [
        f"{len(work)} trials and their pre-training, {SLOTS} slots",
        f"{sum(work) / len(work):.1f}",
        f"{found['encoder']:.1f}",
        f"{best:.1f}",
        f"{found['study']:.1f}",
        f"{ratio:.2f} ×",
        f"≤ {TARGET} ×",
        harness.verdict(ratio, most=TARGET),
    ]
    head = ("study", "s a trial", "s pre-training", "ideal s", "study s", "study / ideal", "target", "holds")
    return harness.table(head, [row])


if __name__ == "__main__":
    main()
