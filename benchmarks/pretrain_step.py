"""A pre-training step on the CPU: ours beside the authors' way, in one run.

    python benchmarks/pretrain_step.py --size 4x256 --write       # about six minutes on two cores
    python benchmarks/pretrain_step.py --size 12x768 --write      # about ten minutes, and 16 GiB of memory
    python benchmarks/pretrain_step.py --memory --write           # about three minutes: what the memory is spent on
    python benchmarks/pretrain_step.py --size 4x256 --rounds 1 --steps 1 --length 64

The authors' way is `transformers==4.40.2` with `position_embedding_type="relative_key_query"` in an environment
that this script makes (see peer_authors.py): fp32, masks drawn in a Python loop, heads over every position.
Ours is the library's model, masking and loss; `bf16` holds the weights in bf16 and updates an fp32 copy. Both
sides mask, go forward and backward, clip the gradient and step AdamW, on the same tokens with as many threads.

Each variant runs in a process of its own, so that its largest memory is its own; the variants take turns, round
after round. `s/step` is the median over the rounds' medians, `faster` the median over rounds of the authors'
time over the variant's in the same round. Memory is the largest resident memory of the process, with Python and
torch themselves.

The rows `bare products` are the limit of the kernels that ours uses (oneDNN's): the products of the layers, forward and
backward, in their shapes and nothing else (products.py), in a process that takes its turn as well. `of limit` is their
time over the variant's, the median over rounds: but for noise, no step by these products comes above 100 %. A missed
target counts as explained from 85 % on.

`--memory` takes the largest resident memory apart: what is resident before the first step (Python, libraries, weights),
the moments that the optimizer makes and keeps, the tensors that are made in a step and live at one time, and the rest:
mostly memory that the C library holds for later and cannot use at the peak. `given back` is the same with
`MALLOC_TRIM_THRESHOLD_` set, by which the C library returns free memory to the system at once.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import harness

AUTHORS = "authors, relative_key_query fp32"
REQUIREMENTS = ("torch==2.13.0", "transformers==4.40.2", "numpy<2")
SIZES = {"4x256": (4, 256, 4, 1024), "12x768": (12, 768, 12, 3072)}
"""Layers, width, heads, width of the feed-forward layers."""

BARE = {"bare products fp32": "fp32", "bare products bf16": "bf16"}
"""The limit of the products, by the precision that it is of."""

TARGETS = {
    "4x256": {
        "relative_key_query fp32": 2.2,
        "relative_key_query bf16": 3.5,
        "rope fp32": 4.0,
        "rope bf16": 5.0,
    },
    "12x768": dict.fromkeys(("relative_key_query fp32", "relative_key_query bf16", "rope fp32", "rope bf16"), 2.5),
}
"""Ours, by how many times it must be faster than the authors' way."""

MEMORY_TARGET = 0.5
GIVEN_BACK = ", given back"
TRIM = {"MALLOC_TRIM_THRESHOLD_": str(2**20)}


def main() -> None:
    options = _options()
    if options.worker:
        print(json.dumps((bare if options.worker in BARE else ours)(options)))
        return
    python = harness.environment("authors", REQUIREMENTS, options.environments)
    variants = (AUTHORS, *TARGETS[options.size])
    variants += tuple(f"{name}{GIVEN_BACK}" for name in variants if "fp32" in name) if options.memory else tuple(BARE)
    found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
    for number in range(options.rounds):
        for variant in variants:
            trim = TRIM if variant.endswith(GIVEN_BACK) else {}
            result = harness.measure(_command(variant.removesuffix(GIVEN_BACK), python, options), **trim)
            found[variant].append(result)
            seconds = " ".join(f"{value:.2f}" for value in result["seconds"])
            print(f"round {number + 1}  {variant:<32}  {seconds} s  {result['peak_gib']:.1f} GiB", flush=True)
    software = f"ours: {harness.versions('torch', 'transformers')}; authors' way: " + harness.versions(
        "torch", "transformers", python=python
    )
    hardware = f"{harness.machine()}, {options.threads} threads"
    table = (_memory_table if options.memory else _table)(found, options)
    name = f"pretrain_step {options.size}{' memory' if options.memory else ''}"
    harness.publish(name, table, options, hardware=hardware, software=software)


def _options() -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="4x256", help="layers x width")
    parser.add_argument("--memory", action="store_true", help="what the memory is spent on")
    parser.add_argument("--rounds", type=int, help="turns of all variants (default: 4, of 12x768 2)")
    parser.add_argument("--steps", type=int, help="counted steps of a turn, after one that is not (default: 3 or 1)")
    parser.add_argument("--batch", type=int, default=12, help="segments a step")
    parser.add_argument("--length", type=int, default=512, help="time steps of a segment")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--environments", default=harness.ENVIRONMENTS, help="where the authors' packages go")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    large = options.size == "12x768"
    options.rounds = options.rounds or (2 if large else 4)
    options.steps = options.steps or (1 if large else 3)
    return options


def _command(variant: str, python: Path, options: argparse.Namespace) -> list[object]:
    shared = [x for name in ("batch", "length", "threads", "steps") for x in (f"--{name}", getattr(options, name))]
    shared += ["--memory"] if options.memory else []
    if variant != AUTHORS:
        return [sys.executable, __file__, "--worker", variant, "--size", options.size, *shared]
    names = ("--layers", "--hidden", "--heads", "--feed-forward")
    shape = [word for pair in zip(names, SIZES[options.size], strict=True) for word in pair]
    return [python, Path(__file__).with_name("peer_authors.py"), *shape, *shared]


