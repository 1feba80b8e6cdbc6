"""Result tables: accuracy of each cell with its 95 % interval, as rows for CSV, Markdown and charts."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from midibert_ray.studies.outcome import Outcome

MAJORITY = "majority class"
"""Row of the trivial baseline: always answer the most frequent class of the test split."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row and column of a table, over its seeds."""

    variant: str
    task: str
    accuracy: float
    """Mean over the seeds."""

    low: float
    high: float
    """95 % interval: over seeds where there are several, else Wilson's over the scored notes or segments."""

    f1: float
    """Mean macro-F1."""

    scored: int
    """Test notes or segments."""

    seeds: int


def cells(outcomes: Sequence[Outcome]) -> list[Cell]:
    """All cells of a study, in the order in which tasks and variants first come, then the trivial baselines."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for item in outcomes:
        groups.setdefault((item.task, item.variant), []).append(item)
    return [_cell(group) for group in groups.values()] + [_majority(group[0]) for group in _by_task(outcomes).values()]


def _by_task(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for item in outcomes:
        groups.setdefault(item.task, []).append(item)
    return groups


def _cell(group: Sequence[Outcome]) -> Cell:
    accuracies = [item.figures["test/accuracy"] for item in group]
    mean = sum(accuracies) / len(accuracies)
    low, high = seed_interval(accuracies) if len(group) > 1 else wilson(mean, group[0].scored)
    f1 = sum(item.figures["test/f1"] for item in group) / len(group)
    first = group[0]
    return Cell(
        variant=first.variant,
        task=first.task,
        accuracy=mean,
        low=low,
        high=high,
        f1=f1,
        scored=first.scored,
        seeds=len(group),
    )


def _majority(item: Outcome) -> Cell:
    low, high = wilson(item.majority, item.scored)
    support = [sum(row) for row in item.confusion]
    present = sum(count > 0 for count in support)
    f1 = 2 * item.majority / (1 + item.majority) / present
    return Cell(
        variant=MAJORITY,
        task=item.task,
        accuracy=item.majority,
        low=low,
        high=high,
        f1=f1,
        scored=item.scored,
        seeds=1,
    )


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share of n independent trials.

    Notes of one piece are not independent, so for note-level tasks the interval is narrower than the truth.
    """
    if n == 0:
        return 0.0, 1.0
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def seed_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of a few seeds by Student's t."""
    n, mean = len(values), sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    quantiles = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
    quantile = quantiles[n - 2] if n - 2 < len(quantiles) else 2.0
    half = quantile * deviation / math.sqrt(n)
    return mean - half, mean + half


def to_csv(outcomes: Sequence[Outcome]) -> str:
    """One line a cell."""
    buffer = io.StringIO()
    rows = [vars(cell) for cell in cells(outcomes)]
    writer = csv.DictWriter(buffer, fieldnames=list(Cell.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def to_markdown(outcomes: Sequence[Outcome], failed: Mapping[str, str] | None = None) -> str:
    """Rows are variants, columns tasks: accuracy in %, and its 95 % interval."""
    table = {(cell.variant, cell.task): cell for cell in cells(outcomes)}
    tasks = list(dict.fromkeys(task for _, task in table))
    lines = ["| | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
    for variant in dict.fromkeys(variant for variant, _ in table):
        shown = [_show(table[variant, task]) if (variant, task) in table else "–" for task in tasks]
        lines.append(f"| {variant} | " + " | ".join(shown) + " |")
    lines += ["", *(f"failed: {name}: {reason}" for name, reason in (failed or {}).items())]
    return "\n".join(lines).rstrip() + "\n"


def to_text(outcomes: Sequence[Outcome]) -> str:
    """The same table for a terminal."""
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in to_markdown(outcomes).splitlines()]
    rows = [row for row in rows if not row[0].startswith("---")]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(part.ljust(width) for part, width in zip(row, widths, strict=True)) for row in rows)


def _show(cell: Cell) -> str:
    return f"{100 * cell.accuracy:.2f} [{100 * cell.low:.1f}, {100 * cell.high:.1f}]"
