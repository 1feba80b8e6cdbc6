"""MLflow: experiments, parent and child runs, and curves without gaps or duplicates.

Only controllers and drivers write here; training loops report to Ray and know nothing of MLflow.
A run is found again by its key (the tag `midibert.run_key`), so a job that is started again after
a failure goes on in the same run.
"""

import fcntl
import io
import json
import logging
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midibert_ray import storage
from midibert_ray.config import Config, ConfigError

# MLflow reads these when it is imported: no warning where there is no git, no progress bars, no line for every run.
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking.context import registry

logger = logging.getLogger(__name__)

RUN_KEY = "midibert.run_key"
PARENT = "mlflow.parentRunId"
PRETRAINING = "midibert/pre-training"

_SQLITE = "sqlite:///"
_DATABASE = r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://"


def study_experiment(name: str) -> str:
    """The experiment that holds all runs of a study's name."""
    return f"midibert/studies/{name}"


@dataclass(frozen=True)
class Address:
    """Where runs are recorded; small and picklable, so that controllers on other nodes can open it."""

    uri: str
    artifacts: str
    """Folder or URI for the artifacts of new experiments; empty leaves it to a tracking server."""

    def command(self) -> str:
        """What to type to browse the runs, with the mlflow of this environment."""
        if _is_server(self.uri):
            return f"open {self.uri}"
        program = Path(sys.executable).with_name("mlflow")
        words = [str(program) if program.exists() else "mlflow", "ui", "--backend-store-uri", self.uri]
        return shlex.join(words)


def address(config: Config) -> Address:
    """Where a configuration records its runs: `tracking.uri`, or sqlite below a local storage root.

    Raises:
        ConfigError: for a remote storage root without a tracking server, or anything that is neither a server nor a
            database: MLflow keeps its store of files for old runs only.
    """
    root = storage.resolve(config.storage.root)
    uri = config.tracking.uri
    if _is_server(uri):
        return Address(uri, "")
    if uri and not re.match(_DATABASE, uri, re.IGNORECASE):
        raise ConfigError(
            f"tracking.uri={uri!r} is not allowed; use http(s)://server, sqlite:///file, another database that MLflow "
            "knows (postgresql://, mysql://, mssql://), or nothing"
        )
    if not storage.is_local(config.storage.root):
        if not uri:
            raise ConfigError(
                f"tracking.uri is empty while storage.root={root!r} is remote; give a server, tracking.uri=http://HOST:5000"
            )
        return Address(uri, _artifacts_of(uri, root))
    return Address(uri or f"sqlite:///{root}/mlflow.db", Path(root, "mlflow").as_uri())


def _artifacts_of(uri: str, root: str) -> str:
    """Where the artifacts of a database go while the storage root is a bucket.

    Those of sqlite, which serves one machine, stay beside it. For another database MLflow itself writes to the bucket,
    with boto3 (s3://) or google-cloud-storage (gs://), and takes the server of one's own from MLFLOW_S3_ENDPOINT_URL.
    """
    if uri.startswith(_SQLITE):
        return Path(storage.resolve(uri.removeprefix(_SQLITE))).with_name("mlflow").as_uri()
    return storage.without_query(storage.join(root, "mlflow"))


def _is_server(uri: str) -> bool:
    return uri.lower().startswith(("http://", "https://"))


