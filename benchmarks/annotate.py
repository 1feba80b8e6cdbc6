"""MIDI files to labelled MIDI files: ours beside the authors' melody tool, with models of one shape, in one run.

    MIDIBERT_CORPORA=/data python benchmarks/annotate.py --size 4x256 --write      # about five minutes
    MIDIBERT_CORPORA=/data python benchmarks/annotate.py --size 12x768 --write     # about fifteen minutes
    python benchmarks/annotate.py --size 4x256 --threads 1 --kernels --write
    python benchmarks/annotate.py --size 4x256 --files 2 --rounds 1                # on songs of the package

The authors' tool (peer_melody.py) reads a file with miditoolkit, makes events note by note, runs chunks of 512 that do
not overlap through `transformers==4.40.2` with `relative_key_query`, and writes a MIDI file. Ours is what `annotate`
does with one actor: the file read in a child process, windows of 512 of which a quarter is seen twice, averaged,
calibrated or not, and the whole file written again with a track a label. Weights are random: they do not change the
work.

The `bare products` are the matrix products of one forward pass over each note once (products.py), without anything
else: no tool that computes this model by these products is faster on this machine.

With `--kernels` also by kernels that ours does not use (products.py): fp32 by torch's own (MKL), int8, and int8 with
finding the range of each layer's input and rounding it. `int8 layers` is the job in bf16 with layers that do so.

Both go through the same files, turn by turn, on the same number of threads. `faster` is the median over rounds of their
time over ours; `ms a note` the median over rounds. `outside the model` is the share of our time that is not spent in
the model's forward pass. On one thread all seconds are CPU seconds of the process that has the model; the child that
reads files beside it does not count then.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import harness
from pretrain_step import SIZES

AUTHORS = "authors' melody tool, fp32"
INT8 = "relative_key_query bf16, int8 layers"
OURS = ("relative_key_query fp32", "relative_key_query bf16")
BARE = ("bare products fp32", "bare products bf16")
OTHER_KERNELS = ("bare products fp32, MKL", "bare products int8", "bare products int8, quantized")
REQUIREMENTS = (
    "torch==2.13.0",
    "transformers==4.40.2",
    "numpy==1.26.4",
    "miditoolkit==0.1.14",
    "mido==1.2.10",
    "scipy==1.13.1",
    "matplotlib==3.9.2",
)
LEAST_FASTER, MOST_OUTSIDE = 20.0, 0.25


def main() -> None:
    options = _options()
    if options.worker:
        print(json.dumps(bare(options) if options.worker in BARE + OTHER_KERNELS else ours(options)))
        return
    python = harness.environment("authors-tool", REQUIREMENTS, options.environments)
    files, name = harness.music(options.corpora, options.files)
    variants = (AUTHORS, *OURS, *((INT8, *BARE, *OTHER_KERNELS) if options.kernels else BARE))
    found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
    for number in range(options.rounds):
        for variant, results in found.items():
            results.append(harness.measure(_command(variant, python, options), files))
            seconds, notes = sum(results[-1]["seconds"]), sum(results[-1]["notes"])
            print(f"round {number + 1}  {variant:<28}  {1000 * seconds / notes:8.2f} ms a note", flush=True)
    rows = [_row(variant, found) for variant in found]
    head: tuple[str, ...] = (f"{options.size}, {len(files)} pieces of {name}", "ms a note", "faster", "target", "holds")
    head += ("outside the model", f"≤ {MOST_OUTSIDE:.0%}")
    software = f"ours: {harness.versions('torch', 'transformers', 'symusic', 'pretty_midi')}; authors' tool: "
    software += harness.versions("torch", "transformers", "miditoolkit", python=python)
    hardware = f"{harness.machine()}, {options.threads} threads"
    harness.publish(
        f"annotate {options.size}{' kernels' if options.kernels else ''}",
        harness.table(head, rows),
        options,
        hardware=hardware,
        software=software,
    )


def _options() -> argparse.Namespace:
    parser = harness.parser(__doc__)
    root = os.environ.get("MIDIBERT_CORPORA", "")
    parser.add_argument("--corpora", default=root, help="folder of POP909; else the package's songs")
    parser.add_argument("--size", choices=SIZES, default="4x256", help="layers x width")
    parser.add_argument("--kernels", action="store_true", help="also by kernels that ours does not use")
    parser.add_argument("--files", type=int, default=6, help="pieces, evenly out of the list")
    parser.add_argument("--rounds", type=int, default=3, help="turns of all variants")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--environments", default=harness.ENVIRONMENTS, help="where the authors' packages go")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def _command(variant: str, python: Path, options: argparse.Namespace) -> list[object]:
    if variant != AUTHORS:
        return [sys.executable, __file__, "--worker", variant, "--size", options.size, "--threads", options.threads]
    names = ("--layers", "--hidden", "--heads", "--feed-forward", "--threads")
    shape = zip(names, (*SIZES[options.size], options.threads), strict=True)
    return [python, Path(__file__).with_name("peer_melody.py"), *(word for pair in shape for word in pair)]


def ours(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of all files (names on standard input), seconds of these in the model, and notes."""
    import products

    from midibert_ray.inference.plan import plan
    from midibert_ray.inference.state import State
    from midibert_ray.inference.worker import JobSpec, Worker

    with tempfile.TemporaryDirectory() as scratch:
        music, model = Path(scratch, "music"), _model(Path(scratch, "model"), options)
        music.mkdir()
        for number, file in enumerate(json.load(sys.stdin)):
            shutil.copyfile(file, music / f"{number}.mid")
        spec = JobSpec(kind="annotate", model=model, output=f"{scratch}/out", formats=("midi",))
        made = plan(replace(spec, precision=options.worker.split()[1].strip(",")), str(music))
        spec = replace(made.spec, threads=options.threads)
        State(spec.state).begin(made.settings)
        worker: Any = Worker(spec)
        if options.worker == INT8:
            products.to_int8(worker._model.encoder)
        first = next(iter(made.open))
        worker.do({first: made.open[first]})  # starts the children
        spent = _in_model(worker, harness.clock(options.threads))
        clock = harness.clock(options.threads)
        start = clock()
        records = worker.do(made.open)
        seconds = clock() - start
        worker.close()
    if any(row["reason"] for row in records):
        raise ValueError(f"files that give nothing: {records}")
    return {"seconds": [seconds], "forward": [sum(spent)], "notes": [row["notes"] for row in records]}


