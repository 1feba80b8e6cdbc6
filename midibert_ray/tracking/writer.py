"""Records of runs, carried out on MLflow; carrying one out again changes nothing more."""

import base64
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from midibert_ray.tracking.client import PARENT, RUN_KEY, of_key
from midibert_ray.tracking.spool import Record, RejectedError

Content = Mapping[str, Any]


@dataclass
class _Run:
    """A run as far as this writer knows it."""

    id: str
    new: bool
    """Made by this writer, so that there are no points but its own."""

    last: dict[str, int] = field(default_factory=dict)
    """Curve -> its last step."""


class Writer:
    """Knows runs by experiment and key, and which points of their curves are there.

    One that has met an error is to be replaced: what it asked for may have been done all the same.
    """

    def __init__(self, client: MlflowClient, artifacts: str) -> None:
        """With the folder or URI for the artifacts of new experiments; empty leaves it to the server."""
        self._client = client
        self._artifacts = artifacts
        self._runs: dict[tuple[str, str], _Run] = {}
        self._kinds: dict[str, Callable[[Content], None]] = {
            "open": self._open,
            "tags": self._tags,
            "extend": self._extend,
            "artifact": self._artifact,
            "end": self._end,
        }

    def __call__(self, records: Sequence[Record]) -> None:
        """Carry out several records of points of one run, or a single one of another kind.

        Raises:
            RejectedError: where it belongs to no run, or is of an unknown kind.
        """
        content = records[0].content
        if content["kind"] == "points":
            self._points([record.content for record in records])
        elif content["kind"] in self._kinds:
            self._kinds[content["kind"]](content)
        else:
            raise RejectedError(f"a record of the unknown kind {content['kind']!r}")

    def _open(self, content: Content) -> None:
        """Make the run, or set the one that is there to running; parameters that are there stay as they were."""
        experiment, key = content["experiment"], content["key"]
        found = self._only(experiment, key)
        if found:
            self._client.update_run(found.info.run_id, status="RUNNING")
            run, there = _Run(found.info.run_id, new=False), set(found.data.params)
        else:
            parent = {PARENT: self._run(experiment, content["parent"]).id} if content["parent"] else {}
            made = self._client.create_run(
                self._experiment(experiment),
                start_time=content["at"],
                tags={RUN_KEY: key} | parent | content["tags"],
                run_name=content["name"],
            )
            run, there = _Run(made.info.run_id, new=True), set()
        self._runs[experiment, key] = run
        fresh = [Param(name, value) for name, value in content["params"].items() if name not in there]
        for start in range(0, len(fresh), 100):  # MLflow takes 100 params a call
            self._client.log_batch(run.id, params=fresh[start : start + 100])

    def _only(self, experiment: str, key: str) -> Run | None:
        """The one run of a key, or None.

        A server that hangs may carry out a request to make a run long after we have given it up and repeated it. The
        run that comes of it is empty, stands beside ours, and is deleted here.
        """
        found = of_key(self._client, experiment, key)
        known = self._runs.get((experiment, key))
        found.sort(key=lambda run: known is None or run.info.run_id != known.id)
        for twin in found[1:]:
            if not twin.data.params and not twin.data.metrics:
                self._client.delete_run(twin.info.run_id)
        return found[0] if found else None

    def _points(self, contents: Sequence[Content]) -> None:
        """Add the points that a curve does not have yet: those behind its last step."""
        run, fresh = self._run(contents[0]["experiment"], contents[0]["key"]), []
        last: dict[str, int] = {}
        for content in contents:
            step = content["step"]
            for name, value in content["metrics"].items():
                if step > last.get(name, self._last(run, name)):
                    last[name] = step
                    fresh.append(Metric(name, value, content["at"], step))
        for start in range(0, len(fresh), 1000):  # MLflow takes 1,000 points a call
            self._client.log_batch(run.id, metrics=fresh[start : start + 1000])
        run.last |= last

    def _last(self, run: _Run, name: str) -> int:
        if name not in run.last:
            history = [] if run.new else self._client.get_metric_history(run.id, name)
            run.last[name] = max((point.step for point in history), default=-1)
        return run.last[name]

    def _tags(self, content: Content) -> None:
        self._client.log_batch(self._id(content), tags=[RunTag(name, text) for name, text in content["tags"].items()])

    def _extend(self, content: Content) -> None:
        """Tags that are lists: add what is not in them."""
        run = self._id(content)
        known = self._client.get_run(run).data.tags
        tags = []
        for name, values in content["tags"].items():
            both = dict.fromkeys([*known.get(name, "").split(","), *values])
            tags.append(RunTag(name, ",".join(filter(None, both))))
        self._client.log_batch(run, tags=tags)

    def _artifact(self, content: Content) -> None:
        folder, _, base = content["name"].rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, base)
            path.write_bytes(base64.b64decode(content["content"]))
            self._client.log_artifact(self._id(content), str(path), folder or None)

    def _end(self, content: Content) -> None:
        run = self._id(content)
        self._only(content["experiment"], content["key"])
        self._client.set_terminated(run, content["status"], content["at"])

    def _id(self, content: Content) -> str:
        return self._run(content["experiment"], content["key"]).id

    def _run(self, experiment: str, key: str) -> _Run:
        if (experiment, key) not in self._runs:
            found = of_key(self._client, experiment, key)
            if not found:
                raise RejectedError(f"MLflow has no run {key} in {experiment}; it may have been deleted there")
            self._runs[experiment, key] = _Run(found[0].info.run_id, new=False)
        return self._runs[experiment, key]

    def _experiment(self, name: str) -> str:
        known = self._client.get_experiment_by_name(name)
        if known:
            return str(known.experiment_id)
        # Without an explicit place sqlite puts artifacts into ./mlruns of whichever folder a job runs in.
        place = f"{self._artifacts}/{name}" if self._artifacts else None
        try:
            return str(self._client.create_experiment(name, artifact_location=place))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._experiment(name)
