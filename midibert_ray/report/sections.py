"""The data of the sections of a study's report; `templates/sections.html` shows them."""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from midibert_ray.inference.page import assets
from midibert_ray.music.protocol import PROTOCOLS
from midibert_ray.report import kinds, plots, table, table_one
from midibert_ray.report.baselines import MAJORITY
from midibert_ray.report.findings import melody_or_not, sentences
from midibert_ray.report.formats import melody_grid, percent
from midibert_ray.report.load import LoadedStudy
from midibert_ray.report.page import Section
from midibert_ray.report.pieces import listenings
from midibert_ray.report.table import STATISTICS, Key, by_key
from midibert_ray.studies import paper
from midibert_ray.studies.result import METRIC, METRIC_WORDS, TrialResult
from midibert_ray.tracking import Run

HARDEST = 20
"""Pieces of a column that are shown."""
PRETRAINING, FINETUNING = ("Pre-training", "pretraining"), ("Fine-tuning", "finetuning")
"""Headings and macros of the sections with learning curves."""
Curve = list[tuple[int, float]]
"""Steps or epochs, and values."""


def all_sections(study: LoadedStudy) -> list[Section]:
    """The sections in the order in which a reader wants them; one without data is empty."""
    melody, lines = melody_or_not(study.outcomes, study.baselines, study.tables), study.corpora
    return [
        Section("Results", "study", _results(study)),
        Section("Beside accuracy", "beside", _scores(study)),
        Section("Melody or not", "melody", melody_grid(melody) if melody else []),
        Section("Test pieces", "test_pieces", test_pieces(study)),
        Section("Confusion", "confusions", confusions(study)),
        Section("Numbers and tags", "answers", answers(study)),
        Section("Hardest pieces", "pieces", hardest_pieces(study)),
        Section("Corpora", "corpora", {"rows": table_one.grid(lines), "lines": lines} if lines else {}),
        Section(*PRETRAINING, pretraining(study)),
        Section(*FINETUNING, finetuning(study)),
        Section("Cost", "cost", _scores(study, besides=False)),
        Section("Failed trials", "failures", study.failed),
        Section("Settings", "settings", study),
    ]


def learning_curves(sections: Iterable[Section]) -> Iterator[tuple[str, Figure]]:
    """The pictures of learning curves in a report, by the names of files."""
    data = {section[:2]: section.data for section in sections}
    for name in ("loss", "accuracy") if data[PRETRAINING] else ():
        yield f"curves-pretraining-{name}.png", data[PRETRAINING][name]
    for protocol, task, picture in data[FINETUNING]:
        yield f"curves-{task}-{protocol}.png", picture


def _results(study: LoadedStudy) -> dict[str, Any]:
    """The findings in words, and the tables with a chart of each."""
    return {
        "sentences": sentences(study.tables),
        "tables": [(each, plots.accuracies(each) if study.outcomes else None) for each in study.tables],
        "statistics": STATISTICS,
    }


def _scores(study: LoadedStudy, *, besides: bool = True) -> dict[str, Any]:
    """The score of every variant in all columns, and the macro-F1 of the majority class there.

    Without `besides`, corpora that were tested besides are left out: they cost nothing of their own.
    """
    learned = {item.task for item in study.outcomes}
    scores = table.scores(study.tables)
    columns = [column for column in _columns(study) if besides or column[1] in learned]
    rows = {
        label: [scores.get(Key(*column, variant)) for column in columns]
        for variant, label in table.labels(study.tables).items()
    }
    trivial = {(item.protocol, item.task, item.name): item for each in study.tables for item in each.baselines}
    found = [trivial.get((*column, MAJORITY)) for column in columns]
    return (
        {
            "columns": columns,
            "rows": {label: row for label, row in rows.items() if any(row)},
            "majority": [percent(table.majority_f1(item)) if item else "" for item in found],
            "numbers": any(score.kind == "number" for score in scores.values()),
        }
        if scores
        else {}
    )


