"""The sections of a study's report, as HTML; one that has nothing to show is empty."""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from midibert_ray.music.skyline import skyline
from midibert_ray.music.tasks import TASKS
from midibert_ray.report import plots as figures
from midibert_ray.report import table, table_one
from midibert_ray.report.baselines import MAJORITY
from midibert_ray.report.findings import leaks, melody_or_not
from midibert_ray.report.formats import melody_grid, p_text
from midibert_ray.report.load import Source
from midibert_ray.report.page import between, findings, folded, grid, heat, picture, results
from midibert_ray.report.table import STATISTICS, Key, Score, by_key
from midibert_ray.studies import paper
from midibert_ray.studies import result as outcome
from midibert_ray.studies.result import Outcome
from midibert_ray.tracking import Run

BARS = 32
"""Bars of a piano roll."""


def all_sections(source: Source) -> list[tuple[str, str]]:
    """Headings and contents, in the order in which a reader wants them."""
    return [
        ("Results", tables(source) or "<p>No trial has finished.</p>"),
        ("Beside accuracy", beside(source)),
        ("Melody or not", melody(source)),
        ("A test piece", piano_roll(source)),
        ("Confusion", confusions(source)),
        ("Corpora", corpora(source)),
        ("Pre-training", pretraining(source)),
        ("Fine-tuning", finetuning(source)),
        ("Cost", cost(source)),
        ("Failed trials", failures(source)),
        ("Settings", settings(source)),
    ]


def tables(source: Source) -> str:
    """What the study says in words, its tables, and a chart of each."""
    if not source.tables:
        return ""
    parts = [findings(leaks(source.tables))]
    for each in source.tables:
        chart = picture(figures.accuracies(each), f"{each.title}: accuracy of every row") if source.outcomes else ""
        parts.append(f"<h3>{escape(each.title)}</h3>{results(each)}{chart}")
    return "".join([*parts, f"<p class=note>{escape(STATISTICS)}</p>", folded("Every figure", _everything(source))])


def _everything(source: Source) -> str:
    """All intervals of all cells."""
    intervals = ("over pieces", "Wilson", "over seeds")
    head = ("row", "table", "protocol", "task", "accuracy", *intervals, "seeds", "scored", "pieces", "p")
    rows = []
    for each in source.tables:
        names = {row.variant: row.label for row in each.rows}
        for key, cell in sorted(each.cells.items(), key=lambda item: _place(item[0], list(names))):
            if score := cell.score:
                ends = [between(item) for item in (score.over_pieces, score.wilson, score.over_seeds)]
                counts = [str(score.seeds), f"{score.scored:,}", str(len(score.tally))]
                p = escape(p_text(cell.p)) if cell.p is not None else ""
                name = escape(names[key.variant])
                rows.append([name, each.name, key.protocol, key.task, f"{100 * score.accuracy:.2f}", *ends, *counts, p])
    return grid(head, rows) if rows else ""


def _place(key: Key, variants: Sequence[str]) -> tuple[int, int, int]:
    return list(TASKS).index(key.task), table.PROTOCOLS.index(key.protocol), variants.index(key.variant)


def _columns(source: Source) -> list[tuple[str, str]]:
    """Protocol and task of all columns, tasks together."""
    present = {key[:2] for key in by_key(source.outcomes)}
    return [(protocol, task) for task in TASKS for protocol in table.PROTOCOLS if (protocol, task) in present]


def _by_variant(source: Source, show: Callable[[Score], str]) -> list[list[str]]:
    """Rows of what `show` makes of the score of every cell."""
    scores = table.scores(source.tables)
    rows = []
    for variant, label in table.labels(source.tables).items():
        cells = [scores.get(Key(protocol, task, variant)) for protocol, task in _columns(source)]
        if any(cells):
            rows.append([escape(label), *(show(score) if score else "" for score in cells)])
    return rows


def _heads(source: Source) -> list[str]:
    return ["", *(f"{task}<small>{protocol}</small>" for protocol, task in _columns(source))]


