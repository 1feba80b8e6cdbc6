"""What a study leaves on its parent run in MLflow: tables, charts, baselines, reasons of failures."""

import json
from collections.abc import Mapping, Sequence

from midibert_ray.studies import figures, table
from midibert_ray.studies.outcome import Outcome
from midibert_ray.studies.plan import Plan
from midibert_ray.studies.recorder import StudyLog


def publish(log: StudyLog, plan: Plan, outcomes: Sequence[Outcome], failed: Mapping[str, str]) -> None:
    """Store the results of a study and end its run."""
    log.parent.data(table.to_csv(outcomes).encode(), "results.csv")
    log.parent.text(table.to_markdown(outcomes, failed), "results.md")
    log.parent.json([json.loads(item.to_json()) for item in outcomes], "results.json")
    log.parent.json(dict(failed), "failed.json")
    if outcomes:
        log.parent.figure(figures.bars(table.cells(outcomes)), "results.png")
    log.parent.finish("FAILED" if failed else "FINISHED")
