"""Labels of a corpus's pieces that its owner gives: class folders, or a table at the top of the folder.

The words are those of Hugging Face's folders: `metadata.csv`, `.jsonl` or `.parquet` with `file_name` and one column a
label, optionally `split` and `group`. Labels stay as they are spelled; `make_task` says what they mean.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, cast

import numpy as np
import pandas as pd

from midibert_ray.corpora.labels import Piece
from midibert_ray.music.tasks import TAG_MARK, TASKS, Kind, Metric, Task, split_tags

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Names that a table of labels may have, at the top of the corpus's folder."""
FILE, SPLIT, GROUP = "file_name", "split", "group"
"""Columns that are no labels: a path below the folder; train, validation or test; and what must not be divided."""
FOLDERS = "class folders"
PREFIX = "label."
"""Stands before a column's name in the token store (`Task.column`)."""
MOST_CLASSES = 255
"""Predictions are kept as bytes."""

Columns = Mapping[str, Sequence[str | None]]
_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
}
_METRICS: dict[Kind, Metric] = {"classes": "accuracy", "number": "r2", "tags": "average_precision"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")
_NUMBERS = 0.5  # share of numbers from which on a column is taken for one of numbers


class LabelError(ValueError):
    """Labels that cannot be used; the message names the file, the row, the value and what is allowed."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels of a corpus, a row a piece."""

    source: str
    """The table's name, or `FOLDERS`."""
    pieces: tuple[str, ...] = field(repr=False)
    """Ids, each once."""
    rows: tuple[int, ...] = field(repr=False)
    """Where in the table each stands, as an editor numbers its rows."""
    columns: Mapping[str, tuple[str | None, ...]] = field(repr=False)
    """Labels as they are spelled; None where a cell is empty."""
    splits: tuple[str | None, ...] | None = field(repr=False, default=None)
    """`train`, `valid` or `test`; None where the table has no such column."""
    groups: tuple[str | None, ...] | None = field(repr=False, default=None)
    missing: tuple[str, ...] = ()
    """Files of rows that are not below the folder."""
    unknown: tuple[str, ...] = ()
    """Pieces that no row names."""

    @functools.cached_property
    def digest(self) -> str:
        """A digest of all that it says."""
        content = [self.pieces, sorted(self.columns.items()), self.splits, self.groups]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def at(self, number: int) -> str:
        """The place of a row, for a message."""
        return f"{self.pieces[number]}" if self.source == FOLDERS else f"row {self.rows[number]} of {self.source}"


def from_folders(pieces: Iterable[Piece]) -> Labels | None:
    """The labels of `jazz/a.mid`, or `train/jazz/a.mid`: of a corpus all of whose folders say what lies in them.

    None where there are fewer than two such folders.
    """
    paths = {piece.piece: PurePosixPath(piece.files[0]).parts[:-1] for piece in pieces}
    divided = bool(paths) and all(parts and parts[0] in _SPLITS for parts in paths.values())
    depth = int(divided)
    labelled = {piece: parts for piece, parts in paths.items() if len(parts) > depth}
    if len({parts[depth] for parts in labelled.values()}) < 2:
        return None
    return Labels(
        source=FOLDERS,
        pieces=tuple(labelled),
        rows=(0,) * len(labelled),
        columns={"label": tuple(parts[depth] for parts in labelled.values())},
        splits=tuple(_SPLITS[parts[0]] for parts in labelled.values()) if divided else None,
        unknown=tuple(sorted(paths.keys() - labelled.keys())),
    )


def unlabelled(pieces: Iterable[Piece]) -> Labels:
    """Pieces without labels of their own, to be divided for labels of their notes."""
    names = tuple(piece.piece for piece in pieces)
    return Labels(source="no table", pieces=names, rows=(0,) * len(names), columns={})


def read_columns(name: str, content: bytes) -> Columns:
    """The columns of a table as text, None where a cell is empty; several labels of a cell are joined by `TAG_MARK`.

    Raises:
        LabelError: for content that is no such table, or a table without rows.
    """
    stream, kind = io.BytesIO(content), name.rpartition(".")[2]
    try:
        if kind == "csv":
            frame = pd.read_csv(stream, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False)
        elif kind == "jsonl":
            frame = pd.read_json(stream, lines=True, dtype=False, convert_dates=False)
        else:
            frame = pd.read_parquet(stream)
    except (ValueError, OSError) as error:  # pandas' and pyarrow's own errors are of these kinds
        raise LabelError(f"{name} cannot be read as {kind}: {' '.join(str(error).split())[:200]}") from error
    if not len(frame):
        raise LabelError(f"{name} has no rows; give one a file, with {FILE} and a column a label")
    return {str(name): list(map(_text, frame[name].tolist())) for name in frame.columns}


def _text(cell: Any) -> str | None:
    """A cell as it is spelled; None where it is empty."""
    if type(cell) is str:  # nearly all are
        return cell.strip() or None
    if isinstance(cell, list | tuple | np.ndarray):
        return TAG_MARK.join(text for item in cell if (text := _text(item))) or None
    if cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return (str(cell).lower() if isinstance(cell, bool) else str(cell).strip()) or None


def from_columns(name: str, table: Columns, pieces: Sequence[Piece]) -> Labels:
    """The labels that a table has for the pieces of a corpus.

    Raises:
        LabelError: for a table without `file_name`, a file that is named twice, a split of another name, or a table
            that names no piece at all.
    """
    if FILE not in table:
        raise LabelError(f"{name} has no column {FILE}{nearest(FILE, table)}; its columns: {_some(table)}")
    ids = {piece.files[0]: piece.piece for piece in pieces}
    files, first_row = table[FILE], 1 if name.endswith(".csv") else 0
    rows = [number + 1 + first_row for number in range(len(files))]
    _require_once(name, files, rows, table.get(SPLIT))
    there = [number for number, file in enumerate(files) if file in ids]
    missing = tuple(file for file in files if file and file not in ids)
    if not there:
        raise LabelError(
            f"{name} names none of the {len(ids):,} MIDI files below its folder: row {rows[0]} has {files[0]!r}, the "
            f"first file is {min(ids)!r}; give paths below the folder"
        )
    columns = {name: tuple(cells[number] for number in there) for name, cells in table.items()}
    chosen = tuple(rows[number] for number in there)
    columns.pop(FILE)
    named = tuple(ids[str(files[number])] for number in there)
    return Labels(
        source=name,
        pieces=named,
        rows=chosen,
        splits=_read_splits(name, chosen, columns.pop(SPLIT)) if SPLIT in columns else None,
        groups=columns.pop(GROUP, None),
        columns=columns,
        missing=missing,
        unknown=tuple(sorted(set(ids.values()).difference(named))),
    )


def _require_once(name: str, files: Sequence[str | None], rows: Sequence[int], splits: Sequence[Any] | None) -> None:
    """Refuse an empty file name, and a file that two rows name."""
    first: dict[str, int] = {}
    for number, file in enumerate(files):
        if file is None:
            raise LabelError(f"{name}, row {rows[number]}: {FILE} is empty; give a path below the folder")
        before = first.setdefault(file, number)
        if before != number:
            told = f" (splits {splits[before]!r} and {splits[number]!r})" if splits else ""
            raise LabelError(
                f"{name} names {file!r} twice, in rows {rows[before]} and {rows[number]}{told}; keep one row a file"
            )


def _read_splits(name: str, rows: Sequence[int], cells: Sequence[str | None]) -> tuple[str | None, ...]:
    for row, cell in zip(rows, cells, strict=True):
        if cell is not None and cell.lower() not in _SPLITS:
            raise LabelError(
                f"{name}, row {row}: split={cell!r} is not allowed; use train, validation, test, or leave it empty"
            )
    return tuple(_SPLITS[cell.lower()] if cell else None for cell in cells)


def make_task(labels: Labels, column: str, corpus: str, kind: str = "") -> Task:
    """The task of a column: of numbers if all of its labels are, of several labels if one has a `TAG_MARK`.

    A task of the catalogue with the same name and classes keeps its other fields.

    Args:
        labels: of the corpus.
        column: its name, which becomes the task's.
        corpus: name.
        kind: overrules what the labels look like.

    Raises:
        LabelError: for a column that is not there, has no labels, too many classes, or labels that are not of its kind.
    """
    if column not in labels.columns:
        raise LabelError(
            f"{labels.source} of {corpus} has no column {column!r}{nearest(column, labels.columns)}; its labels: "
            f"{_some(labels.columns)}"
        )
    if not _NAME.fullmatch(column):
        raise LabelError(
            f"{labels.source} of {corpus}: the column {column!r} cannot name a task; rename it with letters, "
            "digits and . _ = + -"
        )
    cells = {number: cell for number, cell in enumerate(labels.columns[column]) if cell is not None}
    if not cells:
        raise LabelError(f"{labels.source} of {corpus}: the column {column!r} has no label; fill its cells")
    distinct = Counter(cells.values())
    chosen = cast(Kind, kind) if kind else guess_kind(distinct)
    classes = () if chosen == "number" else _classes(distinct, chosen)
    if chosen == "number":
        _require_numbers(labels, column, cells)
    elif not 2 <= len(classes) <= MOST_CLASSES:
        raise LabelError(
            f"{labels.source} of {corpus}: the column {column!r} has {len(classes):,} different labels, such as "
            f"{classes[0]!r} ({labels.at(next(iter(cells)))}); 2 to {MOST_CLASSES} make classes"
        )
    known = TASKS.get(column)
    if known and known.level == "sequence" and chosen == "classes" and set(known.classes) == set(classes):
        return replace(known, corpus=corpus, column=PREFIX + column)
    return Task(
        name=column,
        level="sequence",
        kind=chosen,
        classes=classes,
        corpus=corpus,
        column=PREFIX + column,
        metric=_METRICS[chosen],
    )


def guess_kind(cells: Mapping[str, int]) -> Kind:
    """The kind of some labels by their looks, given how often each occurs: numbers, where most of them are."""
    if any(TAG_MARK in cell for cell in cells):
        return "tags"
    numbers = sum(count for cell, count in cells.items() if is_number(cell))
    return "number" if numbers >= _NUMBERS * sum(cells.values()) else "classes"


def _classes(cells: Iterable[str], kind: str) -> tuple[str, ...]:
    names = {name for cell in cells for name in (split_tags(cell) if kind == "tags" else (cell,))}
    return tuple(sorted(names, key=lambda name: (float(name) if is_number(name) else math.inf, name)))


def _require_numbers(labels: Labels, column: str, cells: Mapping[int, str]) -> None:
    for number, cell in cells.items():
        if not is_number(cell):
            raise LabelError(
                f"{labels.at(number)}: {column}={cell!r} is no number, as {len(cells):,} labels there mostly are; "
                f"give a finite number, leave it empty, or take them all for classes: study.kinds={column}:classes"
            )


def is_number(text: str) -> bool:
    """Tell whether a label is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def counts(labels: Labels, task: Task) -> Counter[str]:
    """Pieces of each class of a task."""
    cells = labels.columns[task.column.removeprefix(PREFIX)]
    return Counter(name for cell in cells if cell for name in (split_tags(cell) if task.kind == "tags" else (cell,)))


def nearest(name: str, known: Iterable[Any]) -> str:
    """The name that was meant, most likely, as the end of a message."""
    near = difflib.get_close_matches(name, map(str, known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _some(names: Iterable[Any], most: int = 12) -> str:
    shown = list(map(str, names))
    return ", ".join(shown[:most]) + (f" and {len(shown) - most:,} more" if len(shown) > most else "")
