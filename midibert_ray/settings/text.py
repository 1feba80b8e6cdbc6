"""Numbers with their nouns, times, and tables as text: aligned for a terminal, or as Markdown."""

import re
from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """Lines whose columns stand two spaces apart.

    Args:
        rows: cells, the head first; all rows are of the same length.
        numbers: align every column but the first to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    justify = str.rjust if numbers else str.ljust
    lines = ("  ".join([first.ljust(widths[0]), *map(justify, rest, widths[1:])]) for first, *rest in rows)
    return "\n".join(line.rstrip() for line in lines)


def counted(count: float, things: str) -> str:
    """A number and its plural noun, which comes first in ``things``: "1 piece off the grid", "1,200 notes"."""
    first, *rest = things.split(" ", 1)
    return " ".join([f"{count:,}", first.removesuffix("s") if count == 1 else first, *rest])


def piped(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def plain_name(text: str) -> str:
    """A text for use in a name: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
