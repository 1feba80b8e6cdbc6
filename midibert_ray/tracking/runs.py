"""Runs: opened by key and written to, and found again."""

import base64
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mlflow.tracking.context import registry

from midibert_ray.tracking.address import Address
from midibert_ray.tracking.client import PARENT, Run, answers, connect, of_key, search
from midibert_ray.tracking.spool import Record, Spool
from midibert_ray.tracking.writer import Writer

PRETRAINING = "midibert/pre-training"


def study_experiment(name: str) -> str:
    """The experiment that holds all runs of a study's name."""
    return f"midibert/studies/{name}"


class RunLog:
    """One MLflow run, new or found again: params once, every point of a curve once.

    Where a server records, nothing here waits for it: what is written is in the spool when a call returns.
    """

    def __init__(self, write: Callable[[Record], None], experiment: str, key: str) -> None:
        self._write = write
        self.experiment = experiment
        self.key = key

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one point to each curve; a point that stands there already (after a resume) is left out."""
        values = {key: float(value) for key, value in metrics.items()}
        if values:
            self._add("points", points=len(values), metrics=values, step=int(step))

    def tag(self, **tags: object) -> None:
        """Set tags; an underscore pair stands for a dot."""
        self._add("tags", tags={key.replace("__", "."): str(value) for key, value in tags.items()})

    def extend(self, **tags: Iterable[object]) -> None:
        """Add values to tags that are lists, separated by commas; what is in one already is left out."""
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

    def _open(self, name: str, params: Mapping[str, Any], tags: Mapping[str, object], parent: str) -> None:
        origin = {key: value for key, value in registry.resolve_tags().items() if key == "mlflow.user"}
        texts = {key: _text(value) for key, value in params.items() if value is not None}
        labels = origin | {key: str(value) for key, value in tags.items()}
        self._add("open", name=name, params=texts, tags=labels, parent=parent)

    def _add(self, kind: str, *, points: int = 0, **content: Any) -> None:
        # With the time at which it happened, not that at which it is sent: a point that is sent twice is the same.
        place = {"kind": kind, "experiment": self.experiment, "key": self.key, "at": int(time.time() * 1000)}
        self._write(Record(f"{self.experiment}/{self.key}", points, place | content))


class Tracker:
    """Opens and finds runs at an address.

    What it is asked is answered by MLflow, with UnreachableError where a server does not answer.
    """

    def __init__(self, where: Address) -> None:
        self.where = where
        self._client = connect(where)
        self._write = Spool(where.spool).append if where.spool else self._at_once()

    def _at_once(self) -> Callable[[Record], None]:
        writer = Writer(self._client, self.where.artifacts)
        return lambda record: writer([record])

    def open(
        self,
        experiment: str,
        key: str,
        name: str,
        *,
        params: Mapping[str, Any],
        tags: Mapping[str, object],
        parent: str = "",
    ) -> RunLog:
        """The run of a key, made if there is none and set to running again if there is.

        Args:
            experiment: MLflow experiment, such as `PRETRAINING`.
            key: identity of the run; the same key always gives the same run.
            name: what a reader sees in the list of runs.
            params: flat dotted configuration; those of a run that is there stay as they were.
            tags: search keys.
            parent: key of the parent run, for a trial.
        """
        log = self.log(experiment, key)
        log._open(name, params, tags, parent)
        return log

    def log(self, experiment: str, key: str) -> RunLog:
        """The run of a key that has been opened before, to be written to as it stands."""
        return RunLog(self._write, experiment, key)

    def find(self, experiment: str, key: str) -> Run | None:
        """The run of a key, or None."""
        with answers(self.where):
            return next(iter(of_key(self._client, experiment, key)), None)

    def children(self, experiment: str, parent: str) -> list[Run]:
        """The runs of a study's trials, oldest first, by the id of the study's run."""
        with answers(self.where):
            found = list(search(self._client, experiment, f"tags.`{PARENT}` = '{parent}'"))
        return sorted(found, key=lambda run: run.info.start_time)

    def studies(self) -> list[str]:
        """Names of the studies that have an experiment."""
        prefix = study_experiment("")
        with answers(self.where):
            names = [item.name for item in self._client.search_experiments()]
        return sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))

    def parents(self, experiment: str) -> list[Run]:
        """The runs of an experiment that are no child, newest first."""
        with answers(self.where):
            runs = [run for run in search(self._client, experiment, "") if PARENT not in run.data.tags]
        return sorted(runs, key=lambda run: -run.info.start_time)

    def curve(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """Points (step, value) of one metric, by step."""
        with answers(self.where):
            return sorted((point.step, point.value) for point in self._client.get_metric_history(run_id, key))

    def artifact(self, run_id: str, name: str) -> bytes | None:
        """Content of an artifact, or None where there is none."""
        folder = name.rpartition("/")[0]
        with answers(self.where), tempfile.TemporaryDirectory() as scratch:
            if name not in [item.path for item in self._client.list_artifacts(run_id, folder or None)]:
                return None
            return Path(self._client.download_artifacts(run_id, name, scratch)).read_bytes()


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
