"""A study in MLflow: one parent run, one child a trial, curves by epoch, pictures at the end."""

import logging
from contextlib import suppress
from typing import Any

from ray import tune

from midibert_ray import tracking
from midibert_ray.report import plots as figures
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import flatten
from midibert_ray.studies import result as outcome
from midibert_ray.studies import sweep
from midibert_ray.studies.plan import Plan
from midibert_ray.studies.result import Outcome
from midibert_ray.studies.scheduler import FAILURE, FINETUNE
from midibert_ray.tracking.spool import UnreachableError

logger = logging.getLogger(__name__)


class StudyLog:
    """The runs of one study."""

    def __init__(self, plan: Plan) -> None:
        """Open the parent run, or find it again."""
        config: Config = plan.config
        self.plan = plan
        self.tracker = tracking.Tracker(tracking.address(config))
        self.experiment = tracking.study_experiment(config.study.name)
        tags = {"stage": "study", "study": plan.key}
        self.parent = self.tracker.open(self.experiment, plan.key, plan.key, params=flatten(config), tags=tags)
        # What it holds; it may be started again with other cells, which then come beside the first.
        self.parent.extend(
            protocol=[entry.trial.protocol for entry in plan.trials.values()],
            encoder=plan.pretrainings,
            tables=config.study.tables,
        )

    def trial(self, key: str) -> tracking.RunLog:
        """The child run of a trial, made or found again."""
        entry = self.plan.trials[key]
        trial = entry.trial
        tags = {
            "task": trial.task,
            "variant": trial.variant,
            "seed": trial.seed,
            "protocol": trial.protocol,
            "encoder": entry.encoder,
        }
        return self.tracker.open(
            self.experiment,
            f"{self.plan.key}/{key}",
            trial.name,
            params=flatten(entry.config),
            tags=tags,
            parent=self.plan.key,
        )

    def finished(self) -> set[str]:
        """Keys of the trials whose runs are complete."""
        parent = self.tracker.find(self.experiment, self.plan.key)
        runs = self.tracker.children(self.experiment, parent.info.run_id) if parent else []
        keys = {run.data.tags[tracking.RUN_KEY] for run in runs if run.info.status == "FINISHED"}
        return {key.removeprefix(f"{self.plan.key}/") for key in keys}

    def complete(self, run: tracking.RunLog, result: Outcome, predictions: bytes) -> None:
        """Store a trial's outcome and end its run."""
        run.json(result.confusion, "confusion_matrix.json")
        run.figure(figures.confusion(result), "confusion_matrix.png")
        run.data(predictions, outcome.PREDICTIONS)
        run.text(result.to_json(), outcome.OUTCOME)
        run.log(result.figures | {"cost/seconds": result.seconds, "cost/devices": result.devices}, result.epoch)
        run.finish()


class Recorder(tune.Callback):
    """Runs in the driver, on every report of every trial.

    Tune pickles callbacks, so runs are opened (or found again) when they are first needed.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._log: StudyLog | None = None
        self._runs: dict[str, tracking.RunLog] = {}
        self._stored: set[str] = set()
        self._given_up: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return Recorder, (self.plan,)

    @property
    def log(self) -> StudyLog:
        """The study's runs."""
        if self._log is None:
            self._log = StudyLog(self.plan)
        return self._log

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Log an epoch's figures and print a line; pre-trainings are logged by their own controllers."""
        work = trial.config["work"]
        if work["kind"] != FINETUNE:
            return
        points = {key: value for key, value in result.items() if key.partition("/")[0] in ("train", "valid", "test")}
        if not points:
            return
        self._run(work["name"]).log(points, int(result["epoch"]))
        shown = "  ".join(f"{key} {value:.3f}" for key, value in points.items() if key.endswith(("loss", "accuracy")))
        logger.info("%-44s epoch %2d  %s", self.plan.trials[work["name"]].trial.name, result["epoch"], shown)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Store the outcome that the trial left in its last checkpoint, or why there is none."""
        work, last = trial.config["work"], trial.last_result
        if work["kind"] != FINETUNE or self.store(work["name"]):
            return
        if self.plan.config.study.draws and FAILURE not in last:
            self.stop(work["name"], {sweep.METRIC: last[sweep.METRIC], "epoch": last["epoch"]})
        else:
            self.fail(work["name"], str(last.get(FAILURE, "it left no outcome")))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Mark the run as failed, unless Tune has given it up too soon.

        Where a process that is to go on with another trial is gone with its node, Tune counts two failures, and ends
        the trial at the second, whatever `max_failures` says.
        """
        work = trial.config["work"]
        if trial.num_failures <= self.plan.config.compute.max_failures:
            self._given_up.add(work["name"])
        elif work["kind"] == FINETUNE:
            self.fail(work["name"], "its process died")

    def take_given_up(self) -> set[str]:
        """Names of the work that Tune gave up too soon, since this was last asked."""
        taken, self._given_up = self._given_up, set()
        return taken

    def stop(self, key: str, figures: dict[str, float]) -> None:
        """End the run of a draw that the sweep has stopped."""
        outcome.stop(self.plan.address(key), figures)
        run = self._run(key)
        run.tag(stopped=f"after epoch {figures['epoch']}")
        run.finish("KILLED")

    def fail(self, key: str, reason: str) -> None:
        """End a trial's run as failed."""
        logger.warning("%s failed: %s", self.plan.trials[key].trial.name, reason)
        run = self._run(key)
        run.tag(failure=reason[:4000])
        run.finish("FAILED")

    def store(self, key: str) -> Outcome | None:
        """Store a trial's outcome with its run, once, and return it; None if it has not finished."""
        found = outcome.find(self.plan.address(key))
        if found is None:
            return None
        if key not in self._stored:
            self.log.complete(self._run(key), *found)
            self._stored.add(key)
        return found[0]

    def leave_stored(self) -> None:
        """Ask MLflow which outcomes it has; these are not stored again.

        Asked when all work is done, as a server may take its time. One that does not answer is sent them again, which
        changes nothing.
        """
        with suppress(UnreachableError):
            self._stored |= self.log.finished()

    def _run(self, key: str) -> tracking.RunLog:
        if key not in self._runs:
            self._runs[key] = self.log.trial(key)
        return self._runs[key]
