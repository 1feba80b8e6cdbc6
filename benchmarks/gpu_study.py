"""Half an hour of one GPU: are the numbers right, how fast is it, and the paper's figures as far as the time goes.

    python benchmarks/gpu_study.py --stores STORES --out study --minutes 25 --write
    python benchmarks/gpu_study.py --stores STORES --out study --minutes 25 model.attention=rope optimizer.lr=1e-4
    python benchmarks/gpu_study.py --out study --rehearse     # all of it with a tiny model on two CPU cores, 5 minutes

STORES is a folder with the token stores of the five corpora, as `midibert tokenize` leaves them in `tokens/` below
`storage.root`. Neither Ray nor DeepSpeed nor MLflow is needed: one device runs the library's own loops of pre-training
and fine-tuning, in plain torch (`plain.py`). Settings on the command line overrule those of this study.

1. *parity*: masks and hidden states of the GPU against the CPU, and bf16 against fp32 (`gpu.py`)
2. *speed*: the table of `gpu.py`, as far as a fifth of the time goes; what does not fit is left out
3. *pre-training* of `--preset base`, for as many epochs as fit into half of the time, by the speed of its first steps
4. *tasks*: melody, velocity, composer and emotion, each pre-trained, from scratch and with both freezings; the rest of
   the time is divided evenly, and a trial whose share is over is tested with its best weights so far

The folder `--out` has `results.md` (figures beside the paper's), `results.json`, `curves.jsonl` and the predictions of
every trial, each file at most 16 MiB; with `--weights` also the encoder in bf16, in shards of that size. What `--work`
(default: beside it) holds is needed only to go on: the same command again does nothing twice, and its time counts from
the start of that command. Accuracies of such a study are those of short trainings; the paper trained for days.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import cycle, product
from pathlib import Path
from typing import Any

import gpu
import harness
import numpy as np
import torch
from plain import PlainEngine

from midibert_ray.data.format import MANIFEST
from midibert_ray.data.store import TokenStore
from midibert_ray.model.midibert import MidiBertForMaskedLM
from midibert_ray.music.tasks import PAPER_TASKS, TASKS
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.presets import preset
from midibert_ray.studies.paper import TABLES
from midibert_ray.training.build import encoder_config, new_model
from midibert_ray.training.engine import Progress
from midibert_ray.training.finetune import Finetuning, finetune
from midibert_ray.training.finetune import new_model as new_classifier
from midibert_ray.training.pretrain import PretrainData, PretrainLoop, run_epochs
from midibert_ray.training.task_data import TaskData

LARGEST = 16 * 2**20
"""Bytes of a file of results."""

SETTINGS = {
    "compute.precision": "bf16",
    "compute.log_every": 50,
    # A GPU is idle with the paper's batch of 12; the rate grows with it, and falls to 0 at the end of the time.
    "pretrain.batch": 96,
    "pretrain.patience": 0,
    "optimizer.lr": 2e-4,
    "optimizer.schedule": "linear",
    "optimizer.warmup_steps": 200,
}
TINY = {
    "tokens.segment": 64,
    "model.layers": 2,
    "model.hidden": 32,
    "model.heads": 2,
    "model.feed_forward": 64,
    "pretrain.batch": 12,
    "optimizer.lr": 1e-3,
    "optimizer.warmup_steps": 5,
    "finetune.lr": 1e-3,
    "finetune.train_segments": 120,
    "compute.log_every": 5,
}
VARIANTS = {
    "pretrained": {},
    "scratch": {"finetune.init": "scratch"},
    "freeze-backbone": {"finetune.freeze": "backbone"},
    "freeze-attention": {"finetune.freeze": "attention"},
}
FIRST_STEPS = 20
MOST_EPOCHS = 500
SHARES = {"speed": 0.25, "pretraining": 0.6}
"""Of the whole time: until when a stage may last, counted from the start."""


class TimeUpError(Exception):
    """A stage has had its time."""


def main() -> None:
    options = _options()
    device = torch.device("cpu" if options.rehearse else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"gpu_study: {harness.NOT_MEASURED}, torch {torch.__version__} sees no GPU on this machine")
        return
    for folder in (options.out, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    own = dict(word.split("=", 1) for word in options.settings)
    config = replace(preset("base"), SETTINGS | (TINY if options.rehearse else {}) | own)
    stores = make_stores(options.work / "stores") if options.rehearse else open_stores(options.stores, options.work)
    study = Study(config, stores, options, device)
    study.numbers("parity", lambda: gpu.checks(study.setting))
    study.numbers("speed", lambda: gpu.rates(study.setting, study.until(SHARES["speed"])))
    study.pretrain()
    study.tune()
    rows = study.publish()
    name = "CPU, rehearsal" if options.rehearse else torch.cuda.get_device_name()
    software = harness.versions("torch", "transformers")
    harness.publish("gpu study", rows, options, hardware=f"one {name}", software=software)


def _options() -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--stores", type=Path, help="folder of token stores")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--work", type=Path, help="folder for what is needed to go on (default: OUT.work)")
    parser.add_argument("--minutes", type=float, help="time for all of it (default: 25; of a rehearsal 4)")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with a tiny model and made-up labels")
    parser.add_argument("--side-by-side", type=int, default=1, help="trials at once: one alone leaves a GPU half idle")
    parser.add_argument("--weights", action="store_true", help="the encoder's weights too, in bf16")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the library")
    options = parser.parse_args()
    if options.write and options.rehearse:
        parser.error("--write is for measurements; a rehearsal has none")
    if not (options.stores or options.rehearse):
        parser.error("--stores is needed: a folder with the token stores of the corpora")
    options.work = options.work or options.out.with_name(f"{options.out.name}.work")
    options.minutes = options.minutes or (4 if options.rehearse else 25)
    return options


class Study:
    """The stages, each of which leaves a file behind and is not done again."""

    def __init__(
        self, config: Config, stores: dict[str, TokenStore], options: argparse.Namespace, device: torch.device
    ) -> None:
        self.config, self.stores, self.device = config, stores, device
        self.out, self.work, self.weights = options.out, options.work, options.weights
        self.side_by_side = options.side_by_side
        self.began, self.seconds = time.monotonic(), 60 * options.minutes
        self.setting = gpu.tiny(device) if options.rehearse else gpu.Setting(device=device)

    def until(self, share: float) -> float:
        """The moment, by the monotonic clock, when a share of the time is over."""
        return self.began + share * self.seconds

    def numbers(self, name: str, rows: Callable[[], Iterator[list[str]]]) -> None:
        """A table of `gpu.py`, kept row by row."""
        path = self.work / f"{name}.json"
        if path.exists():
            return
        found = []
        for row in rows():
            found.append(row)
            print("  ".join(row), flush=True)
        _write(path, found)

    def pretrain(self) -> None:
        """As many epochs as fit, from the last checkpoint if there is one; leaves the encoder in `work/encoder`."""
        done = self.work / "pretraining.json"
        if done.exists():
            return
        data = PretrainData(self.config, list(self.stores.values()))
        config = self._fitted(data)
        steps, state = data.steps(config.pretrain.epochs), self.work / "pretraining.pt"
        engine, progress = PlainEngine(new_model(config), config, steps=steps, device=self.device), Progress()
        if state.exists():
            progress = Progress(**engine.load(state)["progress"])
        loop = PretrainLoop(config, data, engine, rank=0, world=1, device=self.device)
        last: dict[str, Any] = {}

        def report(metrics: dict[str, Any], checkpoint: bool) -> None:
            last.update(metrics)
            self._curve("pretraining", metrics)
            if checkpoint:
                engine.save(state, progress=asdict(progress))
                if time.monotonic() > self.until(SHARES["pretraining"]):
                    raise TimeUpError

        try:
            run_epochs(loop, progress, report)
        except TimeUpError:
            print("pre-training has had its time", flush=True)
        model = MidiBertForMaskedLM(encoder_config(config))
        model.load_state_dict(engine.weights_by_name())
        model.save_pretrained(self.work / "encoder")
        if self.weights:
            model.bfloat16().save_pretrained(self.out / "encoder", max_shard_size=LARGEST - 2**20)
        _write(done, last | {"epochs": progress.epoch, "planned": config.pretrain.epochs, "segments": len(data.train)})

    def _fitted(self, data: PretrainData) -> Config:
        """The configuration with as many epochs as fit into the time, by the speed of its first steps."""
        path = self.work / "epochs.json"
        if not path.exists():
            engine = PlainEngine(new_model(self.config), self.config, steps=1000, device=self.device)
            loop = PretrainLoop(self.config, data, engine, rank=0, world=1, device=self.device)
            # What is compiled or chosen once is not counted.
            seconds = [self._timed_steps(loop, turn) for turn in range(2)][1]
            free = max(self.until(SHARES["pretraining"]) - time.monotonic(), 1.0)
            # A tenth is left for validations and checkpoints.
            epochs = int(0.9 * free / (seconds * data.order.batches_per_epoch))
            _write(path, {"seconds_a_step": seconds, "epochs": min(MOST_EPOCHS, max(1, epochs))})
        epochs = json.loads(path.read_text())["epochs"]
        return replace(self.config, {"pretrain.epochs": epochs, "pretrain.valid_every": max(1, epochs // 10)})

    def _timed_steps(self, loop: PretrainLoop, turn: int) -> float:
        began, per_epoch = time.monotonic(), loop.data.order.batches_per_epoch
        for number in range(turn * FIRST_STEPS, (turn + 1) * FIRST_STEPS):
            loop.step(*divmod(number, per_epoch), number)
        loop.metrics(0)  # waits for the device
        return (time.monotonic() - began) / FIRST_STEPS

    def tune(self) -> None:
        """Four tasks by four variants, side by side; those to come share the time that is left."""
        open_ = [trial for trial in self._trials() if not self._result(*trial).exists()]
        if self.side_by_side == 1:
            for trial in open_:
                self._trial(*trial)
            return
        with ProcessPoolExecutor(self.side_by_side, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(self._trial, *zip(*open_, strict=True)))

    def _trials(self) -> list[tuple[str, str]]:
        return list(product([task.name for task in PAPER_TASKS], VARIANTS))

    def _result(self, task: str, variant: str) -> Path:
        return self.work / f"{task}-{variant}.json"

    def _trial(self, task: str, variant: str) -> None:
        to_come = sum(not self._result(*trial).exists() for trial in self._trials())
        left = max(self.until(1.0) - time.monotonic(), 0)
        until = time.monotonic() + left / max(1, to_come / self.side_by_side)
        config = replace(self.config, {"finetune.task": task} | VARIANTS[variant])
        data = TaskData(config, self.stores[TASKS[task].corpus])
        model = new_classifier(config, data, str(self.work / "encoder"))
        job = Finetuning(config, data, model, self.device)

        def report(metrics: dict[str, Any], _: object) -> None:
            self._curve(f"{task}-{variant}", metrics)
            if time.monotonic() > until:
                raise TimeUpError

        try:
            predictions = finetune(job, report)
        except TimeUpError:
            job.model.load_state_dict(job.best)
            predictions = job.evaluate("test")
        size = np.float16 if data.task.level == "note" else np.float32
        arrays = {name: getattr(predictions, name) for name in ("piece", "segment", "note", "label")}
        arrays = {name: values.astype(np.int32) for name, values in arrays.items()}
        np.savez_compressed(self.out / f"{task}-{variant}.npz", logits=predictions.logits.astype(size), **arrays)
        found = predictions.metrics("test") | {"epochs": job.progress.epoch, "valid": job.progress.accuracy}
        _write(self._result(task, variant), found | {"seconds": job.progress.seconds})
        print(f"{task} {variant}: {found['test/accuracy']:.2%} after {found['epochs']} epochs", flush=True)

    def _curve(self, name: str, metrics: dict[str, Any]) -> None:
        with (self.out / "curves.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"run": name} | metrics) + "\n")

    def publish(self) -> str:
        """Write `results.md` and `results.json`; returns the table of the tasks."""
        found = {path.stem: json.loads(path.read_text()) for path in sorted(self.work.glob("*.json"))}
        _write(self.out / "results.json", found)
        # What was done after the last checkpoint before an interruption was done again.
        lines = (self.out / "curves.jsonl").read_text(encoding="utf-8").splitlines()
        points = {
            (point["run"], point.get("step"), point["epoch"]): line for line in lines if (point := json.loads(line))
        }
        (self.out / "curves.jsonl").write_text("\n".join(points.values()) + "\n", encoding="utf-8")
        figures = harness.table(("", *(task.name for task in PAPER_TASKS)), _figures(found))
        numbers = harness.table(gpu.HEAD, [*found["parity"], *found["speed"]])
        run = found["pretraining"]
        line = f"Pre-training: {run['epochs']} of {run['planned']} epochs over {run['segments']:,} segments"
        if "valid/loss" in run:
            line += f", validation loss {run['valid/loss']:.3f}, accuracy {run['valid/accuracy']:.1%}"
        text = f"{line}; test accuracy in % after so many epochs, beside the paper's.\n\n{figures}"
        (self.out / "results.md").write_text(f"{numbers}\n\n{text}\n", encoding="utf-8")
        large = {path.name for path in self.out.rglob("*") if path.is_file() and path.stat().st_size > LARGEST}
        if large:
            raise RuntimeError(
                f"files of {self.out} are larger than {LARGEST // 2**20} MiB: {', '.join(sorted(large))}"
            )
        return text


def _figures(found: dict[str, Any]) -> list[Sequence[str]]:
    rows = []
    for row in TABLES["3"].rows:
        if row.variant not in VARIANTS:
            continue
        cells = []
        for task in PAPER_TASKS:
            trial = found[f"{task.name}-{row.variant}"]
            accuracy = f"{100 * trial['test/accuracy']:.2f} (paper {row.printed[task.name]:.2f})"
            cells.append(f"{accuracy}, {trial['epochs']}")
        rows.append((row.label, *cells))
    return rows


def open_stores(folder: Path, work: Path) -> dict[str, TokenStore]:
    """The token stores below a folder, by corpus.

    Raises:
        FileNotFoundError: where one that a task of the paper needs is not there.
    """
    places = {json.loads(path.read_text())["corpus"]: path.parent for path in sorted(folder.rglob(MANIFEST))}
    if missing := {task.corpus for task in PAPER_TASKS} - set(places):
        raise FileNotFoundError(f"{folder} has no token store of {', '.join(sorted(missing))}; tokenize these first")
    return {corpus: TokenStore.open(str(place), str(work / "cache")) for corpus, place in places.items()}


def make_stores(folder: Path) -> dict[str, TokenStore]:
    """Stores of the 32 songs of the package under the names of the tasks' corpora, with made-up labels."""
    sys.path.append(str(Path(__file__).parents[1]))
    from tests.stores import sample, write_store

    pieces = sample()
    for task in PAPER_TASKS:
        if not (folder / task.corpus).exists():
            labels = {split: cycle(task.classes) for _, split, *_ in pieces}  # each split has all
            named = [(*piece[:2], next(labels[piece[1]]), piece[3]) for piece in pieces]
            write_store(folder / task.corpus, named, task.corpus)
    return open_stores(folder, folder)


def _write(path: Path, value: object) -> None:
    scratch = path.with_name(f"{path.name}.new")
    scratch.write_text(json.dumps(value, indent=1), encoding="utf-8")
    scratch.replace(path)


if __name__ == "__main__":
    main()
