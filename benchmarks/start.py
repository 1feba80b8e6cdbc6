"""Where the time of `make demo` goes, and what a trial takes beside its training, stage by stage.

    python benchmarks/start.py --write                   # the demo, two to three minutes
    python benchmarks/start.py --preset debug finetune.epochs=1 study.seeds=1
    python benchmarks/start.py --trials 1000 --write     # the last table alone, a quarter of an hour

The main job as `make demo` runs it, with clocks around the functions that its stages consist of, in the driver, in the
processes of Tune and in those of Ray Train. A stage is counted once: what is called within it and has a clock of its
own is not part of it. Seconds are those of a wall clock; `CPU s` are those that the thread at work had a core, which
other programs of the machine disturb least.

* The first table is the driver's, which waits most of the time; what waiting is for is named.
* The second is a mean over the study's trials. `beyond` is all but training and the validation that belongs to it:
  what the target of five seconds is held against.
* The third counts the CPU seconds of all processes of the job by kind, as the kernel counts them.
* The fourth (`--trials`) is the driver of a study of so many trials, on `--slots` slots that a machine only claims to
  have. Ray Tune and MLflow are real; a trial says at once that it has finished, with the files that a trial leaves.
  Rows are stretches of the study, so that a cost that grows with the trials that are done would show.
"""

import argparse
import functools
import json
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import harness
from stages import Clock, Places, Processes

TARGET_DEMO_S, TARGET_TRIAL_S = 120.0, 5.0
FOLDER = "MIDIBERT_STAGES"
"""Environment variable: where processes leave what their clocks say."""

TRIAL: Places = {
    "midibert_ray.studies.plan:TrialSpec.data": "store and segments",
    "midibert_ray.studies.trial:new_model": "model and optimizer",
    "midibert_ray.training.finetune:Finetuning.__init__": "model and optimizer",
    "midibert_ray.training.finetune:Finetuning.train_epoch": "training",
    "midibert_ray.training.finetune:Finetuning.evaluate": "scoring",
    "midibert_ray.training.finetune:Finetuning.save": "checkpoints",
    "midibert_ray.training.finetune:Finetuning.save_pretrained": "checkpoints",
    "midibert_ray.studies.trial:write_digests": "checkpoints",
    "midibert_ray.studies.trial:verify": "checkpoints",
    "midibert_ray.studies.trial:calibrate": "calibration",
    "ray.tune:report": "reports (waits for the driver)",
}
WORKER: Places = {
    "midibert_ray.training.worker:open_store": "store and segments",
    "midibert_ray.training.worker:PretrainData": "store and segments",
    "midibert_ray.training.worker:new_model": "model and engine",
    "midibert_ray.training.engine:build": "model and engine",
    "midibert_ray.training.pretrain:PretrainLoop.step": "training",
    "midibert_ray.training.pretrain:PretrainLoop.validate": "validation",
    "midibert_ray.training.worker:_send_checkpoint": "checkpoints",
    "midibert_ray.training.worker:Points.send": "reports",
}
DRIVER: Places = {
    "midibert_ray.pipeline:plan": "plan",
    "midibert_ray.cli.dry_run:describe_plan": "plan",
    "midibert_ray.cli.driver:start_ray": "Ray starts",
    "midibert_ray.pipeline:tokenize": "tokenizing",
    "midibert_ray.studies.study:open_specs": "plan",
    "midibert_ray.studies.study:_fit": "waits for the trials",
    "midibert_ray.tracking.writer:Writer.__call__": "MLflow",
    "midibert_ray.report.publish:_baselines": "baselines, plain features included",
    "midibert_ray.pipeline:publish": "tables and pictures",
    "midibert_ray.studies.recorder:Recorder.on_trial_result": "trials' results, but for MLflow",
    "midibert_ray.studies.recorder:Recorder.on_trial_complete": "trials' results, but for MLflow",
    "midibert_ray.pipeline:song": "the page of a song",
    "midibert_ray.pipeline:outcome": "report",
}


def _leave(kind: str, **content: Any) -> None:
    """Append what a process found to the folder of the benchmark."""
    with Path(os.environ[FOLDER], f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind, "pid": os.getpid(), **content}) + "\n")


def timed_spec(space: dict[str, Any], **settings: Any) -> None:
    """`run_spec` with clocks; in a process of Tune, a thread a trial."""
    begin, clock = time.time(), Clock()
    from midibert_ray.studies import trial
    from midibert_ray.training import launch

    launch.train_worker = timed_worker
    clock.watch(TRIAL)
    with clock.stage("the rest"):
        trial.run_spec(space, **settings)
    _leave("spec", key=space["spec"].key, begin=begin, end=time.time(), seconds=clock.seconds)


def timed_worker(task: dict[str, Any]) -> Any:
    """`train_worker` with clocks; in a process of Ray Train."""
    begin, clock = time.time(), Clock()
    from midibert_ray.training import worker

    clock.watch(WORKER)
    with clock.stage("the rest"):
        done = worker.train_worker(task)
    _leave("worker", key=task["key"], begin=begin, end=time.time(), seconds=clock.seconds)
    return done


