"""Tallies and metrics of a table by kind of task: classes, numbers, tags."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from midibert_ray.music.tasks import TASKS
from midibert_ray.report.statistics import R_SQUARED, SHARE, Statistic, average_precision
from midibert_ray.studies.result import TrialResult


def statistic(kind: str, tags: int) -> Statistic:
    """The metric of a kind, of tallies made by `tally`; `tags` is the number of tags, where there are any."""
    return {"classes": SHARE, "number": R_SQUARED}.get(kind) or average_precision(tags)


def tally(kind: str, runs: Sequence[Mapping[str, Sequence[Any]]]) -> dict[str, tuple[float, ...]]:
    """Piece -> row of a tally, over some seeds, from what `Predictions.by_piece` says of each.

    Classes: correct (mean over seeds) and scored. Numbers: 1, the number, its square, the squared error (mean). Tags:
    0 or 1 for each, then the shares predicted by each seed.
    """
    rows: dict[str, tuple[float, ...]] = {}
    for piece, first in runs[0].items():
        said = [run[piece] for run in runs]
        if kind == "classes":
            rows[piece] = float(np.mean([right for right, *_ in said])), float(first[1])
        elif kind == "number":
            true = float(first[0])
            rows[piece] = 1.0, true, true**2, float(np.mean([(true - guess) ** 2 for _, guess in said]))
        else:
            tags = len(first) // 2
            rows[piece] = *map(float, first[:tags]), *(float(share) for row in said for share in row[tags:])
    return rows


def in_order(tasks: Iterable[str]) -> list[str]:
    """Names of tasks, each once: those of the paper first, in its order, then others as they come."""
    names = dict.fromkeys(tasks)
    return [*(name for name in TASKS if name in names), *(name for name in names if name not in TASKS)]


def melody(result: TrialResult) -> str:
    """The class that rules tell from all others; empty where there is none."""
    known = TASKS.get(result.task)
    return result.melody or (known.melody if known else "")
