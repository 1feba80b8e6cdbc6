"""Result tables as CSV, Markdown and text for a terminal; `page` has them as HTML."""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import pandas as pd

from midibert_ray.report.baselines import MAJORITY, QUADRANTS, Baseline
from midibert_ray.report.findings import MelodyOrNot
from midibert_ray.report.statistics import Interval, p_text
from midibert_ray.report.table import STATISTICS, Cell, Key, ResultTable, majority_f1
from midibert_ray.settings.text import aligned, piped

FIELDS = (
    *("table", "protocol", "task", "variant", "row", "accuracy", "low", "high", "wilson_low", "wilson_high"),
    *("seeds_low", "seeds_high", "pieces_low", "pieces_high", "f1", "piece_accuracy", "scored", "seeds", "seconds"),
    *("device_hours", "printed", "difference", "p", "failed", "mae", "spearman"),
)
"""Columns of the CSV: shares from 0 to 1, but `printed` and `difference`, which are the paper's percents. Of numbers
`accuracy` and its intervals are explained variance (R²), `mae` is in their units; of tags mean average precision."""
NONE_FINISHED = "No trial has finished."


def to_csv(tables: Iterable[ResultTable]) -> str:
    """The cells and trivial baselines, one a line, with all that is known of each."""
    records: list[dict[str, Any]] = []
    for table in tables:
        for row, protocol, task in product(table.rows, table.protocols, table.tasks):
            if cell := table.cells.get(Key(protocol, task, row.variant)):
                place = {"protocol": protocol, "task": task, "variant": row.variant, "row": row.label}
                records.append({"table": table.name} | place | _record(cell))
        for item in table.baselines:
            place = {"protocol": item.protocol, "task": item.task, "row": item.name}
            f1 = majority_f1(item) if item.name == MAJORITY else item.metrics.get("f1")
            low, high = item.interval or (None, None)
            metrics = {"accuracy": item.accuracy, "low": low, "high": high, "f1": f1, "scored": item.scored}
            errors = {name: item.metrics.get(name) for name in ("mae", "spearman")}
            records.append({"table": table.name} | place | metrics | errors)
    return pd.DataFrame(records, columns=list(FIELDS), dtype=object).to_csv(index=False, lineterminator="\n")


def _record(cell: Cell) -> dict[str, Any]:
    known = {"printed": cell.printed, "difference": cell.difference, "p": cell.p, "failed": cell.reasons}
    if score := cell.score:
        same = ("accuracy", "f1", "piece_accuracy", "mae", "spearman", "scored", "seeds", "seconds", "device_hours")
        known |= {name: getattr(score, name) for name in same}
        kinds = {"": score.interval, "wilson_": score.wilson, "seeds_": score.over_seeds, "pieces_": score.over_pieces}
        for kind, interval in kinds.items():
            known[f"{kind}low"], known[f"{kind}high"] = interval or (None, None)
    return known


def to_markdown(
    tables: Sequence[ResultTable], sentences: Sequence[str] = (), melody: Sequence[MelodyOrNot] = ()
) -> str:
    """A table for each protocol, below the findings in words, those of `findings.leaks`."""
    blocks = [*sentences]
    for table in tables:
        for protocol in table.protocols:
            blocks += [f"### {table.title}, protocol {protocol}", table.caption, piped(_grid(table, protocol))]
    if melody:
        blocks += ["### Melody or not", piped(melody_grid(melody))]
    blocks.append(STATISTICS if tables else NONE_FINISHED)
    cells = (cell for table in tables for cell in table.cells.values())
    failed = dict.fromkeys(f"- failed: {trial}: {reason}" for cell in cells for trial, reason in cell.failed.items())
    blocks += ["\n".join(failed)] if failed else []
    return "\n\n".join(blocks) + "\n"


def to_text(tables: Sequence[ResultTable]) -> str:
    """The tables for a terminal."""
    blocks = [
        f"{table.title}, protocol {protocol}. {table.caption}\n{aligned(_grid(table, protocol))}"
        for table in tables
        for protocol in table.protocols
    ]
    return "\n\n".join(blocks) or NONE_FINISHED


def _grid(table: ResultTable, protocol: str) -> list[list[str]]:
    """A table under one protocol as text: head, rows of models, rows of trivial baselines."""
    rows = [["", *table.tasks]]
    for row in table.rows:
        cells = (table.cells.get(Key(protocol, task, row.variant)) for task in table.tasks)
        rows.append([row.label, *map(_shown, cells)])
    for name in table.baseline_names():
        found = [table.trivial(protocol, task, name) for task in table.tasks]
        if any(found):
            rows.append([name, *(_answered(item) if item else "–" for item in found)])
    return rows


def _answered(item: Baseline) -> str:
    interval = f" [{', '.join(map(percent, item.interval))}]" if item.interval else ""
    return f"{percent(item.accuracy, 2)}{interval}"


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    if cell.score is None:
        return "failed"
    low, high = map(percent, cell.score.interval)
    printed = f"(paper {cell.printed:.2f})" if cell.printed is not None else ""
    failed = f"{len(cell.failed)} failed" if cell.failed else ""
    parts = [f"{percent(cell.score.accuracy, 2)} [{low}, {high}]", printed, p_text(cell.p), failed]
    return " ".join(filter(None, parts))


def percent(share: float, digits: int = 1) -> str:
    """A share in %, with a minus sign where it is below 0, as explained variance may be."""
    return f"{100 * share:.{digits}f}".replace("-", "−")


def between(interval: Interval | None) -> str:
    """An interval in %."""
    return " – ".join(map(percent, interval)) if interval else ""


def hours(amount: float) -> str:
    """Hours with as many digits as are read."""
    return f"{amount:.3f}" if amount < 10 else f"{amount:,.1f}"


def melody_grid(melody: Sequence[MelodyOrNot]) -> list[list[str]]:
    """Melody against the rest as text: head, then a row a model and protocol, and task, if there are several."""
    several = len({item.task for item in melody}) > 1
    rows = [["", *["task"] * several, "protocol", "accuracy", "paper", "F1 of melody", *QUADRANTS]]
    for item in melody:
        printed = "" if item.printed is None else f"{item.printed:.2f}"
        place, shares = [*[item.task] * several, item.protocol], [percent(item.accuracy, 2), printed]
        counts = (f"{count:,.0f}" for count in item.counts)
        rows.append([item.name, *place, *shares, percent(item.f1, 2), *counts])
    return rows
