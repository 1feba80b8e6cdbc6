"""Result tables as CSV, Markdown and text for a terminal; `page` has them as HTML."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from midibert_ray.report.baselines import MAJORITY, Baseline
from midibert_ray.report.findings import MelodyOrNot
from midibert_ray.report.statistics import Interval
from midibert_ray.report.table import STATISTICS, Cell, Key, ResultTable, majority_f1

FIELDS = (
    *("table", "protocol", "task", "variant", "row", "accuracy", "low", "high", "wilson_low", "wilson_high"),
    *("seeds_low", "seeds_high", "pieces_low", "pieces_high", "f1", "piece_accuracy", "scored", "seeds", "seconds"),
    *("device_hours", "printed", "difference", "p", "failed"),
)
"""Columns of the CSV: shares from 0 to 1, but `printed` and `difference`, which are the paper's percents."""


def to_csv(tables: Iterable[ResultTable]) -> str:
    """One line a cell, with all that is known of it."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=FIELDS, lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for row in table.rows:
            for key in _keys(table, row.variant):
                if key in table.cells:
                    writer.writerow(
                        _place(table, key) | {"variant": key.variant, "row": row.label, **_cell(table.cells[key])}
                    )
        for item in table.baselines:
            key = Key(item.protocol, item.task, "")
            writer.writerow(_place(table, key) | {"row": item.name, **_baseline(item)})
    return buffer.getvalue()


def _keys(table: ResultTable, variant: str) -> Iterator[Key]:
    return (Key(protocol, task, variant) for protocol in table.protocols for task in table.tasks)


def _place(table: ResultTable, key: Key) -> dict[str, Any]:
    return {"table": table.name, "protocol": key.protocol, "task": key.task}


def _cell(cell: Cell) -> dict[str, Any]:
    reasons = "; ".join(f"{trial}: {reason}" for trial, reason in cell.failed.items())
    known = {"printed": cell.printed, "difference": cell.difference, "p": cell.p, "failed": reasons}
    score = cell.score
    if score is None:
        return known
    same = ("accuracy", "f1", "piece_accuracy", "scored", "seeds", "seconds", "device_hours")
    return (
        known
        | {name: getattr(score, name) for name in same}
        | _ends("", score.interval)
        | _ends("wilson_", score.wilson)
        | _ends("seeds_", score.over_seeds)
        | _ends("pieces_", score.over_pieces)
    )


def _baseline(item: Baseline) -> dict[str, Any]:
    f1 = majority_f1(item) if item.name == MAJORITY else None
    return {"accuracy": item.accuracy, "f1": f1, "scored": item.scored}


def _ends(prefix: str, interval: Interval | None) -> dict[str, Any]:
    return dict(zip((f"{prefix}low", f"{prefix}high"), interval or (None, None), strict=True))


def to_markdown(
    tables: Sequence[ResultTable], sentences: Sequence[str] = (), melody: Sequence[MelodyOrNot] = ()
) -> str:
    """One table a table of the paper and protocol, and what the study says in words.

    Args:
        tables: from `table.build`.
        sentences: from `findings.leaks`.
        melody: from `findings.melody_or_not`.
    """
    blocks = [*sentences]
    for table in tables:
        for protocol in table.protocols:
            blocks += [f"### {table.title}, protocol {protocol}", table.caption, _pipes(_grid(table, protocol))]
    if melody:
        blocks += ["### Melody or not", _pipes(melody_grid(melody))]
    blocks += [STATISTICS] if tables else ["No trial has finished."]
    blocks += ["\n".join(f"- failed: {line}" for line in failures(tables))]
    return "\n\n".join(block for block in blocks if block) + "\n"


def to_text(tables: Sequence[ResultTable]) -> str:
    """The same tables for a terminal."""
    blocks = []
    for table in tables:
        for protocol in table.protocols:
            blocks.append(f"{table.title}, protocol {protocol}. {table.caption}\n{_aligned(_grid(table, protocol))}")
    return "\n\n".join(blocks) or "No trial has finished."


def failures(tables: Iterable[ResultTable]) -> list[str]:
    """Each trial that failed, once, with its reason."""
    cells = (cell for table in tables for cell in table.cells.values())
    return list({trial: f"{trial}: {reason}" for cell in cells for trial, reason in cell.failed.items()}.values())


def _grid(table: ResultTable, protocol: str) -> list[list[str]]:
    """A table under one protocol as text: head, rows of models, rows of trivial baselines."""
    rows = [["", *table.tasks]]
    for row in table.rows:
        cells = (table.cells.get(Key(protocol, task, row.variant)) for task in table.tasks)
        rows.append([row.label, *(_shown(cell) for cell in cells)])
    for name in table.baseline_names():
        found = [table.trivial(protocol, task, name) for task in table.tasks]
        if any(found):
            rows.append([name, *(f"{100 * item.accuracy:.2f}" if item else "–" for item in found)])
    return rows


def _shown(cell: Cell | None) -> str:
    """A cell in a line: accuracy [interval], the paper's figure, p."""
    if cell is None:
        return "–"
    if cell.score is None:
        return "failed"
    low, high = cell.score.interval
    parts = [f"{100 * cell.score.accuracy:.2f} [{100 * low:.1f}, {100 * high:.1f}]"]
    parts += [f"(paper {cell.printed:.2f})"] if cell.printed is not None else []
    parts += [p_text(cell.p)] if cell.p is not None else []
    parts += [f"{len(cell.failed)} failed"] if cell.failed else []
    return " ".join(parts)


def p_text(p: float) -> str:
    """A p value as it is read."""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def melody_grid(melody: Sequence[MelodyOrNot]) -> list[list[str]]:
    """Melody against the rest as text: head, then a row a model and protocol."""
    head = ["", "protocol", "accuracy", "paper", "F1 of melody", "TP", "FP", "FN", "TN"]
    rows = [head]
    for item in melody:
        printed = "" if item.printed is None else f"{item.printed:.2f}"
        shares = [f"{100 * item.accuracy:.2f}", printed, f"{100 * item.f1:.2f}"]
        rows.append([item.name, item.protocol, *shares, *(f"{count:,.0f}" for count in item.counts)])
    return rows


def _pipes(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(part.ljust(width) for part, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
