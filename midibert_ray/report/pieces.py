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
from midibert_ray.music.protocol import CLEAN
from midibert_ray.music.tasks import TASKS
from midibert_ray.report import kinds, table
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


def listenings(study: LoadedStudy) -> list[Listening]:
    """The pieces of each task with a class a note, the lowest accuracy first, as its pre-trained model labels them.

    Where there is none the best model is taken, and the clean protocol before the paper's.
    """
    learned = {item.task for item in study.outcomes}  # predictions of corpora tested besides lie in files of their own
    groups, found = {key: group for key, group in by_key(study.outcomes).items() if key.task in learned}, []
    for task in kinds.in_order(key.task for key in groups):
        mine = [key for key in groups if key.task == task and groups[key][0].kind == "classes"]
        for key in sorted(mine, key=lambda key: _rank(key, groups[key][0])):
            content = _predictions(study, groups[key][0])
            notes = pq.read_table(io.BytesIO(content)) if content else None
            if notes is not None and "onset" in notes.column_names:
                found.append(_listening(study, groups[key][0], notes))
            if notes is not None:
                break
    return found


def _rank(key: Key, result: TrialResult) -> tuple[bool, bool, float]:
    return key.variant != "pretrained", key.protocol != CLEAN.name, -result.accuracy


def _predictions(study: LoadedStudy, result: TrialResult) -> bytes | None:
    run = study.children.get(result.trial)
    return study.tracker.artifact(run.info.run_id, PREDICTIONS) if run else None


def _listening(study: LoadedStudy, result: TrialResult, notes: pa.Table) -> Listening:
    padding = int(result.classes[0] == "padding")
    made = sorted(_pieces(notes, padding), key=lambda piece: piece.accuracy or 0.0)
    sizes = np.cumsum([piece.notes for piece in made])
    shown = [piece for piece, size in zip(made, sizes, strict=True) if size <= NOTES] or made[:1]
    label = table.labels(study.tables)[result.variant]
    ordered = result.task in TASKS and len(TASKS[result.task].edges) > 1
    title = f"Test pieces: {result.task}"
    roll = Roll(title=title, classes=result.classes[padding:], pieces=shown, ordered=ordered)
    model = f"{label}, protocol {result.protocol}, seed {result.seed}"
    return Listening(result.task, model, len(made) - len(shown), player(roll))


def _pieces(notes: pa.Table, padding: int) -> Iterator[RollPiece]:
    """Predictions, one `RollPiece` a piece; `padding` is the number of a model's outputs before the first class."""
    names = notes["piece"].cast(pa.string()).combine_chunks().dictionary_encode()
    numbers = names.indices.to_numpy()
    columns = {name: notes[name].to_numpy().astype(np.int64) for name in ("onset", "pitch", "duration")}
    label, truth = (notes[name].to_numpy().astype(np.int64) - padding for name in ("prediction", "label"))
    known = dict(zip(notes.column_names, notes.columns, strict=True))
    columns["velocity"] = np.asarray(known.get("velocity", np.full(len(notes), VELOCITY)))
    sure = _probability(notes) if "logits" in known else np.ones(len(notes))
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
