"""The files of a trial on storage: checkpoints, and in the last one test metrics, confusion counts,
predictions and the settings behind them.

The state of a trial, finished or to go on from a checkpoint, is read from its own folder. Tune's books are written
every few seconds only, so a driver that is killed forgets what came after.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from midibert_ray import storage
from midibert_ray.settings.text import plain_name
from midibert_ray.training.checkpoints import folders, problem
from midibert_ray.training.predictions import Predictions
from midibert_ray.training.task_data import TaskData

logger = logging.getLogger(__name__)
OUTCOME = "outcome.json"
PREDICTIONS = "predictions.parquet"
ORIGIN = "trial.json"
EPOCH = "epoch.json"
STOPPED = "stopped.json"
CHECKPOINT = "checkpoint_"
"""Start of the names that Tune gives to checkpoints; the rest counts up."""
METRIC = {"classes": "accuracy", "number": "r2", "tags": "average_precision"}
"""The metric of a table, by kind of task; all are shares, at most 1, and higher is better."""
METRIC_WORDS = {"classes": "accuracy", "number": "explained variance (R²)", "tags": "mean average precision"}
"""The same in words."""
BEST = "valid/best"
"""The best validation so far, by the task's metric: the test split chooses nothing."""
_STORED = {"metrics": "figures"}
"""Fields whose names in files are others."""
_READ = (OUTCOME, PREDICTIONS, ORIGIN, EPOCH)


def column(task: str, corpus: str) -> str:
    """The column of a table for a task on a corpus that was tested besides."""
    return f"{task} on {corpus}"


def predictions_file(corpus: str) -> str:
    """The file of the predictions of a corpus that was tested besides."""
    return f"predictions-{plain_name(corpus)}.parquet"


@dataclass(frozen=True, kw_only=True)
class Record:
    """Values that are kept as JSON."""

    def to_dict(self) -> dict[str, Any]:
        return {_STORED.get(name, name): value for name, value in asdict(self).items()}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        names = {stored: name for name, stored in _STORED.items()}
        return cls(**{names.get(name, name): value for name, value in values.items()})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        return cls.from_dict(json.loads(text))


@dataclass(frozen=True, kw_only=True)
class TrialResult(Record):
    """The result of one trial on the test split, or in a sweep on the validation split, with the best weights."""

    trial: str
    task: str
    variant: str
    protocol: str
    seed: int
    split: str = "test"
    """The split that was scored: `test`, or `valid` in a sweep."""
    kind: str = "classes"
    """As `Task.kind`."""
    melody: str = ""
    """As `Task.melody`."""
    epoch: int
    """Epochs trained."""
    metrics: dict[str, float]
    """`valid/best`, `test/loss`, and what `training.predictions` gives of a kind: of classes `test/accuracy`, `test/f1`
    and for sequence-level tasks `test/piece_accuracy`; of others `test/r2`, `test/average_precision`, ..."""
    classes: list[str]
    """Names of the model's outputs, in order; none of a number."""
    confusion: list[list[int]]
    """Counts [true class, predicted class]; of classes alone."""
    pieces: dict[str, list[Any]]
    """Test piece -> `by_piece` of its predictions: correct and scored notes or segments, and whether the mean logits of
    its segments are right; the number and the predicted one; 0 or 1 for every tag, then the predicted shares."""
    seconds: float
    """Time spent on training and scoring, over all starts of the trial."""
    devices: float
    """GPUs that the trial held, or CPUs where it held none."""
    draw: int | None = None
    """Number of the draw, in a sweep."""
    fold: int = 0
    """The fold that was tested, from 1; 0 where nothing is divided, or folds have been merged."""
    folds: int = 0
    """Number of folds that were merged into it."""
    clusters: dict[str, str] = field(default_factory=dict)
    """Test piece -> the group or first near-duplicate that it belongs to, where it is not alone."""
    besides: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Corpus that was tested besides -> `metrics`, `confusion`, `pieces` and `clusters` of its test pieces."""

    @property
    def columns(self) -> list["TrialResult"]:
        """The result, and one for each corpus that was tested besides, whose name its task has behind it."""
        others = (
            replace(self, task=column(self.task, corpus), seconds=0.0, besides={}, **found)
            for corpus, found in self.besides.items()
        )
        return [self, *others]

    @property
    def accuracy(self) -> float:
        """The metric of its kind in `METRIC`: of classes the share of the scored notes or segments that are right."""
        return self.metrics[f"{self.split}/{METRIC[self.kind]}"]

    @property
    def scored(self) -> int:
        """Number of test notes or segments; of numbers and tags of test pieces."""
        return sum(map(sum, self.confusion)) if self.kind == "classes" else len(self.pieces)

    @property
    def majority(self) -> float:
        """Accuracy of always answering the most frequent class of the test split."""
        return max(map(sum, self.confusion)) / max(self.scored, 1)


@dataclass(frozen=True, kw_only=True)
class Provenance(Record):
    """How a trial came about, which its outcome does not say; kept beside it, so that no MLflow is needed to tell."""

    study: str
    encoder: str
    """Address of the pre-trained checkpoint; not read by a trial that starts from random weights."""
    start: str = ""
    """Digest of the weights of `finetune.start`, if it starts from them."""
    config: dict[str, Any]
    """The trial's whole configuration, flat."""


