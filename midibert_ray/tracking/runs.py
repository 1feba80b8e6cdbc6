"""One run as jobs write to it: every call becomes a record."""

import base64
import getpass
import io
import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from midibert_ray.tracking.spool import Record

PRETRAINING = "midibert/pre-training"
"""The experiment of all pre-trainings."""
RUN_KEY = "midibert.run_key"
PARENT = "mlflow.parentRunId"


def study_experiment(name: str) -> str:
    """The experiment that holds all runs of a study's name."""
    return f"midibert/studies/{name}"


class RunLog:
    """One MLflow run, new or found again: params once, every point of a curve once.

    Nothing here waits for a server: a call returns when its record lies in the spool.
    """

    def __init__(self, write: Callable[[Record], None], experiment: str, key: str) -> None:
        self._write = write
        self.experiment = experiment
        self.key = key

    def open(self, name: str, params: Mapping[str, Any], tags: Mapping[str, object], parent: str) -> None:
        """Make the run, or set it to running again; see `Tracker.open`."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user that has no name
            user = "unknown"
        texts = {
            key: ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
            for key, value in params.items()
            if value is not None
        }
        tags = {"mlflow.user": user} | {key: str(value) for key, value in tags.items()}
        self._add("open", name=name, params=texts, tags=tags, parent=parent)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one point to each curve; a point that stands there already (after a resume) is left out."""
        values = {key: float(value) for key, value in metrics.items()}
        if values:
            self._add("points", points=len(values), metrics=values, step=int(step))

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
        self.text(json.dumps(content, indent=1, ensure_ascii=False), name)

    def data(self, content: bytes, name: str) -> None:
        """Store a binary artifact, such as a PNG or a Parquet file."""
        self._add("artifact", name=name, content=base64.b64encode(content).decode())

    def figure(self, figure: Any, name: str) -> None:
        """Store a matplotlib figure as PNG."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
        self.data(buffer.getvalue(), name)

    def finish(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        self._add("end", status=status)

    def _add(self, kind: str, *, points: int = 0, **content: Any) -> None:
        # With the time at which it happened, not that at which it is sent: a point that is sent twice is the same.
        head = {"kind": kind, "experiment": self.experiment, "key": self.key, "at": int(time.time() * 1000)}
        self._write(Record(f"{self.experiment}/{self.key}", points, head | content))