def ours(options: argparse.Namespace) -> dict[str, Any]:
    """Steps of one of our variants, in this process."""
    import numpy as np
    import torch
    from steps import Updater, largest_live, random_batch, timed

    from midibert_ray.data.hashing import row_keys
    from midibert_ray.training.build import new_model
    from midibert_ray.training.step import MaskedStep

    attention, precision = options.worker.split()
    torch.set_num_threads(options.threads)
    config = settings(attention, precision, options)
    model, masking = new_model(config).train(), MaskedStep(config)
    model = model.bfloat16() if precision == "bf16" else model
    updater, tokens = Updater(model.parameters()), random_batch(options.batch, options.length).to(torch.uint8).numpy()
    length, rows = np.full(options.batch, options.length), torch.arange(options.batch)

    def step(number: int) -> None:
        batch = masking.batch(tokens, length, row_keys(0, 0, number, rows), notes=tokens.size // 4, augmented=False)
        (masking(model, batch, augmented=False)["loss"] / batch.masked).backward()
        updater.step()

    before = harness.resident_gib()
    found = {"seconds": timed(step, warmup=1, steps=options.steps), "peak_gib": harness.peak_gib()}
    if options.memory:
        found |= {"before_gib": before, "state_gib": updater.state_gib(), "live_gib": largest_live(step)}
    return found


def bare(options: argparse.Namespace) -> dict[str, Any]:
    """The matrix products of a step, in this process."""
    import products
    import torch

    torch.set_num_threads(options.threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[BARE[options.worker]]
    shape = {"rows": options.batch, "length": options.length, "dtype": dtype, "backward": True}
    seconds = [products.seconds(*SIZES[options.size], **shape, turns=3) for _ in range(options.steps)]
    return {"seconds": seconds, "peak_gib": harness.peak_gib()}


def settings(attention: str, precision: str, options: argparse.Namespace) -> Any:
    """Our configuration at the size asked for, under protocol paper."""
    from midibert_ray.settings.overrides import replace
    from midibert_ray.settings.presets import preset

    layers, hidden, heads, feed_forward = SIZES[options.size]
    changes = {"layers": layers, "hidden": hidden, "heads": heads, "feed_forward": feed_forward, "attention": attention}
    changes = {f"model.{name}": value for name, value in changes.items()}
    changes |= {"tokens.protocol": "paper", "tokens.segment": options.length, "compute.precision": precision}
    return replace(preset("base"), changes)


def _table(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> str:
    times = {variant: [median(turn["seconds"]) for turn in turns] for variant, turns in found.items()}
    peaks = {variant: max(turn["peak_gib"] for turn in turns) for variant, turns in found.items()}
    rows = []
    limits = {precision: times[name] for name, precision in BARE.items()}

    def ratio(above: list[float], below: list[float]) -> float:
        return median(one / other for one, other in zip(above, below, strict=True))

    for variant, turns in found.items():
        least = min(min(turn["seconds"]) for turn in turns)
        row = [
            variant,
            f"{least:.2f}",
            f"{median(times[variant]):.2f}",
            f"{ratio(times[AUTHORS], times[variant]):.2f} ×",
        ]
        if variant in BARE:
            rows.append([*row, "", "", "", "", "", ""])
            continue
        close = f"{ratio(limits[variant.split()[-1]], times[variant]):.0%}"
        if variant == AUTHORS:
            rows.append([*row, "", "", close, f"{peaks[variant]:.2f}", "1", ""])
            continue
        target, share = TARGETS[options.size][variant], peaks[variant] / peaks[AUTHORS]
        row += [f"≥ {target} ×", harness.verdict(ratio(times[AUTHORS], times[variant]), least=target), close]
        rows.append([*row, f"{peaks[variant]:.2f}", f"{share:.2f}", harness.verdict(share, most=MEMORY_TARGET)])
    head = (f"{options.size}, {options.batch} × {options.length}", "s/step min", "s/step", "faster", "target", "holds")
    return harness.table((*head, "of limit", "peak GiB", "of theirs", "≤ half"), rows)


def _memory_table(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> str:
    fastest = {variant: min(min(turn["seconds"]) for turn in turns) for variant, turns in found.items()}
    largest = {variant: max(turns, key=lambda turn: turn["peak_gib"]) for variant, turns in found.items()}
    theirs, rows = largest[AUTHORS], []
    for variant, turn in largest.items():
        kept = [turn[f"{name}_gib"] for name in ("before", "state", "live")]
        own = turn["peak_gib"] - turn["before_gib"]
        least = min(each["peak_gib"] for each in found[variant])
        row = [variant, *(f"{value:.2f}" for value in kept), f"{turn['peak_gib'] - sum(kept):.2f}"]
        row += [f"{least:.2f} to {turn['peak_gib']:.2f}", f"{turn['peak_gib'] / theirs['peak_gib']:.2f}"]
        row += [
            f"{own / (theirs['peak_gib'] - theirs['before_gib']):.2f}",
            f"{turn['live_gib'] / theirs['live_gib']:.2f}",
        ]
        slower = fastest[variant] / fastest[variant.removesuffix(GIVEN_BACK)]
        rows.append([*row, f"{slower:.2f} ×" if variant.endswith(GIVEN_BACK) else ""])
    head: tuple[str, ...] = (
        f"{options.size}, {options.batch} × {options.length}, GiB",
        "before a step",
        "optimizer",
        "tensors of a step",
    )
    head += ("the rest", "peak", "of theirs", "of theirs, without before", "tensors, of theirs", "fastest step")
    return harness.table(head, rows)


if __name__ == "__main__":
    main()
