"""A study as it stands in MLflow: the only thing that its report is made from."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from midibert_ray import tracking
from midibert_ray.report import table
from midibert_ray.report.baselines import Baseline
from midibert_ray.report.table import ResultTable
from midibert_ray.settings.config import Config
from midibert_ray.studies import result as results
from midibert_ray.studies.result import TrialResult
from midibert_ray.studies.trials import Trial
from midibert_ray.tracking import Run, Tracker

BASELINES = "baselines.json"
"""Artifact of the parent run: a list of `Baseline`."""
CORPORA = "corpora.json"
"""Artifact of the parent run: what `corpora.table` gives."""


@dataclass(frozen=True)
class LoadedStudy:
    """The runs of a study, and what they left."""

    tracker: Tracker
    experiment: str
    parent: Run
    children: dict[str, Run]
    """By name of the trial."""
    outcomes: list[TrialResult]
    baselines: list[Baseline]
    corpora: list[dict[str, Any]]

    @property
    def key(self) -> str:
        return str(self.parent.data.tags[tracking.RUN_KEY])

    @property
    def failed(self) -> dict[Trial, str]:
        """Trial -> reason."""
        failures = [run.data.tags for run in self.children.values() if run.info.status == "FAILED"]
        return {Trial.of(tags): tags.get("failure", "it left no reason") for tags in failures}

    @cached_property
    def tables(self) -> list[ResultTable]:
        names = self.parent.data.tags.get("tables", "").split(",")
        return table.build(self.outcomes, self.failed, self.baselines, names)

    @cached_property
    def encoders(self) -> dict[str, Run]:
        """The pre-trainings that trials start from, by key, as far as this MLflow has them."""
        keys = self.parent.data.tags.get("encoder", "").split(",")
        keys += [run.data.tags.get("encoder", "") for run in self.children.values()]
        runs = {key: self.tracker.find(tracking.PRETRAINING, key) for key in dict.fromkeys(keys) if key}
        return {key: run for key, run in runs.items() if run}


def load(config: Config, key: str) -> LoadedStudy:
    """Find a study in MLflow by its key, or by its name alone the newest of that name.

    Raises:
        LookupError: where there is no such study; names those that exist.
        UnreachableError: where a tracking server does not answer.
    """
    tracker = Tracker(tracking.uris(config))
    names = tracker.studies()
    parents = ((name, parent) for name in names for parent in tracker.parents(tracking.study_experiment(name)))
    found = next(((name, run) for name, run in parents if key in (name, run.data.tags[tracking.RUN_KEY])), None)
    if found is None:
        raise LookupError(f"no study {key!r} in {tracker.uris.uri}; there are: {', '.join(names) or 'none'}")
    experiment, parent = tracking.study_experiment(found[0]), found[1]
    children = tracker.children(experiment, parent.info.run_id)
    outcomes = [tracker.artifact(child.info.run_id, results.OUTCOME) for child in children]
    baselines, corpora = (
        json.loads(tracker.artifact(parent.info.run_id, name) or "[]") for name in (BASELINES, CORPORA)
    )
    return LoadedStudy(
        tracker=tracker,
        experiment=experiment,
        parent=parent,
        children={run.info.run_name: run for run in children},
        outcomes=[TrialResult.from_json(text) for text in outcomes if text],
        baselines=[Baseline.from_dict(item) for item in baselines],
        corpora=corpora,
    )
