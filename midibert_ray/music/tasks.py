"""Downstream tasks as values: what a label is, where it is read from, and what scores without any model.

The paper's four and two of ours are in `TASKS`; those of somebody's own labels are made from a corpus's table
(`corpora.table`), and handed on. Nothing asks for a task's name.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["classes", "number", "tags"]
Metric = Literal["accuracy", "f1", "r2", "average_precision"]
TAG_MARK = ";"
"""Stands between the labels of a cell that has several."""
NOTE_COLUMNS = ("part", "velocity")
"""Columns of the token store that note labels are read from."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A downstream task."""

    name: str
    level: Literal["note", "sequence"]
    """Level of the labels: a note each, or a segment each (all segments of a piece have the piece's)."""
    kind: Kind = "classes"
    """Kind of the labels: a class (classification), a number (regression), or any number of classes (multi-label)."""
    classes: tuple[str, ...]
    """Names of the classes, padding not counted; none for a number. Note-level labels are 1..C (0 is padding),
    sequence-level 0..C-1."""
    corpus: str
    """The corpus that has the labels, and lists its training, validation and test pieces."""
    column: str = "label"
    """Of the token store: for notes `part` or `velocity`, for sequences the column of a piece's labels
    (`TokenStore.label`): `label` that of the paper's corpora, `label.genre` the column `genre` of a table."""
    edges: tuple[int, ...] = ()
    """Lowest value of each class but the first; without edges the column holds the label itself. A part of 0 is
    unknown either way."""
    drops_short_rows: bool = False
    """Leave out a piece's last segment if it is less than half full (reference behaviour)."""
    metric: Metric = "accuracy"
    """Validation metric by which the best epoch and the best draw are chosen; higher is better."""
    rnn_lr: float = 1e-3
    """Learning rate of the authors' recurrent baseline."""
    melody: str = ""
    """The class that skyline tells from all others; empty where skyline is no baseline."""
    song: str = ""
    """Pattern of a piece's id whose group names the song that the piece was cut from; empty: no piece is cut."""

    @property
    def labelled(self) -> str:
        """The column in which a piece must have a label to take part; empty where all do (notes, and the paper's)."""
        return "" if self.level == "note" or self.column == "label" else self.column

    def __post_init__(self) -> None:
        """Refuse a task that contradicts itself: a ValueError that names it and the field."""
        if (self.column in NOTE_COLUMNS) is not (self.level == "note"):
            names = " or ".join(NOTE_COLUMNS)
            raise ValueError(
                f"task {self.name!r}: column={self.column!r}; note-level tasks read {names}, others neither"
            )
        if bool(self.classes) is (self.kind == "number") or (self.level == "note" and self.kind != "classes"):
            raise ValueError(
                f"task {self.name!r}: kind={self.kind!r} with {len(self.classes)} classes at level {self.level}; "
                "numbers have none, and notes have classes alone"
            )
        if self.edges and len(self.edges) != len(self.classes) - 1:
            raise ValueError(f"task {self.name!r}: edges={self.edges}; {len(self.classes)} classes have one less")
        if self.melody and self.melody not in self.classes:
            raise ValueError(f"task {self.name!r}: melody={self.melody!r}; use one of {', '.join(self.classes)}")


MELODY = Task(
    name="melody",
    level="note",
    classes=("melody", "bridge", "accompaniment"),
    corpus="pop909",
    column="part",
    melody="melody",
)

VELOCITY = Task(
    name="velocity",
    level="note",
    classes=("pp", "p", "mp", "mf", "f", "ff"),
    corpus="pop909",
    column="velocity",
    edges=(32, 48, 64, 80, 96),
)

COMPOSER = Task(
    name="composer",
    level="sequence",
    classes=("Bethel", "Clayderman", "Einaudi", "Hancock", "Hillsong", "Hisaishi", "Ryuichi", "Yiruma"),
    corpus="pianist8",
    drops_short_rows=True,
    rnn_lr=1e-2,
)

EMOTION = Task(
    name="emotion",
    level="sequence",
    # happy (high valence, high arousal), angry (low, high), sad (low, low), calm (high, low)
    classes=("Q1", "Q2", "Q3", "Q4"),
    corpus="emopia",
    rnn_lr=5e-2,
    song=r"[^_]*_(.*)_[^_]*",  # clips are named Q1_<song>_<number>.mid
)

PAPER_TASKS = (MELODY, VELOCITY, COMPOSER, EMOTION)
"""The four tasks of the paper (§IV), in the order of its tables."""