def main() -> None:
    options, words = _options()
    if options.worker:
        worker = _many(options) if options.trials else _demo(words, Path(options.worker))
        print(json.dumps(worker))
        return
    if options.trials:
        with tempfile.TemporaryDirectory() as folder:
            marks = harness.measure([sys.executable, __file__, *sys.argv[1:], "--worker", folder])
        facts = {"hardware": harness.machine(), "software": harness.versions("ray", "mlflow")}
        harness.publish("start driver", _driver_growth(marks, options), options, **facts)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = harness.measure([sys.executable, __file__, *words, "--worker", folder])
        left = [json.loads(line) for file in Path(folder).glob("*.jsonl") for line in file.open(encoding="utf-8")]
    software = harness.versions("ray", "torch", "mlflow")
    facts = {"hardware": harness.machine(), "software": software}
    harness.publish("start demo", _driver_table(found), options, **facts)
    harness.publish("start trial", _trial_table(left), options, **facts)
    harness.publish("start processes", _process_table(found), options, **facts)


def _options() -> tuple[argparse.Namespace, list[str]]:
    parser = harness.parser(__doc__)
    parser.add_argument("--trials", type=int, default=0, help="a study of so many trials that take no time")
    parser.add_argument("--slots", type=int, default=16, help="of them at once")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_known_args()


def _demo(words: list[str], folder: Path) -> dict[str, Any]:
    """The main job, with clocks."""
    os.environ[FOLDER], clock, begin = str(folder), Clock(), time.perf_counter()
    with Processes() as processes, clock.stage("the rest"):
        with clock.stage("imports"):
            from midibert_ray.cli.main import execute as run
            from midibert_ray.studies import study

            clock.watch(DRIVER)
            study.run_spec = timed_spec
        words = [*(words or ["--preset", "demo"]), f"storage.root={folder / 'root'}"]
        code = run(["pipeline", *words])
        with clock.stage("Ray ends"):
            import ray

            ray.shutdown()
    assert not code, f"the job ended with {code}"
    total = time.perf_counter() - begin
    return {"total": total, "seconds": clock.seconds, "processes": processes.table()}


Mark = list[float]
"""CPU seconds of the driver so far, its wall clock, calls of MLflow's client, and resident MiB."""


def _many(options: argparse.Namespace) -> list[Mark]:
    """A mark before the study, and one after each trial that has ended."""
    import psutil
    import ray

    from midibert_ray import pipeline
    from midibert_ray.report import plots
    from midibert_ray.settings.overrides import replace
    from midibert_ray.settings.presets import preset
    from midibert_ray.studies import recorder, study

    changes = {"storage.root": options.worker, "study.variants": ("scratch",), "study.seeds": options.trials}
    plan = pipeline.plan(
        replace(preset("debug"), changes | {"compute.max_concurrent_trials": options.slots}), study=True
    )
    ray.init("local", num_cpus=options.slots, log_to_driver=False)
    pipeline.tokenize(plan)
    own, calls, marks = psutil.Process(), _count_calls(), list[Mark]()

    def mark() -> None:
        marks.append([time.process_time(), time.perf_counter(), calls[0], own.memory_info().rss / 2**20])

    ended = recorder.Recorder.on_trial_complete

    def marked(*args: Any, **info: Any) -> None:
        ended(*args, **info)
        mark()

    recorder.Recorder.on_trial_complete, study.run_spec = marked, instant_spec
    mark()
    done = study.study(plan.study, plots.answers)
    assert len(done.outcomes) == options.trials, done.failed
    ray.shutdown()  # which would write to the console behind the marks
    return marks


def _count_calls() -> list[int]:
    """Count the calls of MLflow's client from outside of it."""
    from midibert_ray.tracking import client

    calls, within = [0], threading.local()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **settings: Any) -> Any:
            if getattr(within, "mlflow", False):
                return function(*args, **settings)
            calls[0], within.mlflow = calls[0] + 1, True
            try:
                return function(*args, **settings)
            finally:
                within.mlflow = False

        return call

    for name, function in vars(client.MlflowClient).items():
        if callable(function) and not name.startswith("_"):
            setattr(client.MlflowClient, name, counted(function))
    return calls


def instant_spec(space: dict[str, Any], *, study: str, folder: str, console: Any) -> None:
    """A trial that has nothing to learn: two epochs, an outcome and its files, at once."""
    from midibert_ray.studies import result, trial

    spec = space["spec"]
    for epoch in (1, 2):
        figures = {"train/loss": 1 / epoch, "valid/loss": 1 / epoch, "valid/accuracy": 0.5, "valid/best": 0.5}
        trial._report(spec.key, figures | {"epoch": epoch}, None)
    pieces = {f"{number:03d}": [5, 8, 1] for number in range(5)}
    figures = {"valid/best": 0.5, "test/accuracy": 0.625, "test/loss": 1.0, "test/f1": 0.6}
    matrix = [[15, 5, 0], [5, 10, 0], [0, 5, 0]]
    about = {"classes": list(spec.task.classes), "confusion": matrix, "pieces": pieces, "seconds": 0.0, "devices": 1.0}
    outcome = result.TrialResult(
        trial=spec.trial.name, **spec.trial.tags, melody=spec.task.melody, epoch=2, metrics=figures, **about
    )
    origin = result.Provenance(study=study, encoder="", config={})
    content = {result.PREDICTIONS: b"predictions"}
    trial._report(spec.key, figures | {"epoch": 2}, lambda path: result.write(path, outcome, origin, content))