def beside(source: Source) -> str:
    """Macro-F1, which rare classes count in as much as frequent ones, and the share of whole pieces that are right."""

    def show(score: Score) -> str:
        pieces = score.piece_accuracy
        whole = f"<small>pieces {100 * pieces:.1f}</small>" if pieces is not None else ""
        return f"{100 * score.f1:.1f}{whole}"

    rows = _by_variant(source, show)
    if not rows:
        return ""
    trivial = {(item.protocol, item.task, item.name): item for each in source.tables for item in each.baselines}
    found = [trivial.get((protocol, task, MAJORITY)) for protocol, task in _columns(source)]
    shown = [f"{100 * table.majority_f1(item):.1f}" if item else "" for item in found]
    note = (
        "Macro-F1 in %: the mean over the classes, so that rare ones count as much as frequent ones. Pieces: the share "
        "of the test pieces in % whose mean logits over all segments are right."
    )
    return f"<p class=note>{note}</p>{grid(_heads(source), [*rows, [MAJORITY, *shown]])}"


def melody(source: Source) -> str:
    """Melody against the rest: skyline and the models."""
    found = melody_or_not(source.outcomes, source.baselines, source.tables)
    if not found:
        return ""
    head, *lines = melody_grid(found)
    rows = [
        [name, protocol, f"<b>{accuracy}</b>", *others]
        for name, protocol, accuracy, *others in (map(escape, line) for line in lines)
    ]
    note = "Bridge and accompaniment are one class here. Skyline takes the highest note for the melody, by rule."
    return f"<p class=note>{note}</p>{grid(head, rows)}"


def failures(source: Source) -> str:
    """Why trials failed."""
    rows = [(escape(name), f"<span class=failed>{escape(reason)}</span>") for name, reason in source.failed.items()]
    return grid(("trial", "reason"), rows, "plain reasons") if rows else ""


def corpora(source: Source) -> str:
    """Table I, from our token stores beside the paper's figures, and why they differ."""
    head = ["", "protocol", *(heading for heading, _ in table_one.SHOWN.values())]
    rows = []
    for line in source.corpora:
        figures_of = (table_one.show(line, name) for name in table_one.SHOWN)
        rows.append([escape(line["corpus"]), escape(line["protocol"]), *figures_of])
    notes = {
        f"<li>{escape(line['corpus'])}: {escape(line['note'])}</li>": None for line in source.corpora if line["note"]
    }
    listed = f"<ul class=note>{''.join(notes)}</ul>" if notes else ""
    return f"{grid(head, rows)}<p class=note>{escape(table_one.READING)}</p>{listed}" if rows else ""


def piano_roll(source: Source) -> str:
    """Fig. 4: a test piece as annotated, as skyline has it and as a model hears it."""
    groups = {key: group for key, group in by_key(source.outcomes).items() if key.task == "melody"}
    wanted = [Key(protocol, "melody", "pretrained") for protocol in table.PROTOCOLS]
    best = sorted(groups, key=lambda key: -groups[key][0].accuracy)
    for key in (key for key in (*wanted, *best) if key in groups):
        chosen = groups[key][0]
        content = source.tracker.artifact(source.children[chosen.trial].info.run_id, outcome.PREDICTIONS)
        if content:
            label = table.labels(source.tables)[key.variant]
            return _piano_roll(pq.read_table(io.BytesIO(content)), chosen, f"{label}, protocol {key.protocol}")
    return ""


