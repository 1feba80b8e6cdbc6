"""Labels of single notes that their owner gives: a table `NAME.notes.csv` beside `NAME.mid`, a row a note.

Its columns are `onset`, `pitch` and `label`. Onsets are ticks of the file where all of them are whole numbers, and
seconds where one has a decimal point. Without a table a note has the name of its MIDI track.
"""

import csv
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from midibert_ray.music.midi import Notes
from midibert_ray.music.smf import MidiError

SUFFIX = ".notes.csv"
"""In the place of a MIDI file's own."""
UNMATCHED = "rows of the table of notes that are no note"
NO_CLASS = "labels of notes that corpora.notes does not name"
"""Remarks, as they stand in manifests."""

COLUMNS = ("onset", "pitch", "label")
_NEAR_S = 0.03  # seconds between a row and its note; a third of the shortest sixteenth that is played


def label_notes(notes: Notes, table: bytes, classes: Sequence[str]) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """The class of each note, uint8 [n], 1 for the first class, 0 where no row names one; and remarks.

    Raises:
        MidiError: for a table without these columns, or a row whose onset or pitch is no number.
    """
    onsets, pitches, labels, in_ticks = _rows(table)
    numbers = {name: number for number, name in enumerate(classes, start=1)}
    starts = notes.start.astype(np.float64) if in_ticks else _seconds(notes)
    near = 0.5 if in_ticks else _NEAR_S
    found = np.zeros(len(notes), np.uint8)
    remarks: dict[str, int] = {}
    for pitch in np.unique(pitches):
        rows, mine = np.flatnonzero(pitches == pitch), np.flatnonzero(notes.pitch == pitch)
        mine = mine[np.argsort(starts[mine], kind="stable")]
        times = starts[mine]
        low = np.searchsorted(times, onsets[rows] - near, side="left")
        high = np.searchsorted(times, onsets[rows] + near, side="right")
        for row, first, last in zip(rows.tolist(), low.tolist(), high.tolist(), strict=True):
            if first == last:
                remarks[UNMATCHED] = remarks.get(UNMATCHED, 0) + 1
            elif labels[row] not in numbers:
                remarks[NO_CLASS] = remarks.get(NO_CLASS, 0) + 1
            else:
                found[mine[first:last]] = numbers[labels[row]]
    return found, remarks


def _rows(table: bytes) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str], bool]:
    """Onsets, pitches and labels of a table, and whether its onsets are ticks."""
    try:
        reader = csv.DictReader(io.StringIO(table.decode("utf-8-sig"), newline=""))
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise MidiError(f"the table of notes cannot be read: {error}") from error
    if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise MidiError(f"the table of notes has no column {missing[0]}; it needs {', '.join(COLUMNS)}")
    for number, row in enumerate(rows, start=2):
        for name in ("onset", "pitch"):
            if not _is_number(row[name]):
                raise MidiError(f"the table of notes, row {number}: {name}={row[name]!r} is no number")
    onsets = np.array([float(row["onset"]) for row in rows])
    pitches = np.array([int(float(row["pitch"])) for row in rows], dtype=np.int64)
    labels = [(row["label"] or "").strip() for row in rows]
    return onsets, pitches, labels, all(row["onset"].strip().lstrip("-").isdigit() for row in rows)


def _is_number(text: str | None) -> bool:
    try:
        return bool(np.isfinite(float(text or "")))
    except ValueError:
        return False


def _seconds(notes: Notes) -> NDArray[np.float64]:
    """When notes begin: float64 [n], by the file's tempo map."""
    passed = np.concatenate([[0.0], np.cumsum(np.diff(notes.tempo_ticks) * notes.seconds_per_tick[:-1])])
    at = np.searchsorted(notes.tempo_ticks, notes.start, side="right") - 1
    return np.asarray(passed[at] + (notes.start - notes.tempo_ticks[at]) * notes.seconds_per_tick[at])
