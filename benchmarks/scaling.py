"""How a step scales with workers: simulated from parts that are measured here, beside what others have published.

    python benchmarks/scaling.py --write             # a minute on two cores
    python benchmarks/scaling.py --rate 200000       # another GPU: super tokens a second that one takes

The simulation knows the seconds of forward pass, backward pass and optimizer of one worker, and how long a reduction
takes. Gradients go in buckets, which are ready one after the other while the backward pass runs; a ring of n workers
sends 2 (n - 1) / n of a bucket's bytes over its slowest link, and waits 2 log2(n) times for that link's latency. The
step ends when the last bucket has come, and the optimizer has run.

* CPU: the parts are measured, on one thread, as CPU seconds, which a busy machine disturbs least: the step of the model
  that `overhead.py` takes (4 x 256, rope, fp32, 12 segments of 512 divided over the workers), and a reduction over gloo
  between two processes of this machine. A reduction takes its CPU seconds from the backward pass, as a core is all that
  a worker has.
* GPU: the paper's model, of which the parameters are counted; the rate is what `gpu.py` measured on one H100,
  eager (`rope`, bf16); forward, backward and optimizer share a step as 1 : 2 : 0.1. Eight GPUs a node.

Published: BERT-large, mixed precision, 14 segments a GPU, one DGX-1 of eight V100 (NVIDIA/DeepLearningExamples, README
of BERT, March 2019). It is weak scaling on another machine: it shows what share is lost in practice, not our seconds.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import harness

PUBLISHED = {1: 1.0, 4: 3.87 / 4, 8: 7.65 / 8}
"""Efficiency by GPUs."""
NVLINK, NVLINK_S = 300e9, 5e-6
"""Bytes a second of one GPU's links within a node (H100: 450 by the data sheet, of which NCCL gets two thirds), and the
latency of a hop."""
NETWORK_S, NETWORK_SHARE = 20e-6, 0.85
"""Latency of a hop between nodes, and the share of a network's bits that NCCL gets out of it."""
GPUS = 8
GBITS, NODES, SEGMENTS = (25, 100, 400), (1, 2, 16), (12, 96, 768)
BUCKETS = 8


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a step of one worker consists of."""

    forward: float
    backward: float
    optimizer: float
    """Seconds each."""
    bytes: float
    """That are reduced."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """The slowest link of a ring."""

    bandwidth: float
    """Bytes a second."""
    latency: float
    """Seconds of a hop."""
    takes_core: bool = False
    """Sending keeps the worker from its own arithmetic."""


def step(parts: Parts, workers: int, link: Link, buckets: int = BUCKETS) -> float:
    """Seconds of a step of so many workers, each of which does all of `parts`."""
    sent = 2 * (workers - 1) / workers * parts.bytes / buckets
    reduction = sent / link.bandwidth + 2 * math.log2(workers) * link.latency if workers > 1 else 0.0
    now = end = parts.forward
    for _ in range(buckets):
        now += parts.backward / buckets
        end = max(now, end) + reduction
        if link.takes_core:
            now = end
    return max(now, end) + parts.optimizer


def main() -> None:
    options = _options()
    if options.worker:
        print(json.dumps({"parts": _parts, "gloo": _gloo, "parameters": _parameters}[options.worker]()))
        return
    parts, gloo, parameters = (
        harness.measure([sys.executable, __file__, "--worker", worker]) for worker in ("parts", "gloo", "parameters")
    )
    facts = {"hardware": harness.machine(), "software": harness.versions("torch")}
    harness.publish("scaling", _cpu_table(parts, gloo), options, **facts)
    harness.publish("scaling nodes", _gpu_table(parameters, options.rate), options, **facts)


def _options() -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--rate", type=float, default=472_915, help="super tokens a second of one GPU")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def _parts() -> list[dict[str, float]]:
    """The parts for 12, 6, 3 and 2 segments a worker: of one, two, four and eight workers."""
    import steps
    import torch

    from midibert_ray.model.midibert import mlm_loss
    from midibert_ray.settings.overrides import replace
    from midibert_ray.settings.presets import preset
    from midibert_ray.training.build import new_model

    torch.set_num_threads(1)
    model = new_model(replace(preset("small"), {"model.attention": "rope"})).train()
    updater = steps.Updater(model.parameters())
    found = []
    for segments in (12, 6, 3, 2):
        tokens = steps.random_batch(segments, 512)
        where = torch.rand(segments, 512, generator=torch.Generator().manual_seed(0)) < 0.15
        rounds = []
        for _ in range(4):
            times = [time.thread_time()]
            loss = mlm_loss(model(tokens, where=where).logits, tokens[where])["loss"]
            times.append(time.thread_time())
            loss.backward()
            times.append(time.thread_time())
            updater.step()
            times.append(time.thread_time())
            rounds.append([after - before for before, after in pairwise(times)])
        forward, backward, optimizer = (median(column) for column in zip(*rounds[1:], strict=True))
        size = 4 * sum(parameter.numel() for parameter in model.parameters())
        found.append({"forward": forward, "backward": backward, "optimizer": optimizer, "bytes": size})
    return found


def _gloo() -> dict[str, float]:
    """What a reduction over gloo takes of a core: bytes a second that go out, and seconds for next to nothing."""
    import torch.multiprocessing

    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_reduce, (folder,), nprocs=2)
        return json.loads(Path(folder, "found.json").read_text())


def _reduce(rank: int, folder: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    seconds = {}
    for count in (1, 4 << 20):
        values, taken = torch.ones(count), []
        for _ in range(12):
            begin = time.process_time()
            dist.all_reduce(values)
            taken.append(time.process_time() - begin)
        seconds[count] = median(taken[2:])
    if rank == 0:
        bandwidth = 4 * (4 << 20) / (seconds[4 << 20] - seconds[1])  # of two, each sends as much as there is
        found = {"bandwidth": bandwidth, "latency": seconds[1] / 2}
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _parameters() -> int:
    """Those of the paper's model."""
    from midibert_ray.settings.presets import preset
    from midibert_ray.training.build import new_model

    return sum(parameter.numel() for parameter in new_model(preset("base")).parameters())