LINE = Task(
    name="line",
    level="note",
    # a singer's, a soloist's or a song's melody against all else, whatever a corpus calls it: to learn it of several
    classes=("melody", "accompaniment"),
    corpus="pop909",
    column="part",
    edges=(2,),  # POP909's bridge is no melody
    metric="f1",
    melody="melody",
)

LIEDER_COMPOSER = Task(
    name="lieder_composer",
    level="sequence",
    # with at least 20 songs in three cycles, so that cycles can be divided
    classes=(
        *("Brahms,_Johannes", "Cornelius,_Peter", "Debussy,_Claude", "Faisst,_Clara_Mathilda", "Fauré,_Gabriel"),
        *("Franz,_Robert", "Hensel,_Fanny", "Holmès,_Augusta_Mary_Anne", "Kinkel,_Johanna", "Lang,_Josephine"),
        *("Lehmann,_Liza", "Reichardt,_Louise", "Schubert,_Franz", "Schumann,_Robert", "Viardot,_Pauline"),
        *("Warlock,_Peter", "Wolf,_Hugo"),
    ),
    corpus="lieder_composers",
)

TASKS: dict[str, Task] = {task.name: task for task in (*PAPER_TASKS, LINE, LIEDER_COMPOSER)}
"""All tasks by name, in the order of the columns of a table."""


def one_task(tasks: Sequence[Task]) -> Task:
    """A task of several corpora, whose classes are those of all of them in the order in which they come.

    Raises:
        ValueError: where one of them labels something else than the others.
    """
    first, *others = tasks
    for task in others:
        for name in ("level", "kind", "column", "edges"):
            if getattr(task, name) != getattr(first, name):
                raise ValueError(
                    f"task {first.name!r}: {name}={getattr(first, name)!r} in {first.corpus}, "
                    f"{getattr(task, name)!r} in {task.corpus}; give corpora that label the same"
                )
    classes = tuple(dict.fromkeys(name for task in tasks for name in task.classes))
    return replace(first, classes=classes) if classes != first.classes else first


def note_labels(task: Task, notes: object) -> NDArray[np.uint8]:
    """The labels of notes: uint8 of the column's shape, 1..C; 0 where it is unknown, to be treated as padding.

    Args:
        task: a note-level task.
        notes: what has the columns of a token store as attributes: `Tokens`, `TokenStore`, `SegmentBatch`.

    Raises:
        ValueError: the task is not note-level.
    """
    if task.level != "note":
        raise ValueError(f"task {task.name!r} has no note labels; {_names('note')} have")
    values: NDArray[np.uint8] = getattr(notes, task.column)
    if not task.edges:
        return values.astype(np.uint8)
    classes = np.searchsorted(task.edges, values, side="right") + 1
    return np.where((values == 0) & (task.column == "part"), 0, classes).astype(np.uint8)


def sequence_label(task: Task, label: str) -> int:
    """The class of a piece, 0..C-1, from its label in the corpus ("Bethel", "Q3").

    Raises:
        ValueError: the task is not sequence-level, or has no such class.
    """
    if task.level != "sequence":
        names = _names("sequence")
        raise ValueError(f"task {task.name!r} labels notes, not sequences; {names} label sequences")
    if label not in task.classes:
        raise ValueError(f"{label!r} is no class of task {task.name!r}; the classes are {', '.join(task.classes)}")
    return task.classes.index(label)


def sequence_number(task: Task, label: str) -> float:
    """The number of a piece, from its label as the corpus's table spells it.

    Raises:
        ValueError: the label is no finite number.
    """
    with contextlib.suppress(ValueError):
        if math.isfinite(value := float(label)):
            return value
    raise ValueError(f"{label!r} is no number, as task {task.name!r} needs it; use a finite one")


def sequence_tags(task: Task, label: str) -> tuple[int, ...]:
    """The classes of a piece, each 0..C-1, ascending, from its label as the corpus's table spells it (`sad;slow`).

    Raises:
        ValueError: the task has no such class.
    """
    return tuple(sorted({sequence_label(task, tag) for tag in split_tags(label)}))


def split_tags(label: str) -> list[str]:
    """The parts of a cell with several labels, such as `sad;slow`."""
    return [tag for part in label.split(TAG_MARK) if (tag := part.strip())]


def _names(level: str) -> str:
    return ", ".join(task.name for task in TASKS.values() if task.level == level)
