"""Self-contained HTML: a page, its tables and its pictures."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from matplotlib.figure import Figure

from midibert_ray.report import plots as figures
from midibert_ray.report.baselines import Baseline
from midibert_ray.report.formats import p_text
from midibert_ray.report.statistics import Interval
from midibert_ray.report.table import STATISTICS, Cell, Key, ResultTable, Score
from midibert_ray.studies.result import Outcome

DPI = 160
CSS_PIXELS = 96
"""To the inch, as browsers have it; pictures hold more, for fine screens and for print."""

PRINTED = "printed"
"""Column of the paper's own figures."""


def document(title: str, header: str, sections: Iterable[tuple[str, str]]) -> str:
    """A page; sections are headings and their HTML, and those without content are left out."""
    shown = [(name, content) for name, content in sections if content]
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name, _ in shown)
    nav = f"<nav>{links}</nav>" if len(shown) > 1 else ""
    body = "\n".join(f'<section id="{_anchor(name)}"><h2>{name}</h2>\n{content}\n</section>' for name, content in shown)
    style = resources.files("midibert_ray.report").joinpath("report.css").read_text()
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{style}</style></head>
<body><header><h1>{escape(title)}</h1>{header}{nav}</header>
<main>{body}</main>
</body></html>
"""


def _anchor(name: str) -> str:
    return "-".join(name.lower().split())


def to_html(tables: Sequence[ResultTable], sentences: Sequence[str] = ()) -> str:
    """The tables of a study alone, as a page."""
    sections = [(table.title, results(table)) for table in tables]
    return document("Results", findings(sentences), [*sections, ("How to read them", f"<p>{escape(STATISTICS)}</p>")])


def findings(sentences: Iterable[str]) -> str:
    """What a study says in plain words, set apart."""
    return "".join(f"<p class=finding>{escape(sentence)}</p>" for sentence in sentences)


def results(table: ResultTable) -> str:
    """A table of results: a group of columns a task, with the paper's figures and both protocols side by side."""
    kinds = [*([PRINTED] if any(row.printed for row in table.rows) else []), *table.protocols]
    columns = [(task, kind) for task in table.tasks for kind in kinds]
    tasks = "".join(f"<th colspan={len(kinds)} class=group>{task}</th>" for task in table.tasks)
    names = "".join(f"<th class={_edge(kind, kinds)}>{kind}</th>" for _, kind in columns)
    lines = []
    for row in table.rows:
        cells = (
            _printed(row.printed.get(task), kinds)
            if kind == PRINTED
            else _result(table, Key(kind, task, row.variant), _edge(kind, kinds))
            for task, kind in columns
        )
        lines.append(f"<tr><th>{escape(row.label)}</th>{''.join(cells)}</tr>")
    for name in table.baseline_names():
        found = (_trivial(table.trivial(kind, task, name), _edge(kind, kinds)) for task, kind in columns)
        lines.append(f"<tr class=trivial><th>{escape(name)}</th>{''.join(found)}</tr>")
    head = f"<thead><tr><th></th>{tasks}</tr><tr><th></th>{names}</tr></thead>"
    grid = f"<div class=wide><table class=results>{head}<tbody>{''.join(lines)}</tbody></table></div>"
    return f"<p class=note>{escape(table.caption)}</p>{grid}"


def _edge(kind: str, kinds: Sequence[str]) -> str:
    """Class of a cell: the first of a task's columns has a rule before it."""
    return "edge" if kind == kinds[0] else "inner"


def _printed(value: float | None, kinds: Sequence[str]) -> str:
    shown = "" if value is None else f"{value:.2f}"
    return f'<td class="printed {_edge(PRINTED, kinds)}">{shown}</td>'


def _result(table: ResultTable, key: Key, edge: str) -> str:
    cell = table.cells.get(key)
    if cell is None:
        return f'<td class="missing {edge}">–</td>'
    reasons = escape("; ".join(f"{trial}: {reason}" for trial, reason in cell.failed.items()))
    if cell.score is None:
        return f'<td class="failed {edge}" title="{reasons}">failed</td>'
    lines = [f"<b>{100 * cell.score.accuracy:.2f}</b>", f"<small>{between(cell.score.interval)}</small>"]
    lines += [f"<small>{escape(p_text(cell.p))}</small>"] if cell.p is not None else []
    lines += [f'<small class=failed title="{reasons}">{len(cell.failed)} failed</small>'] if cell.failed else []
    best = " best" if cell.score.accuracy == table.best(key.protocol, key.task) else ""
    return f'<td class="{edge}{best}" title="{escape(_tooltip(cell, cell.score))}">{"".join(lines)}</td>'


def _tooltip(cell: Cell, score: Score) -> str:
    parts = [f"Wilson {between(score.wilson)}", f"over pieces {between(score.over_pieces)}"]
    parts += [f"over {score.seeds} seeds {between(score.over_seeds)}"] if score.over_seeds else ["one seed"]
    parts += [f"macro-F1 {100 * score.f1:.1f}"]
    parts += [f"whole pieces {100 * score.piece_accuracy:.1f}"] if score.piece_accuracy is not None else []
    parts += [f"{cell.difference:+.2f} points to the paper"] if cell.difference is not None else []
    return "; ".join([*parts, f"{score.scored:,} scored in {len(score.tally)} pieces"])


def _trivial(item: Baseline | None, edge: str) -> str:
    if item is None:
        return f"<td class={edge}></td>"
    return f'<td class={edge} title="{escape(item.note)}"><b>{100 * item.accuracy:.2f}</b></td>'


def between(interval: Interval | None) -> str:
    """An interval in %."""
    return f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f}" if interval else ""


def grid(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "plain") -> str:
    """A table of HTML cells, the first of every row its heading."""
    names = "".join(f"<th>{name}</th>" for name in head)
    body = "".join(f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>" for first, *rest in rows)
    return f"<div class=wide><table class={kind}><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>"


def heat(group: Sequence[Outcome], caption: str) -> str:
    """A confusion matrix, the mean over some seeds, in % of each true class."""
    true, said, shares = figures.in_percent(group)
    names = "".join(f"<th><span>{escape(name)}</span></th>" for name in said)
    lines = []
    for name, row in zip(true, shares, strict=True):
        cells = "".join(
            f'<td style="background:rgba(42,111,151,{share / 100:.2f})" class={"dark" if share > 55 else "light"}>'
            f"{share:.0f}</td>"
            for share in row
        )
        lines.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    head = f"<thead><tr><th></th>{names}</tr></thead>"
    table = f"<table class=heat>{head}<tbody>{''.join(lines)}</tbody></table>"
    return f"<figure><figcaption>{escape(caption)}</figcaption>{table}</figure>"


def picture(figure: Figure, alt: str) -> str:
    """A figure as an `img` element that carries its own data."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    data = base64.b64encode(buffer.getvalue()).decode()
    width = round(figure.get_size_inches()[0] * CSS_PIXELS)
    return f'<img alt="{escape(alt)}" width={width} src="data:image/png;base64,{data}">'


def folded(summary: str, content: str) -> str:
    """Content behind a line that opens it."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>" if content else ""
