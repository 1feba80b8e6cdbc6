"""MLflow's client: opened, searched for runs, and its errors translated."""

import fcntl
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from midibert_ray.settings.secrets import is_server
from midibert_ray.tracking.runs import RUN_KEY
from midibert_ray.tracking.spool import RefusedError, RejectedError, UnreachableError
from midibert_ray.tracking.uris import SQLITE, TrackingUris

# MLflow reads these at every request. Of itself it would try for minutes; we have a spool, and say how to mend it.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

import requests
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException, RestException

PASSING = (408, 429, 499)
"""HTTP statuses that pass of themselves, though they begin with a 4."""


def connect(uris: TrackingUris) -> MlflowClient:
    """A client for these URIs; asks nothing of a server, and makes a sqlite database that is not there."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # else it has a line for every retry
    if uris.uri.startswith(SQLITE):
        _make_database(Path(uris.uri.removeprefix(SQLITE)))
    return MlflowClient(tracking_uri=uris.uri)


def _make_database(path: Path) -> None:
    """Make MLflow's sqlite database where there is none, whole or not at all, for its owner alone.

    MLflow lays out its tables in dozens of steps, and cannot open a database in which a killed process left some out.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    guard = path.with_name(f".{path.name}.lock")
    guard.touch(mode=0o600)
    with guard.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel frees it when its holder dies
        if path.exists():
            return
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
            made = Path(scratch, path.name)
            MlflowClient(tracking_uri=f"{SQLITE}{made}").delete_experiment("0")  # "Default", which would stay empty
            made.chmod(0o600)  # sqlite gives its journals the mode of their database
            made.replace(path)


def experiment_id(client: MlflowClient, name: str) -> str | None:
    """The id of an experiment, or None where there is none of that name."""
    known = client.get_experiment_by_name(name)
    return str(known.experiment_id) if known else None


def search(
    client: MlflowClient, experiment: str | None, condition: str = "", view: int = ViewType.ACTIVE_ONLY
) -> Iterator[Run]:
    """The runs of an experiment, by its id, that fulfil a condition in MLflow's search language; empty: all."""
    token: str | None = None
    while experiment:
        page = client.search_runs([experiment], condition, view, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def find(client: MlflowClient, experiment: str | None, key: str, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    """The run of a key, if there is one; `writer.py` says how a second, empty one may come to stand behind it."""
    runs = search(client, experiment, f"tags.`{RUN_KEY}` = '{key}'", view)
    return sorted(runs, key=lambda run: -len(run.data.params) - len(run.data.metrics))


@contextmanager
def answers(uri: str) -> Iterator[None]:
    """Translate the errors of a server that is asked something; those of a database stay as they are.

    Raises:
        UnreachableError: where it does not answer, not now, or not to this account.
        RejectedError: where it will never take the request.
    """
    if not is_server(uri):
        yield
        return
    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        raise _meaning(uri, error) from error
    except (UnreachableError, RejectedError, OSError):
        raise
    except Exception as error:  # such as a library that an artifact store needs and that is not there
        raise RejectedError(f"{type(error).__name__}: {error}") from error


def _meaning(uri: str, error: MlflowException | requests.RequestException) -> UnreachableError | RejectedError:
    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())
    else:
        status = 500 if error.response is None else error.response.status_code
    if status in (401, 403):
        return RefusedError(
            f"tracking.uri={uri} refuses access ({status}: {_reason(error)}); set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD in the environment of every node"
        )
    # A proxy before the server has pages of its own; only the server's own words are about the request.
    own_words = isinstance(error, RestException) or getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE"
    if (own_words or isinstance(error, requests.HTTPError)) and 400 <= status < 500 and status not in PASSING:
        return RejectedError(_reason(error))
    return UnreachableError(f"tracking.uri={uri} does not answer ({_reason(error)})")


def _reason(error: BaseException) -> str:
    """The error at the bottom of an error, in a line; urllib3 hands one on as an argument of its own."""
    within = (value for value in error.args if isinstance(value, BaseException))
    if inner := error.__cause__ or error.__context__ or next(within, None):
        return _reason(inner)
    text = " ".join(str(error).split())
    body = re.search(r"Response body: '(.+)'", text)
    return (body[1] if body else text)[:300] or type(error).__name__