def _driver_growth(marks: list[Mark], options: argparse.Namespace) -> str:
    """Stretches of a tenth of the trials; the first, in which processes start, is not judged."""
    edges = [round(part * options.trials / 10) for part in range(11)]
    rows, costs = [], []
    for start, end in pairwise(edges):
        cpu, wall, calls, _ = (
            (after - before) / (end - start) for before, after in zip(marks[start], marks[end], strict=True)
        )
        costs.append(cpu)
        rows.append(
            [f"{start + 1:,} to {end:,}", f"{cpu:.3f}", f"{wall:.3f}", f"{calls:.1f}", f"{marks[end][3]:.0f}", "", ""]
        )
    growth = mean(costs[-3:]) / mean(costs[1:4])
    verdict = ["≤ 1.1 ×", harness.verdict(growth, most=1.1)]
    rows.append(["last three by second to fourth", f"{growth:.2f} ×", "", "", "", *verdict])
    head = (
        f"trials of {options.trials:,}, {options.slots} slots",
        "CPU s a trial",
        "s a trial",
        "MLflow calls a trial",
    )
    return harness.table((*head, "driver MiB", "target", "holds"), rows)


def _driver_table(found: dict[str, Any]) -> str:
    stages = sorted(found["seconds"].items(), key=lambda item: -item[1][0])
    rows = [[name, f"{wall:.1f}", f"{cpu:.1f}", f"{wall / found['total']:.0%}", "", ""] for name, (wall, cpu) in stages]
    total = [f"{found['total']:.1f}", f"{sum(cpu for _, (_, cpu) in stages):.1f}", "100%", f"≤ {TARGET_DEMO_S:.0f} s"]
    rows.append(["make demo, once installed", *total, harness.verdict(found["total"], most=TARGET_DEMO_S)])
    return harness.table(("driver", "s", "CPU s", "share", "target", "holds"), rows)


def _trial_table(left: list[dict[str, Any]]) -> str:
    trials = [item for item in left if item["kind"] == "spec" and not item["key"].startswith("pretrain-")]
    workers = [item for item in left if item["kind"] == "worker"]
    rows = [[f"pre-training: {name}", f"{wall:.2f}", f"{cpu:.2f}", "", ""] for name, wall, cpu in _means(workers)]
    rows += [[f"a trial: {name}", f"{wall:.2f}", f"{cpu:.2f}", "", ""] for name, wall, cpu in _means(trials)]
    gap = _gap(trials)
    rows.append(["a trial: from the one before it", f"{gap:.2f}", "", "", ""])
    beyond = gap + sum(wall for name, wall, _ in _means(trials) if name not in ("training", "scoring"))
    own_cpu = sum(cpu for name, _, cpu in _means(trials) if name not in ("training", "scoring"))
    target = [f"≤ {TARGET_TRIAL_S:.0f} s", harness.verdict(beyond, most=TARGET_TRIAL_S)]
    rows.append([f"beyond training and scoring, {len(trials)} trials", f"{beyond:.2f}", f"{own_cpu:.2f}", *target])
    return harness.table(("stage", "s", "CPU s", "target", "holds"), rows)


def _means(items: list[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """Stage, mean seconds and mean CPU seconds, longest first."""
    names = {name for item in items for name in item["seconds"]}
    found = [
        (name, *(mean(item["seconds"].get(name, (0, 0))[at] for item in items) for at in (0, 1))) for name in names
    ]
    return sorted(found, key=lambda stage: -stage[1])


def _gap(trials: list[dict[str, Any]]) -> float:
    """Mean seconds from the end of a trial to the begin of the next one in the same process."""
    by_process: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for item in sorted(trials, key=lambda item: item["begin"]):
        by_process[item["pid"]].append(item)
    gaps = [after["begin"] - before["end"] for own in by_process.values() for before, after in pairwise(own)]
    return mean(gaps) if gaps else 0.0


def _process_table(found: dict[str, Any]) -> str:
    kinds = sorted(found["processes"].items(), key=lambda item: -item[1][1])
    total = sum(seconds for _, (_, seconds) in kinds)
    rows = [[name, str(count), f"{seconds:.1f}", f"{seconds / total:.0%}"] for name, (count, seconds) in kinds]
    rows.append(["all", str(sum(count for _, (count, _) in kinds)), f"{total:.1f}", "100%"])
    return harness.table(("processes", "number", "CPU s", "share"), rows)


if __name__ == "__main__":
    main()