def _columns(study: LoadedStudy) -> list[tuple[str, str]]:
    """Protocol and task of all columns, tasks together."""
    present = list(dict.fromkeys(key[:2] for key in by_key(study.outcomes)))
    tasks = kinds.in_order(task for _, task in present)
    return [(protocol, task) for task, protocol in product(tasks, PROTOCOLS) if (protocol, task) in present]


def test_pieces(study: LoadedStudy) -> dict[str, Any]:
    """Players of the test pieces, and what all of them need."""
    found = listenings(study)
    return {"all": found, "assets": assets()} if found else {}


def confusions(study: LoadedStudy) -> list[dict[str, Any]]:
    """By task the confusion matrices, and whether the paper shows those of the same model."""
    names, groups = table.labels(study.tables), by_key(each for each in study.outcomes if each.kind == "classes")
    tasks: dict[str, list[dict[str, Any]]] = {}
    for task, protocol, variant in product(kinds.in_order(key.task for key in groups), PROTOCOLS, names):
        if group := groups.get(Key(protocol, task, variant)):
            true, predicted, shares = plots.in_percent(group)
            matrix = {
                "caption": f"{names[variant]}, {protocol}",
                "predicted": predicted,
                "rows": list(zip(true, shares, strict=True)),
                "printed": variant in paper.CONFUSED,
            }
            tasks.setdefault(task, []).append(matrix)
    return [{"name": task, "figure": paper.CONFUSIONS.get(task, ""), "all": each} for task, each in tasks.items()]


def answers(study: LoadedStudy) -> list[tuple[str, Any]]:
    """Of tasks that have no confusion matrix a picture of every row, of its first seed: caption, picture."""
    names = table.labels(study.tables)
    groups = {key: group for key, group in by_key(study.outcomes).items() if group[0].kind != "classes"}
    return [
        (f"{key.task}: {names[key.variant]}, {key.protocol}", plots.answers(group[0])) for key, group in groups.items()
    ]


def hardest_pieces(study: LoadedStudy) -> list[dict[str, Any]]:
    """Of every column the test pieces with the largest errors of the best row, those of its seeds together."""
    scores, names = table.scores(study.tables), table.labels(study.tables)
    found = []
    for protocol, task in _columns(study):
        column = [key for key in scores if key[:2] == (protocol, task)]
        key = max(column, key=lambda key: scores[key].accuracy)
        group = by_key(study.outcomes)[key]
        head, rows = _errors(group)
        shown = [[piece, *cells] for _, piece, *cells in sorted(rows, key=lambda row: (-row[0], row[1]))[:HARDEST]]
        title = f"{task}, protocol {protocol}: {names[key.variant]}"
        found.append({"title": title, "rows": [["piece", *head], *shown], "of": len(rows)})
    return found


