"""The layout below the storage root, `storage.root`: the URI of everything that jobs keep.

    {root}/tokens/<corpus>-<hash>/      token stores
    {root}/runs/<run>/                  pre-training runs: Ray Train's state and checkpoints
    {root}/studies/<study>/             Ray Tune's state and the trials' checkpoints
    {root}/reports/<study>/             report.html and its tables
    {root}/spool/<server>/              records that a tracking server has not got yet
    {root}/unpublished/<study>.json     studies whose report waits for that
    {root}/mlflow.db, {root}/mlflow/    MLflow's database and artifacts, where no tracking server is named

Every function takes the root as it is configured: a relative path, a `~` and the query of a bucket are resolved here.
"""

import contextlib
import os
import shutil
from pathlib import Path

from midibert_ray.settings.validators import ConfigError
from midibert_ray.storage.files import is_local, join, remove, require_bucket, resolve, without_query, write_bytes

_LEAST_FREE = 16 << 20  # bytes; of the smallest of runs, its database and tokens


def require_writable(root: str) -> None:
    """Make sure that jobs can write below a root, and make its folder; for the start of a job, before it waits.

    Raises:
        ConfigError: naming the root, the problem and the remedy.
    """
    require_usable(root)
    uri, shown = resolve(root), f"storage.root={without_query(root)}"
    probe = join(uri, ".midibert-write-check")
    try:
        write_bytes(probe, b"x")
        free = shutil.disk_usage(uri).free if is_local(uri) else _LEAST_FREE
    except OSError as error:
        raise ConfigError(
            f"{shown} cannot be written to: {error.strerror or error}; name another folder: storage.root=..."
        ) from error
    with contextlib.suppress(OSError):  # who may write to a bucket may not be allowed to remove
        remove(probe)
    if free < _LEAST_FREE:
        raise ConfigError(
            f"{shown} has {free / 2**20:.1f} MiB of room left, too little to begin; free some, or name a larger disk: "
            "storage.root=..."
        )


def require_usable(root: str) -> None:
    """Refuse a root that no machine could use; nothing is written.

    Raises:
        ConfigError: for a folder with a question mark, and a bucket that is not there.
    """
    uri = resolve(root)
    if is_local(uri) and "?" in uri:
        raise ConfigError(
            f"storage.root={root} has a question mark, which databases take for a query; name a folder without one"
        )
    require_bucket("storage.root", uri)


def obstacle(root: str) -> str:
    """The reason why this machine cannot write below a local root, found without writing; empty for none."""
    if not is_local(resolve(root)):
        return ""
    path = Path(resolve(root))
    there = next(each for each in (path, *path.parents) if each.exists())
    if not there.is_dir():
        return f"{there} is no folder"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written to"


def tokens(root: str) -> str:
    """The folder of all token stores."""
    return join(resolve(root), "tokens")


def runs(root: str) -> str:
    """The folder of all pre-training runs."""
    return join(resolve(root), "runs")


def studies(root: str) -> str:
    """The folder of all studies."""
    return join(resolve(root), "studies")


def report(root: str, study: str) -> str:
    """The report of a study."""
    return join(resolve(root), "reports", study, "report.html")


def song(root: str, study: str) -> str:
    """The page of a test piece as a model of the study labels it."""
    return join(resolve(root), "reports", study, "song.html")


def spool(root: str, server: str) -> str:
    """The folder of the records that wait for a tracking server."""
    return join(resolve(root), "spool", server)


def unpublished(root: str) -> str:
    """The folder of the marks of studies whose report waits for the tracking server."""
    return join(resolve(root), "unpublished")


def mlflow_database(root: str) -> str:
    """The sqlite file of MLflow."""
    return join(resolve(root), "mlflow.db")


def mlflow_artifacts(root: str) -> str:
    """The folder of MLflow's artifacts."""
    return join(resolve(root), "mlflow")
