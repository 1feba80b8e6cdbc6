"""Tune's trials in MLflow: one parent run a study, one child a trial, curves by epoch, pictures at the end."""

import logging
from typing import Any

from ray import tune

from midibert_ray import tracking
from midibert_ray.config import Config
from midibert_ray.overrides import flatten
from midibert_ray.studies import figures, outcome
from midibert_ray.studies.outcome import Outcome
from midibert_ray.studies.trials import Trial, grid

logger = logging.getLogger(__name__)


class StudyLog:
    """The runs of one study."""

    def __init__(self, config: Config, key: str, encoder: str) -> None:
        """Open the parent run, or find it again.

        Args:
            config: the study's configuration.
            key: the study's name and hash.
            encoder: key of the run that pre-trained the encoder, kept as a tag.
        """
        self.config, self.key = config, key
        self.tracker = tracking.Tracker(tracking.address(config))
        self.experiment = tracking.study_experiment(config.study.name)
        tags = {"stage": "study", "protocol": config.tokens.protocol, "encoder": encoder, "study": key}
        self.parent = self.tracker.open(self.experiment, key, key, params=flatten(config), tags=tags)

    def trial(self, trial: Trial) -> tracking.RunLog:
        """The child run of a trial, made or found again."""
        tags = {
            "task": trial.task,
            "variant": trial.variant,
            "seed": trial.seed,
            "protocol": self.config.tokens.protocol,
        }
        params = flatten(trial.config(self.config))
        key = f"{self.key}/{trial.name}"
        return self.tracker.open(self.experiment, key, trial.name, params=params, tags=tags, parent=self.parent.id)

    def finished(self, trial: Trial) -> bool:
        """Whether the trial's run is complete already."""
        run = self.tracker.find(self.experiment, f"{self.key}/{trial.name}")
        return run is not None and run.info.status == "FINISHED"

    def complete(self, run: tracking.RunLog, result: Outcome, predictions: bytes) -> None:
        """Store a trial's outcome and end its run."""
        run.json(result.confusion, "confusion_matrix.json")
        run.figure(figures.confusion(result), "confusion_matrix.png")
        run.data(predictions, outcome.PREDICTIONS)
        run.text(result.to_json(), outcome.OUTCOME)
        run.log(result.figures, result.epoch)
        run.finish()


class Recorder(tune.Callback):
    """Runs in the driver, on every report of every trial.

    Tune pickles callbacks with a study and brings them back when it is resumed, so only the configuration is
    kept, and runs are opened (or found again) when they are first needed.
    """

    def __init__(self, config: Config, key: str, encoder: str) -> None:
        self._origin = (config, key, encoder)
        self.config, self.key = config, key
        self.trials = {trial.name: trial for trial in grid(config)}
        self._log: StudyLog | None = None
        self._runs: dict[str, tracking.RunLog] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Recorder, self._origin

    @property
    def log(self) -> StudyLog:
        """The study's runs."""
        if self._log is None:
            self._log = StudyLog(*self._origin)
        return self._log

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Log an epoch's figures and print a line."""
        mine = self._trial(trial)
        points = {key: value for key, value in result.items() if key.partition("/")[0] in ("train", "valid", "test")}
        if not points:  # a trial that had finished before its driver was killed has nothing more to say
            return
        self._run(mine).log(points, int(result["epoch"]))
        shown = "  ".join(f"{key} {value:.3f}" for key, value in points.items() if key.endswith(("loss", "accuracy")))
        logger.info("%-36s epoch %2d  %s", mine.name, result["epoch"], shown)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Store the outcome that the trial left in its last checkpoint."""
        self.store(self._trial(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Mark the run as failed."""
        self._run(self._trial(trial)).finish("FAILED")

    def store(self, trial: Trial) -> Outcome | None:
        """Store a trial's outcome with its run, unless it is there, and return it; None if it has not finished."""
        found = outcome.find(outcome.trial_address(self.config, self.key, trial.name))
        if found is None:
            return None
        if not self.log.finished(trial):
            self.log.complete(self._run(trial), *found)
        return found[0]

    def _trial(self, trial: Any) -> Trial:
        return self.trials[trial.config["trial"]["name"]]

    def _run(self, trial: Trial) -> tracking.RunLog:
        if trial.name not in self._runs:
            self._runs[trial.name] = self.log.trial(trial)
        return self._runs[trial.name]