def newest(uri: str) -> str | None:
    """The name of the checkpoint in a trial's folder that holds its outcome, else of the latest, else None.

    Only sound ones count: one whose upload was cut short is passed over. Of one with an outcome only what a study
    reads is compared with its digests, and the sizes of all: whoever reads the weights compares them. Tune counts the
    checkpoints of every start of a study from 0, so that which is the latest is said by their epochs.
    """
    system, path = storage.filesystem(uri)
    if system.get_file_info(path).type is fs.FileType.File:
        return None
    names = folders(system, path, CHECKPOINT)
    infos = system.get_file_info([f"{path}/{name}/{OUTCOME}" for name in names])
    done = {name: info.type is fs.FileType.File for name, info in zip(names, infos, strict=True)}
    ranks = {name: (done[name], _epoch(system, f"{path}/{name}"), name) for name in names}
    for name in sorted(names, key=lambda name: ranks[name], reverse=True):
        reason = problem(system, f"{path}/{name}", _READ if done[name] else None, storage.basename(uri))
        if reason is None:
            return name
        logger.warning("a checkpoint of a trial is passed over: %s", reason)
    return None


def _epoch(system: fs.FileSystem, folder: str) -> int:
    try:
        with system.open_input_stream(f"{folder}/{EPOCH}") as stream:
            return int(json.loads(stream.read())["epoch"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1  # it does not say


def stop(uri: str, metrics: Mapping[str, float]) -> None:
    """Note that a sweep has stopped the trial in a folder."""
    storage.write_json(storage.join(uri, STOPPED), dict(metrics))


def stopped(uri: str) -> bool:
    """True where a sweep has stopped the trial in a folder."""
    return storage.exists(storage.join(uri, STOPPED))


def settled(uri: str) -> bool:
    """True where the trial in a folder need not run any more."""
    return find(uri) is not None or stopped(uri)


def find(uri: str) -> tuple[TrialResult, str] | None:
    """Result of the trial in a folder, and address of its last checkpoint; None where it has not finished."""
    checkpoint = storage.join(uri, newest(uri) or "")
    file = storage.join(checkpoint, OUTCOME)
    return (TrialResult.from_json(storage.read_bytes(file)), checkpoint) if storage.exists(file) else None


def write(folder: Path, outcome: TrialResult, provenance: Provenance, predictions: Mapping[str, bytes]) -> None:
    """Put an outcome, its provenance and its predictions, by name of their file, into a checkpoint."""
    for name, content in predictions.items():
        (folder / name).write_bytes(content)
    (folder / ORIGIN).write_text(provenance.to_json())
    (folder / OUTCOME).write_text(outcome.to_json())


def predictions_table(data: TaskData, predictions: Predictions, split: str = "test") -> bytes:
    """Predictions of a split as Parquet: piece, segment, label, prediction, logits, and for notes where they lie.

    Of classes label and prediction are numbers of outputs; of numbers as they are; of tags a value for each of them.
    `onset` is in sub-beats, `pitch` a MIDI number, `duration` in thirty-seconds of a whole note.
    """
    segments = data.splits[split]
    names = [segments.name(piece) for piece in range(segments.pieces)]
    columns: dict[str, Any] = {
        "piece": pa.DictionaryArray.from_arrays(pa.array(predictions.piece.astype(np.int32)), pa.array(names)),
        "segment": predictions.segment.astype(np.int32),
        "label": _column(predictions.label),
        "prediction": _column(predictions.prediction),
        "logits": pa.FixedSizeListArray.from_arrays(
            pa.array(predictions.logits.astype(np.float32).ravel()), predictions.logits.shape[1]
        ),
    }
    if data.task.level == "note":
        where = predictions.piece, predictions.note
        tokens = segments.take("tokens", *where)
        columns |= {
            "onset": segments.take("onset", *where),
            "pitch": tokens[:, 2] + np.uint8(22),
            "duration": tokens[:, 3] + np.uint8(1),
            "velocity": segments.take("velocity", *where),
        }
    return storage.parquet(pa.table(columns))


def _column(values: NDArray[Any]) -> Any:
    """Classes [n], numbers [n] or tags [n, tags] as a column of Parquet."""
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).ravel()), values.shape[1])
    return values.astype(np.uint8) if values.dtype.kind in "iu" else values.astype(np.float32)
