"""A study in MLflow: one parent run, one child a trial, curves by epoch, a picture at the end.

Nothing is read from MLflow here: what it has been given is noted beside the trials.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import cached_property
from typing import Any

from ray import tune

from midibert_ray import storage, tracking
from midibert_ray.settings.overrides import digest, flatten
from midibert_ray.settings.text import clock, plain_name
from midibert_ray.studies import result as results
from midibert_ray.studies.plan import PretrainingSpec, Spec, StudyPlan, TrialSpec
from midibert_ray.studies.result import BEST, METRIC, TrialResult
from midibert_ray.studies.scheduler import FAILURE
from midibert_ray.training import node
from midibert_ray.training.recipes import recipe
from midibert_ray.training.recorder import dataset
from midibert_ray.training.task_data import split_of

logger = logging.getLogger(__name__)
RECORDED = "recorded.json"
"""File of a study: tracking URI -> trial -> digest of the result that has been recorded there."""
FIGURES = "figures.json"
"""Artifact of a trial: its metrics as a table, under the names that MLflow has of earlier runs."""
Picture = Callable[[TrialResult], Any]
"""Draws a trial's result as a matplotlib figure."""


def best(found: Iterable[TrialResult]) -> TrialResult:
    """The result that was best in validation; of equals the first by name. The test split chooses nothing."""
    return min(found, key=lambda result: (-result.metrics[BEST], result.trial))


def _describe(entry: TrialSpec) -> str:
    trial = entry.trial
    start = f"from the encoder of {entry.encoder}" if entry.encoder else "from random weights"
    return f"{trial.task} by {trial.variant}, {start}, protocol {trial.protocol}, seed {trial.seed}."


class StudyLog:
    """The runs of one study; each is opened, or found again, once."""

    def __init__(self, plan: StudyPlan, picture: Picture | None = None) -> None:
        config = plan.config
        self.plan, self.picture = plan, picture
        self._trials: dict[str, tracking.RunLog] = {}
        self.tracker = tracking.Tracker(tracking.uris(config))
        self.experiment = tracking.study_experiment(config.study.name)
        tasks = ", ".join(dict.fromkeys(entry.trial.task for entry in plan.trials.values()))
        note = f"Study {config.study.name}: fine-tuning for {tasks}, a child run a trial."
        tags = {"stage": "study", "study": plan.key, tracking.NOTE: note}
        self.parent = self.tracker.open(self.experiment, plan.key, plan.key, params=flatten(config), tags=tags)
        # What it holds; it may be started again with other cells, which then come beside the first.
        self.parent.extend(
            protocol=[entry.trial.protocol for entry in plan.trials.values()],
            encoder=plan.pretrainings,
            tables=config.study.tables,
        )

    def trial(self, key: str) -> tracking.RunLog:
        """The child run of a trial."""
        if key not in self._trials:
            entry = self.plan.trials[key]
            self._trials[key] = self.tracker.open(
                self.experiment,
                f"{self.plan.key}/{key}",
                entry.trial.name,
                params=flatten(entry.config),
                tags=entry.trial.tags | {"stage": "trial", "encoder": entry.encoder, tracking.NOTE: _describe(entry)},
                parent=self.plan.key,
            )
        return self._trials[key]

    def data(self, key: str) -> None:
        """Name the splits that a trial reads."""
        uses = {"train": "training", "valid": "validation", "test": "testing"}
        spec = self.plan.trials[key]
        own = [dataset(store, split, use) for store in spec.stores for split, use in uses.items()]
        self.trial(key).datasets([*own, *(dataset(store, "test", "testing") for store in spec.tests)])

    def model(self, key: str, checkpoint: str) -> None:
        """Log the model of a finished trial, whose weights stay in its last checkpoint; baselines have none."""
        spec = self.plan.trials[key]
        if spec.config.finetune.model == "midibert":
            self.trial(key).model(checkpoint, spec.task.level, spec.trial.tags)

    def complete(self, run: tracking.RunLog, result: TrialResult, predictions: Mapping[str, bytes]) -> None:
        """Store a trial's result and its predictions, by name of their file, and end its run.

        Its small files go at once, and its figures and tags do: a request costs more than what is in it. Predictions go
        by themselves, as a server may take none of their size.
        """
        name, files = "confusion_matrix" if result.kind == "classes" else "answers", dict[str, bytes]()
        if result.confusion:
            files[f"{name}.json"] = tracking.to_json(result.confusion)
        if self.picture:
            files[f"{name}.png"] = tracking.to_png(self.picture(result))
        files[results.OUTCOME] = result.to_json().encode()
        trivial = {"majority/accuracy": result.majority} if result.kind == "classes" else {}
        costs = {"cost/seconds": result.seconds, "cost/devices": result.devices}
        besides = {
            name.replace("test/", f"{split_of(corpus)}/"): value
            for corpus, found in result.besides.items()
            for name, value in found["metrics"].items()
        }
        metrics = {"epoch": result.epoch, **result.metrics, **trivial, **besides, **costs}
        values = [value if math.isfinite(value) else None for value in metrics.values()]
        files[FIGURES] = tracking.to_table({"figure": [*metrics], "value": values})
        run.files(files)
        for name, content in predictions.items():
            run.data(content, name)
        points = {}
        if result.split == "test":  # by which runs are sorted and compared
            name = f"test/{results.METRIC[result.kind]}"
            points = {
                f"test/{plain_name(corpus)}/{results.METRIC[result.kind]}": found["metrics"][name]
                for corpus, found in result.besides.items()
            }
            points[name] = result.accuracy
        run.log(points, result.epoch, tracking.shown_table(FIGURES))
        run.finish()

    def summarize(self, found: Sequence[TrialResult]) -> None:
        """Add a point to the study's own curves of a task, which run over the number of its finished trials."""
        first, mean = found[0], sum(result.accuracy for result in found) / len(found)
        name, metric = f"{first.protocol}/{first.task}", results.METRIC[first.kind]
        self.parent.log({f"{name}/best_{metric}": best(found).accuracy, f"{name}/mean_{metric}": mean}, len(found))