def _cpu_table(parts: list[dict[str, float]], gloo: dict[str, float]) -> str:
    link, rows = Link(**gloo, takes_core=True), []
    alone = step(Parts(**parts[0]), 1, link)
    for workers, own in zip((1, 2, 4, 8), parts, strict=True):
        seconds, segments = step(Parts(**own), workers, link), (12, 6, 3, 2)[(1, 2, 4, 8).index(workers)]
        rate = workers * segments / seconds
        share = rate / (12 / alone) / workers
        published = f"{PUBLISHED[workers]:.0%}" if workers in PUBLISHED else ""
        row = [f"{workers} × {segments} segments", f"{own['forward'] + own['backward']:.3f}", f"{own['optimizer']:.3f}"]
        rows.append([*row, f"{seconds:.3f}", f"{rate * 512:,.0f}", f"{share:.0%}", published])
    sizes = f"{parts[0]['bytes'] / 1e6:.0f} MB at {gloo['bandwidth'] / 1e9:.2f} GB/s"
    head = (f"CPU, {sizes}", "pass s", "optimizer s", "s/step", "super tokens/s", "efficiency", "published: BERT")
    return harness.table(head, rows)


def _gpu_table(parameters: int, rate: float) -> str:
    rows = []
    for segments in SEGMENTS:
        seconds = segments * 512 / rate
        unit = seconds / 3.1
        parts = Parts(forward=unit, backward=2 * unit, optimizer=0.1 * unit, bytes=4 * parameters)
        for nodes in NODES:
            row = [f"{segments} × 512", f"{nodes} × {GPUS}"]
            for gbits in GBITS:
                wire = Link(bandwidth=NETWORK_SHARE * gbits * 1e9 / 8, latency=NETWORK_S)
                link = Link(bandwidth=NVLINK, latency=NVLINK_S) if nodes == 1 else wire
                share = seconds / step(parts, nodes * GPUS, link)
                row.append(f"{share:.0%}" + (f", {share * nodes * GPUS * rate / 1e6:.1f} M/s" if nodes > 1 else ""))
            if nodes == 1:
                row[2:] = [f"{share:.0%}, {share * GPUS * rate / 1e6:.1f} M/s", "", ""]
            rows.append(row)
    head = ("a GPU and step", "nodes × GPUs", *(f"{gbits} Gbit/s" for gbits in GBITS))
    return harness.table(head, rows)


if __name__ == "__main__":
    main()