def _make_database(path: Path) -> None:
    """Make MLflow's sqlite database where there is none, whole or not at all.

    MLflow lays out its tables in dozens of steps, and cannot open a database in which a killed process left some out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel frees it when its holder dies
        if path.exists():
            return
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
            made = Path(scratch, path.name)
            MlflowClient(tracking_uri=f"{_SQLITE}{made}").search_experiments()
            made.replace(path)


class RunLog:
    """One MLflow run, new or found again: params once, every point of a curve once."""

    def __init__(self, client: MlflowClient, run: Run, *, resumed: bool) -> None:
        self._client = client
        self._known_params = set(run.data.params)
        self._resumed = resumed
        self._last_step: dict[str, int] = {}
        self.id: str = run.info.run_id
        self.status: str = run.info.status

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one point to each curve; a point that stands there already (after a resume) is left out."""
        now = int(time.time() * 1000)
        fresh = [Metric(key, float(value), now, step) for key, value in metrics.items() if step > self._last(key)]
        if fresh:
            self._client.log_batch(self.id, metrics=fresh)
            self._last_step |= {metric.key: step for metric in fresh}

    def _last(self, key: str) -> int:
        if key not in self._last_step:
            history = self._client.get_metric_history(self.id, key) if self._resumed else []
            self._last_step[key] = max((point.step for point in history), default=-1)
        return self._last_step[key]

    def params(self, values: Mapping[str, Any]) -> None:
        """Add parameters; those already there stay as they were (MLflow's params never change)."""
        fresh = [Param(key, _text(value)) for key, value in values.items() if key not in self._known_params]
        for start in range(0, len(fresh), 100):  # MLflow takes 100 params a call
            self._client.log_batch(self.id, params=fresh[start : start + 100])
        self._known_params |= {param.key for param in fresh}

    def tag(self, **tags: object) -> None:
        """Set tags; an underscore pair stands for a dot."""
        pairs = [RunTag(key.replace("__", "."), str(value)) for key, value in tags.items()]
        self._client.log_batch(self.id, tags=pairs)

    def text(self, content: str, name: str) -> None:
        """Store a text artifact."""
        self._client.log_text(self.id, content, name)

    def json(self, content: Any, name: str) -> None:
        """Store a JSON artifact."""
        self.text(json.dumps(content, indent=1, ensure_ascii=False), name)

    def data(self, content: bytes, name: str) -> None:
        """Store a binary artifact, such as a PNG or a Parquet file."""
        folder, _, base = name.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, base)
            path.write_bytes(content)
            self._client.log_artifact(self.id, str(path), folder or None)

    def figure(self, figure: Any, name: str) -> None:
        """Store a matplotlib figure as PNG."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
        self.data(buffer.getvalue(), name)

    def finish(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self.id, status)
        self.status = status


class Tracker:
    """Opens and finds runs at an address."""

    def __init__(self, where: Address) -> None:
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.where = where
        if where.uri.startswith(_SQLITE):
            _make_database(Path(where.uri.removeprefix(_SQLITE)))
        self.client = MlflowClient(tracking_uri=where.uri)

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
            params: flat dotted configuration.
            tags: search keys.
            parent: id of the parent run, for a trial.
        """
        found = self.find(experiment, key)
        if found:
            self.client.update_run(found.info.run_id, status="RUNNING")
            log = RunLog(self.client, found, resumed=True)
        else:
            origin = {key: value for key, value in registry.resolve_tags().items() if key == "mlflow.user"}
            labels = (
                origin | {RUN_KEY: key} | ({PARENT: parent} if parent else {}) | {k: str(v) for k, v in tags.items()}
            )
            run = self.client.create_run(self._experiment_id(experiment), run_name=name, tags=labels)
            log = RunLog(self.client, run, resumed=False)
        log.params(params)
        return log

    def find(self, experiment: str, key: str) -> Run | None:
        """The run of a key, or None."""
        runs = self._search(experiment, f"tags.`{RUN_KEY}` = '{key}'")
        return next(runs, None)

    def children(self, experiment: str, parent: str) -> list[Run]:
        """The runs of a study's trials, oldest first."""
        return sorted(self._search(experiment, f"tags.`{PARENT}` = '{parent}'"), key=lambda run: run.info.start_time)

    def studies(self) -> list[str]:
        """Names of the studies that have an experiment."""
        prefix = study_experiment("")
        names = [item.name for item in self.client.search_experiments()]
        return sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))

    def parents(self, experiment: str) -> list[Run]:
        """The runs of an experiment that are no child, newest first."""
        runs = [run for run in self._search(experiment, "") if PARENT not in run.data.tags]
        return sorted(runs, key=lambda run: -run.info.start_time)

    def curve(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """Points (step, value) of one metric, by step."""
        return sorted((point.step, point.value) for point in self.client.get_metric_history(run_id, key))

    def artifact(self, run_id: str, name: str) -> bytes | None:
        """Content of an artifact, or None where there is none."""
        folder = name.rpartition("/")[0]
        if name not in [item.path for item in self.client.list_artifacts(run_id, folder or None)]:
            return None
        with tempfile.TemporaryDirectory() as scratch:
            return Path(self.client.download_artifacts(run_id, name, scratch)).read_bytes()

    def _search(self, experiment: str, condition: str) -> Iterator[Run]:
        known = self.client.get_experiment_by_name(experiment)
        token: str | None = None
        while known:
            page = self.client.search_runs([known.experiment_id], condition, ViewType.ACTIVE_ONLY, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _experiment_id(self, name: str) -> str:
        known = self.client.get_experiment_by_name(name)
        if known:
            return str(known.experiment_id)
        # Without an explicit place sqlite puts artifacts into ./mlruns of whichever folder a job runs in.
        place = f"{self.where.artifacts}/{name}" if self.where.artifacts else None
        try:
            return str(self.client.create_experiment(name, artifact_location=place))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._experiment_id(name)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
