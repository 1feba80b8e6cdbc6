"""What a finished trial leaves in its last checkpoint: test figures, confusion counts, predictions."""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from midibert_ray.data.store import TokenStore
from midibert_ray.training.finetune import Predictions, TaskData

OUTCOME = "outcome.json"
PREDICTIONS = "predictions.parquet"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one trial on the test split, with the weights that were best in validation."""

    trial: str
    task: str
    variant: str
    seed: int

    epoch: int
    """Epochs trained."""

    figures: dict[str, float]
    """`valid/best`, `test/accuracy`, `test/f1`, `test/loss`."""

    classes: list[str]
    """Names of the model's outputs, in order."""

    confusion: list[list[int]]
    """Counts: row = true class, column = predicted class."""

    def to_json(self) -> str:
        """The outcome as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Outcome":
        """What `to_json` wrote."""
        return cls(**json.loads(text))

    @property
    def scored(self) -> int:
        """Number of test notes or segments."""
        return sum(map(sum, self.confusion))

    @property
    def majority(self) -> float:
        """Accuracy of always answering the most frequent class of the test split."""
        return max(map(sum, self.confusion)) / max(self.scored, 1)


def read(folder: Path) -> Outcome | None:
    """The outcome in a checkpoint, or None where the trial has not finished."""
    path = folder / OUTCOME
    return Outcome.from_json(path.read_bytes()) if path.exists() else None


def read_all(folder: str) -> tuple[Outcome, bytes]:
    """Outcome and predictions in the last checkpoint of a finished trial.

    Raises:
        FileNotFoundError: where the checkpoint is not that of a finished trial.
    """
    place = Path(folder)
    return Outcome.from_json((place / OUTCOME).read_bytes()), (place / PREDICTIONS).read_bytes()


def write(folder: Path, outcome: Outcome, predictions: bytes) -> None:
    """Put an outcome and its predictions into a checkpoint."""
    (folder / PREDICTIONS).write_bytes(predictions)
    (folder / OUTCOME).write_text(outcome.to_json())


def predictions_table(data: TaskData, store: TokenStore, predictions: Predictions) -> bytes:
    """Test predictions as Parquet: piece, segment, label, prediction, logits, and for notes where they lie.

    `onset` is in sub-beats, `pitch` a MIDI number, `duration` in thirty-seconds of a whole note.
    """
    segments = data.splits["test"]
    names = np.array([segments.piece_id(piece) for piece in range(segments.pieces)], dtype=object)
    columns: dict[str, Any] = {
        "piece": pa.DictionaryArray.from_arrays(pa.array(predictions.piece.astype(np.int32)), pa.array(names.tolist())),
        "segment": predictions.segment.astype(np.int32),
        "label": predictions.label.astype(np.uint8),
        "prediction": predictions.prediction.astype(np.uint8),
        "logits": pa.FixedSizeListArray.from_arrays(
            pa.array(predictions.logits.astype(np.float32).ravel()), predictions.logits.shape[1]
        ),
    }
    if data.task.level == "note":
        columns |= {
            "onset": store.onset[predictions.note],
            "pitch": store.tokens[predictions.note, 2] + np.uint8(22),
            "duration": store.tokens[predictions.note, 3] + np.uint8(1),
        }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()
