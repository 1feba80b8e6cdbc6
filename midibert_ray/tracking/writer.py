"""Records of runs, carried out on MLflow; carrying one out again changes nothing more."""

import base64
import importlib
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunInfo, RunTag, ViewType
from mlflow.exceptions import MlflowException

from midibert_ray import storage
from midibert_ray.settings.secrets import is_server
from midibert_ray.tracking.client import answers, connect, experiment_id, find
from midibert_ray.tracking.runs import PARENT, RUN_KEY
from midibert_ray.tracking.spool import Record, RejectedError
from midibert_ray.tracking.uris import TrackingUris

logger = logging.getLogger(__name__)

_INVALID = "INVALID_PARAMETER_VALUE"
"""MLflow's code for a request about a run that was deleted, among others."""


class MissingRunError(RejectedError):
    """A record belongs to a run that MLflow does not have."""


class Writer:
    """Knows runs by experiment and key, and the last step of their curves.

    A writer that has met an error is to be replaced: the request may have been carried out all the same.
    """

    def __init__(self, uris: TrackingUris) -> None:
        self._uris = uris
        self._client = connect(uris)
        self._runs: dict[tuple[str, str], RunInfo] = {}
        self._gone: set[tuple[str, str]] = set()
        self._new: set[str] = set()  # ids of the runs that this writer made: their curves hold its own points only
        self._last: dict[tuple[str, str], int] = {}  # id of a run, curve -> its last step

    def __call__(self, records: Sequence[Record]) -> None:
        """Carry out several records of points of one run, or a single one of another kind.

        Raises:
            UnreachableError: where a server does not answer.
            RejectedError: where a record belongs to no run, is of an unknown kind, or is not taken by a server.
        """
        content = records[0].content
        experiment, key = content["experiment"], content["key"]
        with answers(self._uris.uri):
            if content["kind"] == "open":
                return self._open(experiment, key, content)
            try:
                self._carry_out(self._run(experiment, key), records)
            except (MlflowException, MissingRunError) as error:
                # Records for a server are set aside where it will not take them; a database has no place for these.
                if is_server(self._uris.uri):
                    raise
                self._without_run(experiment, key, records, error)

    def _without_run(self, experiment: str, key: str, records: Sequence[Record], error: Exception) -> None:
        """Carry records out on a run that somebody deleted, or say that it is gone; the job goes on either way."""
        code = getattr(error, "error_code", "")
        if code == _INVALID:
            self._found(experiment, self._experiment(experiment), key, ViewType.ALL)
            self._carry_out(self._run(experiment, key), records)
        elif code == "RESOURCE_DOES_NOT_EXIST" or isinstance(error, MissingRunError):
            if (experiment, key) not in self._gone:
                logger.warning(
                    "the run %s of %s was deleted from MLflow for good; what is recorded of it now is lost there, the "
                    "files below storage.root are not, and the next start of the same command makes the run anew",
                    *(key, experiment),
                )
            self._gone.add((experiment, key))
            self._runs.pop((experiment, key), None)
        else:
            raise error

    def _carry_out(self, info: RunInfo, records: Sequence[Record]) -> None:
        content, run = records[0].content, info.run_id
        match content["kind"]:
            case "points" | "tags":
                self._log(run, [record.content for record in records])
            case "extend":
                self._extend(run, content["tags"])
            case "artifacts":
                self._store(run, content["files"])
            case "artifact":  # in a spool that an earlier version has left
                self._store(run, {content["name"]: content["content"]})
            case "datasets":
                self._client.log_inputs(run, [_dataset(**each) for each in content["datasets"]])
            case "model":
                self._models.log(self._client, info, content)
            case "register":
                self._models.register(self._client, info, content["name"])
            case "end":
                if is_server(self._uris.uri):
                    self._found(content["experiment"], info.experiment_id, content["key"])
                self._client.set_terminated(run, content["status"], content["at"])
            case kind:
                raise RejectedError(f"a record of the unknown kind {kind!r}")

    def _open(self, experiment: str, key: str, content: Mapping[str, Any]) -> None:
        """Make the run, or set the one that is there to running; parameters that are there stay as they were."""
        within = self._experiment(experiment)
        found = self._found(experiment, within, key, ViewType.ALL)
        if found:
            self._client.update_run(found.info.run_id, status="RUNNING")
        else:
            parent = {PARENT: self._run(experiment, content["parent"]).run_id} if content["parent"] else {}
            tags = {RUN_KEY: key} | parent | content["tags"]
            found = self._client.create_run(within, content["at"], tags, content["name"])
            self._new.add(found.info.run_id)
        self._runs[experiment, key] = found.info
        fresh = [Param(name, value) for name, value in content["params"].items() if name not in found.data.params]
        for start in range(0, len(fresh), 100):  # MLflow takes 100 params a call
            self._client.log_batch(found.info.run_id, params=fresh[start : start + 100])

    def _experiment(self, name: str) -> str:
        """The id of an experiment, made if there is none; MLflow keeps the name of a deleted one, which is restored."""
        known = self._client.get_experiment_by_name(name)
        if known:
            if known.lifecycle_stage == "deleted":
                logger.warning("the experiment %s was deleted in MLflow; it is restored with its runs", name)
                self._client.restore_experiment(known.experiment_id)
            return str(known.experiment_id)
        # Without an explicit root sqlite puts artifacts into ./mlruns of whichever folder a job runs in.
        root = f"{self._uris.artifacts}/{name}" if self._uris.artifacts else None
        try:
            return str(self._client.create_experiment(name, artifact_location=root))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._experiment(name)

    def _found(self, experiment: str, within: str, key: str, view: int = ViewType.ACTIVE_ONLY) -> Run | None:
        """The one run of a key in an experiment, which has the id `within`, or None; an empty one beside it is deleted.

        A server that hangs may carry out a request to make a run long after we have given it up and repeated it. With
        `ViewType.ALL` a run that somebody deleted is active again: a resumed job would leave a gap in a new one.
        """
        known = self._runs.get((experiment, key))
        runs = find(self._client, within, key, view)
        runs.sort(key=lambda run: run.info.run_id != (known and known.run_id))
        active = [run for run in runs if run.info.lifecycle_stage == "active"]
        for twin in active[1:]:
            if not twin.data.params and not twin.data.metrics:
                self._client.delete_run(twin.info.run_id)
        if runs and not active:
            logger.warning("the run %s of %s was deleted in MLflow; it is restored", key, experiment)
            self._client.restore_run(runs[0].info.run_id)
        return next(iter([*active, *runs]), None)

    def _run(self, experiment: str, key: str) -> RunInfo:
        if (experiment, key) not in self._runs:
            found = find(self._client, experiment_id(self._client, experiment), key)
            if not found:
                raise MissingRunError(f"MLflow has no run {key} in {experiment}; it may have been deleted there")
            self._runs[experiment, key] = found[0].info
        return self._runs[experiment, key]

    def _log(self, run: str, contents: Sequence[Mapping[str, Any]]) -> None:
        """Set tags, and add the points that a curve does not have yet: those behind its last step."""
        fresh, last, texts = [], dict[tuple[str, str], int](), dict[str, str]()
        for content in contents:
            texts |= content.get("tags", {})
            for name, value in content.get("metrics", {}).items():
                if content["step"] > last.get((run, name), self._last_step(run, name)):
                    last[run, name] = content["step"]
                    fresh.append(Metric(name, value, content["at"], content["step"]))
        tags = [RunTag(name, text) for name, text in texts.items()]
        for start in range(0, len(fresh) or bool(tags), 900):  # MLflow takes 1,000 of all kinds a call, 100 tags
            self._client.log_batch(run, metrics=fresh[start : start + 900], tags=() if start else tags)
        self._last |= last

    def _last_step(self, run: str, name: str) -> int:
        if (run, name) not in self._last:
            history = [] if run in self._new else self._client.get_metric_history(run, name)
            self._last[run, name] = max((point.step for point in history), default=-1)
        return self._last[run, name]

    @cached_property
    def _models(self) -> Any:
        """The module that knows models; it takes a second to import."""
        return importlib.import_module("midibert_ray.tracking.models")

    def _extend(self, run: str, lists: Mapping[str, list[str]]) -> None:
        """Add to tags that are lists the values that are not in them."""
        known = self._client.get_run(run).data.tags
        longer = {name: dict.fromkeys([*known.get(name, "").split(","), *more]) for name, more in lists.items()}
        self._log(run, [{"tags": {name: ",".join(filter(None, values)) for name, values in longer.items()}}])

    def _store(self, run: str, files: Mapping[str, str]) -> None:
        """Store artifacts, given in base64."""
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch, "artifacts")  # the scratch folder's own mode would become that of the run's
            for name, content in files.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(content))
            self._client.log_artifacts(run, str(root))


def _dataset(name: str, digest: str, uri: str, context: str, profile: str) -> DatasetInput:
    kind = "local" if storage.is_local(uri) else uri.partition("://")[0]
    source = json.dumps({"uri": storage.without_query(uri)})
    data = Dataset(name, digest, kind, source, profile=profile)
    return DatasetInput(data, [InputTag("mlflow.data.context", context)])
