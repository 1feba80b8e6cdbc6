"""The four downstream tasks of the paper (§IV): what a label is, and what it is read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

VELOCITY_EDGES = (32, 48, 64, 80, 96)
"""Lowest velocities of p, mp, mf, f and ff; below is pp."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A downstream task."""

    name: str
    level: Literal["note", "sequence"]
    """One label a note, or one a segment (all segments of a piece have the piece's)."""
    classes: tuple[str, ...]
    """Names of the classes, padding not counted. Note-level labels are 1..C (0 is padding), sequence-level
    0..C-1."""
    corpus: str
    """The corpus that has the labels."""
    drops_short_rows: bool = False
    """Leave out a piece's last segment if it is less than half full (reference behaviour, composer only)."""


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(name="melody", level="note", classes=("melody", "bridge", "accompaniment"), corpus="pop909"),
        Task(name="velocity", level="note", classes=("pp", "p", "mp", "mf", "f", "ff"), corpus="pop909"),
        Task(
            name="composer",
            level="sequence",
            classes=(
                "Bethel",
                "Clayderman",
                "Einaudi",
                "Hancock",
                "Hillsong",
                "Hisaishi",
                "Ryuichi",
                "Yiruma",
            ),
            corpus="pianist8",
            drops_short_rows=True,
        ),
        Task(name="emotion", level="sequence", classes=("Q1", "Q2", "Q3", "Q4"), corpus="emopia"),
    )
}
"""By name. Emotions: Q1 happy (high valence, high arousal), Q2 angry (low, high), Q3 sad (low, low), Q4 calm
(high, low)."""


def note_labels(task: Task, part: NDArray[np.uint8], velocity: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The labels of notes: uint8[n], 1..C; 0 where the part is unknown, to be treated as padding.

    Args:
        task: melody or velocity.
        part: [n] 1 melody, 2 bridge, 3 accompaniment, 0 unknown.
        velocity: [n] MIDI 0..127.

    Raises:
        ValueError: the task is not note-level.
    """
    if task.name == "melody":
        return part.astype(np.uint8)
    if task.name == "velocity":
        return (np.searchsorted(VELOCITY_EDGES, velocity, side="right") + 1).astype(np.uint8)
    raise ValueError(f"task {task.name!r} has no note labels; melody and velocity have")


def sequence_label(task: Task, label: str) -> int:
    """The class of a piece, 0..C-1, from its label in the corpus ("Bethel", "Q3").

    Raises:
        ValueError: the task is not sequence-level, or has no such class.
    """
    if task.level != "sequence":
        raise ValueError(f"task {task.name!r} labels notes, not sequences; composer and emotion label sequences")
    if label not in task.classes:
        raise ValueError(f"{label!r} is no class of task {task.name!r}; the classes are {', '.join(task.classes)}")
    return task.classes.index(label)