def _piano_roll(notes: pa.Table, chosen: Outcome, model: str) -> str:
    names = notes["piece"].cast(pa.string())
    piece = paper.ROLL if pc.any(pc.equal(names, paper.ROLL)).as_py() else names[0].as_py()
    notes = notes.filter(pc.equal(names, piece))
    column: dict[str, NDArray[Any]] = {
        name: notes[name].to_numpy() for name in ("onset", "pitch", "duration", "label", "prediction")
    }
    where = {name: column[name].astype(np.int64) for name in ("onset", "pitch", "duration")}
    part = chosen.classes.index("melody")
    true = column["label"] == part
    rules = skyline(where["onset"], where["duration"] - 1, where["pitch"])
    said = column["prediction"] == part
    first = where["onset"].min() // 16 * 16
    shown = where["onset"] < first + 16 * BARS
    rolls = {
        "as annotated": true[shown],
        f"skyline: {(rules == true).mean():.1%} of the piece's notes are right": rules[shown],
        f"{model}: {(said == true).mean():.1%}": said[shown],
    }
    figure = figures.piano_rolls(rolls, **{name: values[shown] for name, values in where.items()})
    text = f"Melody or not in test piece {escape(piece)}, its first {BARS} bars, as in the paper's Fig. 4."
    return f"<p class=note>{text}</p>{picture(figure, 'piano rolls of a test piece')}"


def confusions(source: Source) -> str:
    """The confusion matrices that the paper shows too, and the others behind a line."""
    names = table.labels(source.tables)
    groups = by_key(source.outcomes)
    parts = []
    for task in dict.fromkeys(task for _, task in _columns(source)):
        keys = [Key(protocol, task, variant) for protocol in table.PROTOCOLS for variant in names]
        pictures = {key: heat(groups[key], f"{names[key.variant]}, {key.protocol}") for key in keys if key in groups}
        first = [key for key in pictures if key.variant in paper.CONFUSED] or list(pictures)
        others = [pictures[key] for key in pictures if key not in first]
        parts.append(f"<h3>{task} <small>{paper.CONFUSIONS[task]} of the paper</small></h3>")
        parts.append(f"<div class=wall>{''.join(pictures[key] for key in first)}</div>")
        parts.append(folded(f"{len(others)} more", f"<div class=wall>{''.join(others)}</div>" if others else ""))
    note = "In % of each true class (rows); columns are predictions. Means over seeds."
    return f"<p class=note>{note}</p>{''.join(parts)}" if parts else ""


def pretraining(source: Source) -> str:
    """Curves of the encoders."""
    names = encoder_names(source.encoders)
    curve = {key: _Curves(source, run) for key, run in source.encoders.items()}
    if not curve:
        return ""
    if len(curve) == 1:
        (only,) = curve.values()
        losses = {name: only(f"{name}/loss") for name in ("train", "valid")}
        families = {name: only(f"valid/accuracy/{name}", 100) for name in ("bar", "position", "pitch", "duration")}
    else:
        losses = {names[key]: each("valid/loss") for key, each in curve.items()}
        families = {names[key]: each("valid/accuracy", 100) for key, each in curve.items()}
    loss = figures.curves(losses, x="step", y="weighted loss" if len(curve) == 1 else "validation loss")
    accuracy = figures.curves(families, x="step", y="accuracy of masked tokens in validation, %")
    pictures = picture(loss, "pre-training loss") + picture(accuracy, "accuracy of masked tokens")
    return f"<div class=pair>{pictures}</div>{_encoders(source, names, curve)}"


class _Curves:
    """The curves of a run, by name of the metric."""

    def __init__(self, source: Source, run: Run) -> None:
        self.source, self.run = source, run

    def __call__(self, metric: str, scale: float = 1) -> list[tuple[int, float]]:
        points = self.source.tracker.curve(self.run.info.run_id, metric)
        return [(step, scale * value) for step, value in points]


def _encoders(source: Source, names: dict[str, str], curve: dict[str, _Curves]) -> str:
    rows = []
    for key, each in curve.items():
        losses, accuracies = each("valid/loss"), each("valid/accuracy", 100)
        users = sum(run.data.tags.get("encoder") == key for run in source.children.values())
        last = [f"{losses[-1][0]:,}", f"{losses[-1][1]:.3f}"] if losses else ["", ""]
        rows.append([escape(names[key]), *last, f"{accuracies[-1][1]:.2f}" if accuracies else "", str(users)])
    return grid(("encoder", "steps", "validation loss", "accuracy, %", "trials that start from it"), rows)


