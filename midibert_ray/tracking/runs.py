"""A run as jobs write to it: every call becomes a record."""

import base64
import io
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from midibert_ray.tracking import origin
from midibert_ray.tracking.spool import Record

PRETRAINING = "midibert/pre-training"
"""The experiment of all pre-trainings."""
RUN_KEY = "midibert.run_key"
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
"""Tag of a run's description."""


def study_experiment(name: str) -> str:
    """The experiment that holds all runs of a study's name."""
    return f"midibert/studies/{name}"


def to_json(content: Any) -> bytes:
    """The file of a JSON artifact."""
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


def to_png(figure: Any) -> bytes:
    """The file of a matplotlib figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    return buffer.getvalue()


def to_table(columns: Mapping[str, Sequence[Any]]) -> bytes:
    """The file of a table, by column, which MLflow shows where the tags of `shown_table` name it."""
    rows = zip(*columns.values(), strict=True)
    return to_json({"columns": list(columns), "data": list(map(list, rows))})


def shown_table(name: str) -> dict[str, str]:
    """Tags of a run: the artifact that is its table."""
    return {"mlflow.loggedArtifacts": json.dumps([{"path": name, "type": "table"}])}


class RunLog:
    """An MLflow run, new or found again: params once, every point of a curve once.

    Nothing here waits for a server: a call returns when its record lies in the spool.
    """

    def __init__(self, write: Callable[[Sequence[Record]], None], experiment: str, key: str) -> None:
        self._write = write
        self.experiment = experiment
        self.key = key

    def open(self, name: str, params: Mapping[str, Any], tags: Mapping[str, object], parent: str) -> None:
        """Make the run, or set it to running again; see `Tracker.open`."""
        texts = {
            key: ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
            for key, value in params.items()
            if value is not None
        }
        own = origin.tags("pretrain" if self.experiment == PRETRAINING else "study")
        tags = own | {key: str(value) for key, value in tags.items()}
        self._add("open", name=name, params=texts, tags=tags, parent=parent)

    def log(self, metrics: Mapping[str, float], step: int, tags: Mapping[str, object] | None = None) -> None:
        """Add one point to each curve and set tags; a point that stands there already (after a resume) is left out."""
        self._write([self._point(metrics, step, time.time(), tags or {})])

    def log_points(self, points: Iterable[tuple[Mapping[str, float], int, float]]) -> None:
        """Add several points to each curve, all at once: metrics, their step, and their time in seconds."""
        self._write([self._point(*point) for point in points])

    def tag(self, **tags: object) -> None:
        """Set tags."""
        self._add("tags", tags={key: str(value) for key, value in tags.items()})

    def extend(self, **tags: Iterable[object]) -> None:
        """Add values to tags that are lists, separated by commas; a value that is there already is left out."""
        self._add("extend", tags={key: list(map(str, values)) for key, values in tags.items()})

    def text(self, content: str, name: str) -> None:
        """Store a text artifact."""
        self.data(content.encode(), name)

    def json(self, content: Any, name: str) -> None:
        """Store a JSON artifact."""
        self.data(to_json(content), name)

    def data(self, content: bytes, name: str) -> None:
        """Store a binary artifact, such as a PNG or a Parquet file."""
        self.files({name: content})

    def files(self, contents: Mapping[str, bytes]) -> None:
        """Store several artifacts, by name."""
        self._add("artifacts", files={name: base64.b64encode(each).decode() for name, each in contents.items()})

    def datasets(self, datasets: Iterable[Mapping[str, str]]) -> None:
        """Name the data of the run: texts `name`, `digest`, `uri`, `context` (training, ...) and `profile` (JSON)."""
        self._add("datasets", datasets=[dict(each) for each in datasets])

    def model(self, weights: str, level: str, params: Mapping[str, object]) -> None:
        """Log the run's model, whose weights stay in a folder; `level` is `note`, `sequence` or `encoder`."""
        texts = {key: str(value) for key, value in params.items()}
        self._add("model", weights=weights, level=level, params=texts, requirement=origin.REQUIREMENT)

    def register(self, name: str) -> None:
        """Register the run's model, which has been logged before."""
        self._add("register", name=name)

    def figure(self, figure: Any, name: str) -> None:
        """Store a matplotlib figure as PNG."""
        self.data(to_png(figure), name)

    def finish(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        self._add("end", status=status)

    def _add(self, kind: str, **content: Any) -> None:
        self._write([self._record(kind, time.time(), **content)])

    def _point(
        self, metrics: Mapping[str, float], step: int, at: float, tags: Mapping[str, object] = MappingProxyType({})
    ) -> Record:
        values = {key: float(value) for key, value in metrics.items()}
        texts = {"tags": {key: str(value) for key, value in tags.items()}} if tags else {}
        return self._record("points", at, len(values), metrics=values, step=int(step), **texts)

    def _record(self, kind: str, at: float, points: int = 0, **content: Any) -> Record:
        # With the time at which it happened, not that at which it is sent: a point that is sent twice is the same.
        head = {"kind": kind, "experiment": self.experiment, "key": self.key, "at": int(at * 1000)}
        return Record(f"{self.experiment}/{self.key}", points, head | content)