def bare(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of the matrix products of the model, and the notes that they are for."""
    import products
    import torch

    torch.set_num_threads(options.threads)
    rows, length = 4, 512
    shape = {"rows": rows, "length": length}
    if options.worker in OTHER_KERNELS:
        kernel = options.worker.removeprefix("bare products ")
        seconds = products.seconds_by(kernel, *SIZES[options.size], **shape)
    else:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.worker.split()[-1]]
        seconds = products.seconds(*SIZES[options.size], **shape, dtype=dtype)
    return {"seconds": [seconds], "forward": [seconds], "notes": [rows * length]}


def _model(folder: Path, options: argparse.Namespace) -> str:
    """An export with random weights."""
    import torch

    from midibert_ray.model.folder import save_export
    from midibert_ray.model.heads import MidiBertForNotes
    from midibert_ray.model.midibert import MidiBertConfig

    torch.manual_seed(0)
    layers, hidden, heads, feed_forward = SIZES[options.size]
    config = MidiBertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=feed_forward,
        attention=options.worker.split()[0],
        num_classes=3,
    )
    return str(save_export(MidiBertForNotes(config), folder))


def _in_model(worker: Any, clock: Callable[[], float]) -> list[float]:
    """Seconds of the calls of a worker's model from now on."""
    spent: list[float] = []
    annotator = worker._model
    for module in (annotator.encoder, annotator.model.head):
        module.register_forward_pre_hook(lambda *_: spent.append(-clock()))
        module.register_forward_hook(lambda *_: spent.append(clock()))
    return spent


def _row(variant: str, found: dict[str, list[dict[str, Any]]]) -> list[str]:
    def per_note(name: str) -> list[float]:
        return [1000 * sum(each["seconds"]) / sum(each["notes"]) for each in found[name]]

    own, theirs = per_note(variant), per_note(AUTHORS)
    outside = median(1 - sum(each["forward"]) / sum(each["seconds"]) for each in found[variant])
    row = [variant, f"{median(own):.2f}"]
    if variant == AUTHORS:
        return [*row, "1", "", "", f"{outside:.0%}", ""]
    faster = median(x / y for x, y in zip(theirs, own, strict=True))
    if variant in BARE + OTHER_KERNELS:
        return [*row, f"{faster:.1f} ×", "", "", "", ""]
    target = [f"{faster:.1f} ×", f"≥ {LEAST_FASTER:g} ×", harness.verdict(faster, least=LEAST_FASTER)]
    return [*row, *target, f"{outside:.0%}", harness.verdict(outside, most=MOST_OUTSIDE)]


if __name__ == "__main__":
    main()
