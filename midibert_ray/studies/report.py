"""`report.html`: one self-contained page about a study, made from MLflow alone."""

import base64
import html
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from midibert_ray import storage, tracking
from midibert_ray.config import Config
from midibert_ray.studies import figures, outcome, table
from midibert_ray.studies.outcome import Outcome
from midibert_ray.tracking import Run, Tracker

logger = logging.getLogger(__name__)

PART_COLOURED = "melody"
"""The task whose predictions are drawn as a piano roll."""

BARS_SHOWN = 16


@dataclass(frozen=True)
class Source:
    """A study as it stands in MLflow."""

    tracker: Tracker
    experiment: str
    parent: Run
    children: list[Run]
    outcomes: list[Outcome]

    @property
    def protocol(self) -> str:
        """`paper` or `clean`."""
        return str(self.parent.data.tags["protocol"])

    def pretraining(self) -> Run | None:
        """The run that made the encoder, if it is in the same MLflow."""
        return self.tracker.find(tracking.PRETRAINING, self.parent.data.tags["encoder"])


def load(config: Config, key: str) -> Source:
    """Find a study in MLflow.

    Args:
        config: says where MLflow is.
        key: name and hash of the study, or its name alone for the newest of that name.

    Raises:
        LookupError: where there is no such study; names those that exist.
    """
    tracker = Tracker(tracking.address(config))
    names = tracker.studies()
    for name in names:
        experiment = tracking.study_experiment(name)
        for parent in tracker.parents(experiment):
            if key in (name, parent.data.tags[tracking.RUN_KEY]):
                children = tracker.children(experiment, parent.info.run_id)
                found = [tracker.artifact(child.info.run_id, outcome.OUTCOME) for child in children]
                outcomes = [Outcome.from_json(text) for text in found if text]
                return Source(tracker, experiment, parent, children, outcomes)
    raise LookupError(f"no study {key!r} in {tracker.where.uri}; there are: {', '.join(names) or 'none'}")


def write(config: Config, key: str) -> str:
    """Make the report of a study; returns its address, `{root}/reports/<study>/report.html`.

    Raises:
        LookupError: where MLflow has no such study.
    """
    source = load(config, key)
    page = render(source)
    name = source.parent.data.tags[tracking.RUN_KEY]
    place = address(config, name)
    storage.write_bytes(place, page.encode())
    source.tracker.client.log_text(source.parent.info.run_id, page, "report.html")
    return place


def address(config: Config, key: str) -> str:
    """Where the report of the study with this key stands."""
    return storage.join(storage.resolve(config.storage.root), "reports", key, "report.html")


def render(source: Source) -> str:
    """The page as HTML; every picture and style is within it."""
    sections = [*_outcomes(source), ("Settings", _settings(source))]
    style = resources.files("midibert_ray.studies").joinpath("report.css").read_text()
    body = "\n".join(f"<section><h2>{title}</h2>\n{content}</section>" for title, content in sections if content)
    name = html.escape(source.parent.data.tags[tracking.RUN_KEY])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} · MidiBERT study</title><style>{style}</style></head>
