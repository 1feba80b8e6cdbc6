"""The test pieces of a study as a model labels them, beside the truth, to look at and to listen to."""

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup
from numpy.typing import NDArray

from midibert_ray.inference.page import Roll, RollPiece, player
from midibert_ray.music.tasks import TASKS
from midibert_ray.report import table
from midibert_ray.report.load import LoadedStudy
from midibert_ray.report.table import Key, by_key
from midibert_ray.studies.result import PREDICTIONS, TrialResult

SUBBEAT_S = 0.125
"""Predictions stand on the grid, without a tempo; they are played at 120 quarters a minute."""
VELOCITY = 72
"""Of predictions that do not hold it."""
NOTES = 150_000
"""Notes that a report shows of one task at most, some 25 bytes each; POP909's test split has 142,577."""


class Listening(NamedTuple):
    """The pieces of one task."""

    task: str
    model: str
    """Variant, protocol and seed whose predictions these are."""
    left_out: int
    """Pieces for which there is no room; they are the ones with the fewest mistakes."""
    player: Markup


def listenings(source: LoadedStudy) -> list[Listening]:
    """The pieces of each note-level task, those with the lowest accuracy first, as its pre-trained model labels them.

    Where there is none the best model is taken, and the clean protocol before the paper's.
    """
    groups = by_key(source.outcomes)
    found = []
    for task in TASKS:
        ranked = sorted((key for key in groups if key.task == task), key=lambda key: _rank(key, groups[key][0]))
        contents = ((key, _predictions(source, groups[key][0])) for key in ranked if TASKS[task].level == "note")
        chosen = next(((key, content) for key, content in contents if content), None)
        if chosen:
            key, content = chosen
            found.append(_listening(source, groups[key][0], pq.read_table(io.BytesIO(content))))
    return found


def _rank(key: Key, result: TrialResult) -> tuple[bool, bool, float]:
    return key.variant != "pretrained", key.protocol != "clean", -result.accuracy


def _predictions(source: LoadedStudy, result: TrialResult) -> bytes | None:
    return source.tracker.artifact(source.children[result.trial].info.run_id, PREDICTIONS)


def _listening(source: LoadedStudy, result: TrialResult, notes: pa.Table) -> Listening:
    task = TASKS[result.task]
    made = sorted(_pieces(notes, len(result.classes) - len(task.classes)), key=lambda piece: piece.accuracy or 0.0)
    sizes = np.cumsum([piece.notes for piece in made])
    shown = [piece for piece, size in zip(made, sizes, strict=True) if size <= NOTES] or made[:1]
    label = table.labels(source.tables)[result.variant]
    roll = Roll(title=f"Test pieces: {task.name}", classes=task.classes, pieces=shown, ordered=bool(task.edges))
    model = f"{label}, protocol {result.protocol}, seed {result.seed}"
    return Listening(task.name, model, len(made) - len(shown), player(roll))


def _pieces(notes: pa.Table, padding: int) -> Iterator[RollPiece]:
    """Predictions, one `RollPiece` a piece; `padding` is the number of a model's outputs before the first class."""
    names = notes["piece"].cast(pa.string()).combine_chunks().dictionary_encode()
    numbers = names.indices.to_numpy()
    columns = {name: notes[name].to_numpy().astype(np.int64) for name in ("onset", "pitch", "duration")}
    label, truth = (notes[name].to_numpy().astype(np.int64) - padding for name in ("prediction", "label"))
    has = notes.column_names
    columns["velocity"] = notes["velocity"].to_numpy() if "velocity" in has else np.full(len(notes), VELOCITY)
    sure = _probability(notes) if "logits" in has else np.ones(len(notes))
    for number, name in enumerate(names.dictionary.to_pylist()):
        rows = np.flatnonzero(numbers == number)
        onset, pitch, duration, velocity = (columns[each][rows] for each in ("onset", "pitch", "duration", "velocity"))
        onset = onset - onset.min(initial=1 << 31) // 16 * 16
        yield RollPiece(
            name=name,
            onset_s=onset * SUBBEAT_S,
            offset_s=(onset + duration / 2) * SUBBEAT_S,
            pitch=pitch,
            velocity=velocity,
            label=label[rows],
            probability=sure[rows],
            truth=truth[rows],
            bars_s=np.arange(0, onset.max(initial=0) + 1, 16) * SUBBEAT_S,
        )


def _probability(notes: pa.Table) -> NDArray[Any]:
    """The probability of each prediction: [n]."""
    logits = np.stack(notes["logits"].to_numpy())
    return np.asarray(1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1))