def _errors(group: list[TrialResult]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Headings, and of every piece its error, its name and what is shown of it."""
    kind = group[0].kind
    rows: list[tuple[Any, ...]] = []
    for piece in group[0].pieces:
        said = np.mean([item.pieces[piece] for item in group], axis=0)
        if kind == "classes":
            rows.append((1 - said[0] / said[1], piece, percent(1 - said[0] / said[1]), f"{said[1]:,.0f}"))
        elif kind == "number":
            error = float(said[1] - said[0])
            rows.append((abs(error), piece, f"{error:+.4g}", f"{said[0]:.4g}", f"{said[1]:.4g}"))
        else:
            truth, shares = np.split(said, 2)
            loss = -np.log(np.maximum(np.where(truth > 0, shares, 1 - shares), 1e-6)).mean()
            tags = np.array(group[0].classes, dtype=object)
            told = (", ".join(tags[chosen]) or "none" for chosen in (truth > 0, shares > 0.5))
            rows.append((float(loss), piece, f"{loss:.3f}", *told))
    heads = {
        "classes": ["wrong, %", "scored"],
        "number": ["error", "true", "predicted"],
        "tags": ["cross-entropy", "true", "predicted"],
    }
    return heads[kind], rows


def pretraining(study: LoadedStudy) -> dict[str, Any]:
    """Curves of the encoders: several side by side, or one with its losses and token types."""
    names = encoder_names(study.encoders)
    if not names:
        return {}
    losses = {key: _curve(study, run, "valid/loss") for key, run in study.encoders.items()}
    accuracies = {key: _curve(study, run, "valid/accuracy", 100) for key, run in study.encoders.items()}
    started = [run.data.tags.get("encoder") for run in study.children.values()]
    if len(names) > 1:
        left, title = {names[key]: curve for key, curve in losses.items()}, "validation loss"
        right = {names[key]: curve for key, curve in accuracies.items()}
    else:
        (run,) = study.encoders.values()
        left, title = {name: _curve(study, run, f"{name}/loss") for name in ("train", "valid")}, "weighted loss"
        types = ("bar", "position", "pitch", "duration")
        right = {name: _curve(study, run, f"valid/accuracy/{name}", 100) for name in types}
    return {
        "loss": plots.curves(left, x="step", y=title),
        "accuracy": plots.curves(right, x="step", y="accuracy of hidden tokens in validation, %"),
        "encoders": [(name, losses[key], accuracies[key], started.count(key)) for key, name in names.items()],
    }


def _curve(study: LoadedStudy, run: Run, metric: str, scale: float = 1) -> Curve:
    return [(step, scale * value) for step, value in study.tracker.curve(run.info.run_id, metric)]


def encoder_names(runs: dict[str, Run]) -> dict[str, str]:
    """Pre-trainings by what they differ in; one alone by its run's name."""
    told = {key: _told(run.data.params) for key, run in runs.items()}
    varying = [column for column, values in enumerate(zip(*told.values(), strict=True)) if len(set(values)) > 1]
    named = {key: ", ".join(parts[column] for column in varying) for key, parts in told.items()}
    return {key: named[key] or str(run.info.run_name) for key, run in runs.items()}


_LEVERS = ("pretrain.objective", "mask.fraction", "pretrain.roll", "augment.transpose", "tokens.segment")


def _told(params: dict[str, str]) -> list[str]:
    """The settings that may tell one pre-training from another, in words."""
    corpora = params.get("corpora.names", "").split(",")
    return [
        params.get("model.representation", "").upper(),
        " + ".join(corpora) if len(corpora) < 3 else f"{len(corpora)} corpora",
        {"train": "train splits"}.get(params.get("pretrain.splits", ""), "all splits"),
        {"pitch": "notes by pitch"}.get(params.get("protocol.order", ""), "the protocol's order"),
        f"protocol {params.get('tokens.protocol', '')}",
        *(f"{name.rpartition('.')[2]} {params.get(name, '')}" for name in _LEVERS),
    ]


def finetuning(study: LoadedStudy) -> list[tuple[str, str, Any]]:
    """The metric in validation by epoch, the mean of the seeds that came so far: protocol, task, picture."""
    kind_of = {item.task: item.kind for item in study.outcomes}
    curves: dict[tuple[str, ...], Curve] = {}
    for run in study.children.values():
        key = tuple(run.data.tags.get(name, "") for name in Key._fields)
        metric = METRIC[kind_of.get(run.data.tags.get("task", ""), "classes")]
        curves.setdefault(key, []).extend(_curve(study, run, f"valid/{metric}", 100))
    means = {
        key: list(pd.DataFrame(points, columns=["epoch", "value"]).groupby("epoch")["value"].mean().items())
        for key, points in curves.items()
    }
    names = table.labels(study.tables)
    pictures = []
    for protocol, task in (column for column in _columns(study) if column[1] in kind_of):
        lines = {label: means.get((protocol, task, variant), []) for variant, label in names.items()}
        title = f"{task}, {protocol}: {METRIC_WORDS[kind_of[task]]} in validation, %"
        pictures.append((protocol, task, plots.curves(lines, x="epoch", y=title)))
    return pictures