<body><header><h1>{name}</h1>{_facts(source)}</header>
{body}
</body></html>
"""


def _outcomes(source: Source) -> list[tuple[str, str]]:
    """The sections about trials, of which there may be none that has finished."""
    if not source.outcomes:
        return [("Results", "<p>No trial has finished.</p>")]
    return [
        ("Results", _results(source)),
        ("Pre-training", _pretraining(source)),
        ("Fine-tuning", _finetuning(source)),
        ("What the melody model hears", _piano_roll(source)),
        ("Confusion matrices", _confusions(source)),
    ]


def _facts(source: Source) -> str:
    params = source.parent.data.params
    corpora = params["corpora.names"]
    size = f"{params['model.layers']} layers × {params['model.hidden']}, {params['model.attention']}"
    facts = [f"protocol {source.protocol}", f"pre-trained on {corpora}", size, f"{len(source.outcomes)} trials"]
    failed = [child.info.run_name for child in source.children if child.info.status == "FAILED"]
    facts += [f"failed: {', '.join(failed)}"] if failed else []
    return "<p class=facts>" + " · ".join(html.escape(fact) for fact in facts) + "</p>"


def _results(source: Source) -> str:
    cells = table.cells(source.outcomes)
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    found = {(cell.variant, cell.task): cell for cell in cells}
    best = {task: max(cell.accuracy for cell in cells if cell.task == task) for task in tasks}
    rows = []
    for variant in dict.fromkeys(cell.variant for cell in cells):
        row = [_cell(found.get((variant, task)), best[task]) for task in tasks]
        kind = " class=trivial" if variant == table.MAJORITY else ""
        rows.append(f"<tr{kind}><th>{html.escape(variant)}</th>{''.join(row)}</tr>")
    head = "".join(f"<th>{html.escape(task)}</th>" for task in tasks)
    note = (
        "Accuracy on the test split in %, with its 95 % interval: Student's t over seeds where there are several, "
        "else Wilson's over the scored notes or segments. Notes of one piece resemble each other, so that for "
        "note-level tasks the latter is narrower than the truth."
    )
    grid = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"{grid}<p class=note>{note}</p>{picture(figures.bars(cells), 'accuracy of every variant by task')}"


def _cell(cell: table.Cell | None, best: float) -> str:
    if cell is None:
        return "<td class=missing>–</td>"
    kind = " class=best" if cell.accuracy == best else ""
    interval = f"<small>{100 * cell.low:.1f} – {100 * cell.high:.1f}</small>"
    return f"<td{kind}>{100 * cell.accuracy:.2f} {interval}</td>"


def _pretraining(source: Source) -> str:
    run = source.pretraining()
    if run is None:
        return ""
    identity = run.info.run_id
    losses = {name: source.tracker.curve(identity, f"{name}/loss") for name in ("train", "valid")}
    families = {
        f"valid {family}": source.tracker.curve(identity, f"valid/accuracy/{family}")
        for family in ("bar", "position", "pitch", "duration")
    }
    families = {name: [(step, 100 * value) for step, value in points] for name, points in families.items()}
    loss = picture(figures.curves(losses, x="step", y="weighted loss"), "pre-training loss")
    accuracy = picture(figures.curves(families, x="step", y="accuracy of masked tokens, %"), "accuracy by token type")
    return f"<div class=pair>{loss}{accuracy}</div>"


def _finetuning(source: Source) -> str:
    pictures = []
    for task in dict.fromkeys(item.task for item in source.outcomes):
        runs = [child for child in source.children if child.data.tags["task"] == task]
        lines = {}
        for run in runs:
            points = source.tracker.curve(run.info.run_id, "valid/accuracy")
            lines[run.info.run_name.removeprefix(f"{task}-")] = [(step, 100 * value) for step, value in points]
        figure = figures.curves(lines, x="epoch", y=f"{task}: validation accuracy, %")
        pictures.append(picture(figure, f"validation accuracy of {task} by epoch"))
    return f"<div class=pair>{''.join(pictures)}</div>"


def _piano_roll(source: Source) -> str:
    scored = [item for item in source.outcomes if item.task == PART_COLOURED]
    if not scored:
        return ""
    best = max(scored, key=lambda item: item.figures["test/accuracy"])
    run = next(child for child in source.children if child.info.run_name == best.trial)
    content = source.tracker.artifact(run.info.run_id, outcome.PREDICTIONS)
    if content is None:
        return ""
    notes = pq.read_table(io.BytesIO(content))
    piece = notes["piece"][0].as_py()
    notes = notes.filter(pc.equal(notes["piece"].cast("string"), piece))
    column = {name: notes[name].to_numpy() for name in ("onset", "pitch", "duration", "label", "prediction")}
    shown = column["onset"] < column["onset"].min() // 16 * 16 + 16 * BARS_SHOWN
    column = {name: np.asarray(values)[shown] for name, values in column.items()}
    rolls = {"as annotated": column["label"], f"as predicted by {best.variant}": column["prediction"]}
    where = {name: column[name] for name in ("onset", "pitch", "duration")}
    figure = figures.piano_rolls(rolls, classes=best.classes, **where)
    agree = float((column["label"] == column["prediction"]).mean())
    text = f"The first {BARS_SHOWN} bars of test piece {html.escape(piece)}; {agree:.1%} of these notes are right."
    return f"<p>{text}</p>{picture(figure, 'piano roll of a test piece')}"


def _confusions(source: Source) -> str:
    ordered: Sequence[Outcome] = sorted(source.outcomes, key=lambda item: item.task)
    drawn = (picture(figures.confusion(item), f"confusion matrix of {item.trial}") for item in ordered)
    return f"<p class=note>In % of each true class.</p><div class=wall>{''.join(drawn)}</div>"


def _settings(source: Source) -> str:
    lines = [f"{key} = {value}" for key, value in sorted(source.parent.data.params.items())]
    runs = json.dumps({child.info.run_name: child.info.run_id for child in source.children}, indent=1)
    text = "\n".join(lines) + "\n\nMLflow " + source.tracker.where.command() + "\n" + runs
    return f"<details><summary>configuration and MLflow runs</summary><pre>{html.escape(text)}</pre></details>"


def picture(figure: Figure, alt: str) -> str:
    """A figure as an `img` element that carries its own data."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