class Recorder(tune.Callback):
    """Runs in the driver, on every report of every trial.

    Tune pickles callbacks, so runs are opened (or found again) when they are first needed.
    """

    def __init__(self, plan: StudyPlan, picture: Picture | None = None, done: Set[str] = frozenset()) -> None:
        """`done`: keys of the trials that an earlier start of the study has ended."""
        self.plan, self.picture, self.done = plan, picture, done
        self._given_up: set[str] = set()
        self._placed: set[str] = set()
        self._shares: dict[str, float] = dict.fromkeys(done, 1.0)
        self._ended = set(done)
        self._begun: tuple[float, float] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Recorder, (self.plan, self.picture, self.done)

    @cached_property
    def log(self) -> StudyLog:
        return StudyLog(self.plan, self.picture)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Log an epoch's metrics and print a line; pre-trainings are logged by their own controllers."""
        spec: Spec = trial.config["spec"]
        if isinstance(spec, PretrainingSpec):
            return
        points = {key: value for key, value in result.items() if key.partition("/")[0] in ("train", "valid", "test")}
        if not points:
            return
        system = {key: value for key, value in result.items() if key.startswith("system/")}
        curves = {key: value for key, value in points.items() if key.startswith(("train/", "valid/")) and key != BEST}
        first = node.HARDWARE in result and spec.key not in self._placed
        tags = {"hardware": result[node.HARDWARE]} if first else None
        self.log.trial(spec.key).log(curves | system, int(result["epoch"]), tags)
        if first:
            self.log.data(spec.key)
            self._placed.add(spec.key)
        shown = "  ".join(
            f"{key} {value:.3f}" for key, value in points.items() if key.endswith(("loss", *METRIC.values()))
        )
        logger.info("%-44s epoch %2d  %s", spec.trial.name, result["epoch"], shown)
        self._advance(spec.key, min(result["epoch"] / recipe(spec.config, spec.task).epochs, 0.99))

    def _advance(self, key: str, share: float) -> None:
        """Note how much of a trial is done, and say where the study stands when one has ended."""
        self._shares[key] = share
        done, now = sum(self._shares.values()), time.monotonic()
        self._begun = self._begun or (now, done)
        if share < 1 or key in self._ended:
            return
        self._ended.add(key)
        passed, gained = now - self._begun[0], done - self._begun[1]
        left = passed * (len(self.plan.trials) - done) / gained if gained else 0.0
        logger.info("trial %d of %d is done │ eta %s", len(self._ended), len(self.plan.trials), clock(left))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Store the result that the trial left in its last checkpoint, or why there is none."""
        spec, last = trial.config["spec"], trial.last_result
        if isinstance(spec, PretrainingSpec):
            return
        self._advance(spec.key, 1.0)
        if self.store(spec.key):
            return
        if self.plan.config.study.draws and FAILURE not in last:
            self.stop(spec.key, {BEST: last[BEST], "epoch": last["epoch"]})
        else:
            self.fail(spec.key, str(last.get(FAILURE, "it left no outcome")))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Mark the run as failed, unless Tune has given it up too soon.

        Where a process that is to go on with another trial is gone with its node, Tune counts two failures, and ends
        the trial at the second, whatever `max_failures` says.
        """
        spec = trial.config["spec"]
        if trial.num_failures <= self.plan.config.compute.max_failures:
            self._given_up.add(spec.key)
        elif not isinstance(spec, PretrainingSpec):
            self._advance(spec.key, 1.0)
            self.fail(spec.key, "its process died")

    def take_given_up(self) -> set[str]:
        """Keys of what Tune gave up too soon, since this was last asked."""
        taken, self._given_up = self._given_up, set()
        return taken

    def stop(self, key: str, metrics: dict[str, float]) -> None:
        """End the run of a draw that the sweep has stopped."""
        results.stop(self.plan.uri(key), metrics)
        run = self.log.trial(key)
        run.tag(stopped=f"after epoch {metrics['epoch']}")
        run.finish("KILLED")

    def fail(self, key: str, reason: str) -> None:
        """End a trial's run as failed."""
        logger.warning("%s failed: %s", self.plan.trials[key].trial.name, reason)
        run = self.log.trial(key)
        run.tag(failure=reason[:4000])
        run.finish("FAILED")

    def store(self, key: str) -> TrialResult | None:
        """Store a trial's result with its run, once, and return it; None if it has not finished.

        It has been stored when its records are with MLflow, or in the spool that a server gets them from: what was
        noted after that need not be asked for.
        """
        found = results.find(self.plan.uri(key))
        if found is None:
            return None
        result, checkpoint = found
        finished = self._finished  # before this one is noted
        here, mark = self._recorded.setdefault(self.log.tracker.uris.uri, {}), digest(result.to_json())
        if here.get(key) != mark:
            if key not in self._placed:  # with its first report
                self.log.data(key)
            self.log.model(key, checkpoint)
            names = [results.PREDICTIONS, *map(results.predictions_file, result.besides)]
            predictions = {name: storage.read_bytes(storage.join(checkpoint, name)) for name in names}
            self.log.complete(self.log.trial(key), result, predictions)
            here[key] = mark
            storage.write_json(self.plan.uri(RECORDED), self._recorded)
        if key not in finished:
            finished[key] = result
            group = (result.protocol, result.task)
            self.log.summarize([each for each in finished.values() if (each.protocol, each.task) == group])
        return result

    @cached_property
    def _finished(self) -> dict[str, TrialResult]:
        """Results by trial, those of earlier starts included."""
        found = {key: results.find(self.plan.uri(key)) for key in self._recorded.get(self.log.tracker.uris.uri, {})}
        return {key: item[0] for key, item in found.items() if item and key in self.plan.trials}

    @cached_property
    def _recorded(self) -> dict[str, dict[str, str]]:
        return storage.find_json(self.plan.uri(RECORDED)) or {}
