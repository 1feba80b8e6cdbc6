"""No work on padding: pre-training steps on EMOPIA with and without packing, in one run.

    python benchmarks/packing.py --corpora DATA --write      # about five minutes on two cores
    python benchmarks/packing.py --corpora DATA --rounds 1 --steps 1

DATA is the folder that holds EMOPIA_1.0 (default: the environment variable MIDIBERT_CORPORA). Half of the positions
of its segments are padding. Both sides take the same batches of 12 segments under protocol clean with the same masks,
go forward and backward, clip the gradient and step AdamW; four layers of 256. Padded leaves every segment a row of
its own and hides the padding from attention; packed lets short segments share a row (model/packing.py).

Each variant runs in a process of its own; the variants take turns, round after round. `faster` is the median over
rounds of the padded time over the packed one. `loss differs by` is the largest relative difference of the losses of
the same steps with dropout off: which values dropout removes depends on the layout, nothing else does.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import harness

ATTENTIONS = ("relative_key_query", "rope")
SIDES = ("padded", "packed")
SAME = 1e-4


def main() -> None:
    options = _options()
    if options.worker:
        print(json.dumps(make_store(options) if options.worker == "store" else train(options)))
        return
    found: dict[str, list[dict[str, Any]]] = {f"{side} {kind}": [] for kind in ATTENTIONS for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        shared = ["--root", folder, "--corpora", options.corpora, "--steps", options.steps]
        store = harness.measure([sys.executable, __file__, "--worker", "store", *shared])
        for number in range(options.rounds):
            for variant, turns in found.items():
                command = [sys.executable, __file__, "--worker", variant, "--store", store, *shared]
                turns.append(harness.measure(command))
                seconds = " ".join(f"{value:.2f}" for value in turns[-1]["seconds"])
                print(f"round {number + 1}  {variant:<26}  {seconds} s  {turns[-1]['peak_gib']:.1f} GiB", flush=True)
    software = harness.versions("torch", "transformers")
    harness.publish("packing", _table(found, options), options, hardware=harness.machine(), software=software)


def _options() -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--corpora", default=os.environ.get("MIDIBERT_CORPORA", ""), help="folder of EMOPIA_1.0")
    parser.add_argument("--rounds", type=int, default=3, help="turns of all variants")
    parser.add_argument("--steps", type=int, default=6, help="counted steps of a turn, after one that is not")
    for hidden in ("--worker", "--root", "--store"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.corpora:
        parser.error("--corpora is needed: the folder that holds EMOPIA_1.0")
    options.corpora = str(Path(options.corpora).resolve())
    return options


def _config(options: argparse.Namespace, side: str, attention: str, dropout: float) -> Any:
    from midibert_ray.settings.overrides import replace
    from midibert_ray.settings.presets import preset

    changes = {
        "corpora.names": ("emopia",),
        "corpora.root": options.corpora,
        "model.attention": attention,
        "model.dropout": dropout,
        "compute.packing": side == "packed",
        "storage.root": options.root,
        "storage.cache": str(Path(options.root, "cache")),
    }
    return replace(preset("small"), changes)


def make_store(options: argparse.Namespace) -> str:
    """Tokenize EMOPIA; the address of its store."""
    from midibert_ray import pipeline
    from midibert_ray.cli.driver import start_ray

    start_ray()
    config = _config(options, "padded", "rope", 0.0)
    return pipeline.tokenize(pipeline.plan(config))[0].uri


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Steps of one variant in this process: seconds with dropout, losses without."""
    side, attention = options.worker.split()
    seconds, _ = _steps(_config(options, side, attention, 0.1), options)
    peak = harness.peak_gib()
    _, losses = _steps(_config(options, side, attention, 0.0), options)
    return {"seconds": seconds, "losses": losses, "peak_gib": peak}


def _steps(config: Any, options: argparse.Namespace) -> tuple[list[float], list[float]]:
    import torch
    from steps import Updater, timed

    from midibert_ray.data.hashing import row_keys
    from midibert_ray.data.store import TokenStore
    from midibert_ray.training.build import new_model
    from midibert_ray.training.pretrain import PretrainData
    from midibert_ray.training.step import MaskedStep

    torch.set_num_threads(2)
    data = PretrainData(config, [TokenStore.open(options.store, config.storage.cache)])
    model, masking = new_model(config).train(), MaskedStep(config)
    updater, losses = Updater(model.parameters()), []

    def step(number: int) -> None:
        raw = data.train.gather(data.train_rows[data.order.indices(0, number)])
        keys = row_keys(config.seed, 0, number, torch.arange(len(raw.tokens)))
        batch = masking.batch(raw.tokens, raw.length, keys, notes=0, augmented=False)
        loss = masking(model, batch, augmented=False)["loss"] / batch.masked
        loss.backward()
        updater.step()
        losses.append(loss.item())

    return timed(step, warmup=1, steps=options.steps), losses


def _table(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> str:
    rows = []
    for kind in ATTENTIONS:
        padded, packed = (found[f"{side} {kind}"] for side in SIDES)
        times = [[sum(turn["seconds"]) / options.steps for turn in turns] for turns in (padded, packed)]
        faster = median(one / other for one, other in zip(*times, strict=True))
        apart = max(abs(a / b - 1) for a, b in zip(padded[0]["losses"], packed[0]["losses"], strict=True))
        peaks = [max(turn["peak_gib"] for turn in turns) for turns in (padded, packed)]
        row = [kind, f"{median(times[0]):.2f}", f"{median(times[1]):.2f}", f"{faster:.2f} ×"]
        row += [f"{peaks[0]:.2f}", f"{peaks[1]:.2f}", f"{apart:.0e}", harness.verdict(apart, most=SAME)]
        rows.append(row)
    head = ("EMOPIA, 12 segments, 4x256 fp32", "padded s/step", "packed s/step", "faster", "padded GiB", "packed GiB")
    return harness.table((*head, "loss differs by", f"≤ {SAME:.0e}"), rows)


if __name__ == "__main__":
    main()