def encoder_names(runs: dict[str, Run]) -> dict[str, str]:
    """Pre-trainings by what they differ in; one alone by its run's name."""
    told = {key: _told(run.data.params) for key, run in runs.items()}
    varying = [column for column, values in enumerate(zip(*told.values(), strict=True)) if len(set(values)) > 1]
    named = {key: ", ".join(parts[column] for column in varying) for key, parts in told.items()}
    return {key: named[key] or str(run.info.run_name) for key, run in runs.items()}


def _told(params: dict[str, str]) -> list[str]:
    """What may tell one pre-training from another, in words."""
    corpora = params.get("corpora.names", "").split(",")
    return [
        params.get("model.representation", "").upper(),
        " + ".join(corpora) if len(corpora) < 3 else f"{len(corpora)} corpora",
        {"train": "train splits"}.get(params.get("pretrain.splits", ""), "all splits"),
        {"pitch": "notes by pitch"}.get(
            params.get("protocol.order", params.get("tokens.order", "")), "the protocol's order"
        ),
        f"protocol {params.get('tokens.protocol', '')}",
    ]


def finetuning(source: Source) -> str:
    """Validation accuracy by epoch, the mean of the seeds that came so far."""
    names = table.labels(source.tables)
    pictures = []
    for protocol, task in _columns(source):
        lines: dict[str, list[tuple[int, float]]] = {}
        for variant, label in names.items():
            runs = [run for run in source.children.values() if _tags(run) == (protocol, task, variant)]
            curves = [_Curves(source, run)("valid/accuracy", 100) for run in runs]
            lines[label] = _mean_curve(curves)
        figure = figures.curves(lines, x="epoch", y=f"{task}, {protocol}: validation accuracy, %")
        pictures.append(picture(figure, f"validation accuracy of {task} by epoch, protocol {protocol}"))
    return folded("Validation accuracy by epoch", f"<div class=pair>{''.join(pictures)}</div>") if pictures else ""


def _tags(run: Run) -> tuple[str, str, str]:
    tags = run.data.tags
    return tags.get("protocol", ""), tags.get("task", ""), tags.get("variant", "")


def _mean_curve(curves: Iterable[Iterable[tuple[int, float]]]) -> list[tuple[int, float]]:
    values: dict[int, list[float]] = {}
    for step, value in (point for points in curves for point in points):
        values.setdefault(step, []).append(value)
    return [(step, float(np.mean(values[step]))) for step in sorted(values)]


def cost(source: Source) -> str:
    """Device-hours and seconds of every cell."""
    rows = _by_variant(source, lambda score: f"{_hours(score.device_hours)}<small>{score.seconds:,.0f} s</small>")
    if not rows:
        return ""
    scores = table.scores(source.tables).items()
    sums = [sum(score.device_hours for key, score in scores if key[:2] == column) for column in _columns(source)]
    total = _hours(sum(sums))
    note = (
        f"Device-hours of fine-tuning and scoring, all seeds together, and below it their seconds one after the other: "
        f"{total} h in all. A device is a GPU, or a CPU core where there is none; pre-training is not counted."
    )
    return f"<p class=note>{note}</p>{grid(_heads(source), [*rows, ['all', *map(_hours, sums)]])}"


def _hours(hours: float) -> str:
    return f"{hours:.3f}" if hours < 10 else f"{hours:,.1f}"


def settings(source: Source) -> str:
    """Configuration, where MLflow is, and the ids of the runs."""
    lines = [f"{key} = {value}" for key, value in sorted(source.parent.data.params.items())]
    runs = json.dumps({name: run.info.run_id for name, run in source.children.items()}, indent=1)
    text = "\n".join(lines) + "\n\nMLflow " + source.tracker.address.command() + "\n" + runs
    return folded("Configuration and MLflow runs", f"<pre>{escape(text)}</pre>")
