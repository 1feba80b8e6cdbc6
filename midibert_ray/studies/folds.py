"""The folds of a study's trials as one result each: every piece is tested once, and metrics are over all of them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import logit

from midibert_ray.studies.result import TrialResult
from midibert_ray.studies.trials import Trial
from midibert_ray.training.metrics import macro_f1
from midibert_ray.training.predictions import KINDS


def merged(outcomes: Iterable[TrialResult]) -> list[TrialResult]:
    """Outcomes, those of the folds of one configuration and seed as one; the others as they are."""
    groups: dict[Trial | int, list[TrialResult]] = {}
    for number, item in enumerate(outcomes):
        trial = Trial(task=item.task, variant=item.variant, protocol=item.protocol, seed=item.seed, draw=item.draw)
        groups.setdefault(trial if item.fold else number, []).append(item)
    return [merge(group) if group[0].fold else group[0] for group in groups.values()]


def merge(folds: Sequence[TrialResult]) -> TrialResult:
    """The folds of one configuration and seed as one result.

    Metrics of numbers and tags are those of all pieces together; of classes too, but for the loss and the validation
    accuracy, which are means over the folds by what these scored.
    """
    first, scored = folds[0], np.array([max(fold.scored, 1) for fold in folds], dtype=np.float64)
    names = set.intersection(*(set(fold.metrics) for fold in folds))
    metrics = {name: float(np.average([fold.metrics[name] for fold in folds], weights=scored)) for name in names}
    confusion = np.sum([np.array(fold.confusion) for fold in folds], axis=0)
    pieces = {piece: row for fold in folds for piece, row in fold.pieces.items()}
    if first.kind == "classes":
        metrics |= {
            f"{first.split}/accuracy": float(np.trace(confusion) / max(confusion.sum(), 1)),
            f"{first.split}/f1": macro_f1(confusion),
        }
        if f"{first.split}/piece_accuracy" in metrics:
            metrics[f"{first.split}/piece_accuracy"] = float(np.mean([row[2] for row in pieces.values()]))
    else:
        together = of_pieces(first.kind, pieces.values())
        metrics |= {f"{first.split}/{name}": value for name, value in together.items()}
    return replace(
        first,
        trial=first.trial.removesuffix(f"-fold{first.fold}"),
        fold=0,
        folds=len(folds),
        epoch=max(fold.epoch for fold in folds),
        metrics=metrics,
        confusion=confusion.tolist(),
        pieces=pieces,
        clusters={piece: cluster for fold in folds for piece, cluster in fold.clusters.items()},
        seconds=sum(fold.seconds for fold in folds),
    )


def of_pieces(kind: str, rows: Iterable[Sequence[Any]]) -> dict[str, float]:
    """The metrics of numbers or tags from the rows of `TrialResult.pieces`, by their names without a split."""
    truth, said = np.split(np.array(list(rows), dtype=np.float64), 2, axis=1)
    if kind == "number":
        truth = truth[:, 0]
    else:
        said = logit(said.clip(1e-7, 1 - 1e-7))
    numbers = np.arange(len(said))
    found = KINDS[kind](numbers, numbers, np.full(len(said), -1), truth, said.astype(np.float32)).metrics("all")
    return {name.removeprefix("all/"): value for name, value in found.items()}
