"""The process that runs a job: its folders, its log, the Ray that it joins or starts, and how it ends."""

import importlib
import logging
import os
import re
import socket
import sqlite3
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from midibert_ray import storage, tracking
from midibert_ray.cli import resources, signals
from midibert_ray.cli.arguments import Args
from midibert_ray.cli.resources import Request
from midibert_ray.settings import overrides
from midibert_ray.settings.config import Config, ConfigError
from midibert_ray.tracking.spool import UnreachableError
from midibert_ray.tracking.uris import SQLITE

MENDABLE = (ValueError, LookupError, FileNotFoundError, PermissionError, FloatingPointError, UnreachableError)
"""Errors that the user can do something about."""

OWN_RAY = {
    "RAY_enable_metrics_collection": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "30000",  # the load of processes, for the dashboard
    "LOG_NAME_UPDATE_INTERVAL_S": "10",  # between two looks for logs to echo, which jobs do not want
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process that waits for a cloud to take its node away
    "MALLOC_ARENA_MAX": "1",  # Ray trains in a thread, whose tensors would lie in small heaps: 5 % of a step's time
}
"""Of a Ray that a job starts on this machine, unless the environment says otherwise: nobody collects its metrics."""

LOCKED_S = 10.0
"""How long the tracking database may be locked; other jobs hold it for moments."""


def run(job: str, args: Args | Namespace) -> int:
    """Run a job; gives its exit code.

    Raises:
        Exception: one of MENDABLE, where the user can do something about it.
        SystemExit: after Ctrl-C (130) or SIGTERM (143).
    """
    if isinstance(args, Args):
        args = replace(args, config=anchor(args.config))
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    module = importlib.import_module(f"midibert_ray.cli.jobs.{job}")
    with signals.in_order():
        return int(module.run(args) or 0)


def anchor(config: Config) -> Config:
    """The configuration with absolute folders: workers run in other directories than the command line.

    Only the cache may begin with `~`, as each node has its own home for it.
    """
    places = {"corpora.root": config.corpora.root, "storage.root": config.storage.root}
    places |= {} if config.storage.cache.startswith("~") else {"storage.cache": config.storage.cache}
    uri, scheme = config.tracking.uri, "sqlite:///"
    if uri.startswith(scheme):
        uri = scheme + storage.resolve(uri.removeprefix(scheme))
    return overrides.replace(
        config, {key: storage.resolve(place) for key, place in places.items() if place} | {"tracking.uri": uri}
    )


@contextmanager
def at_work(config: Config, needed: Sequence[Request]) -> Iterator[None]:
    """Ray, if anything is `needed`, and the tracking server, once it is sure that a job's results can be kept.

    Raises:
        ConfigError: where the storage root or the database cannot be written to; and as `start_ray`.
    """
    uri = tracking.uris(config).uri
    storage.root.require_writable(config.storage.root)
    _require_database(uri)
    try:
        with tracking.recording(config):
            if needed:
                start_ray(needed)
            yield
    except Exception as error:  # MLflow's, which wraps SQLAlchemy's, which wraps sqlite's
        if problem := re.search(r"\(sqlite3\.\w+\) (.+)", str(error)):
            raise _database_error(uri, problem[1]) from error
        raise


def _require_database(uri: str) -> None:
    """Refuse a sqlite file that cannot be written to; one that is not there yet is made later."""
    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=LOCKED_S)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except sqlite3.DatabaseError as error:
        raise _database_error(uri, str(error)) from error


def _database_error(uri: str, problem: str) -> ConfigError:
    return ConfigError(
        f"the tracking database {uri.removeprefix(SQLITE)} cannot be written to: {problem}; end the program that holds "
        "it, see to its rights and the room on its disk, or name another (tracking.uri=sqlite:////FOLDER/mlflow.db)"
    )


def start_ray(needed: Sequence[Request] = ()) -> None:
    """Join the cluster of RAY_ADDRESS (`ray job submit` sets it), else start Ray on this machine.

    Raises:
        ConfigError: where no Ray answers or can start, and where it can never give what is asked for.
    """
    import ray  # here, as not every job needs it

    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it would go on to tables of a study that was left
    # Workers' own output stays in Ray's log files; progress reaches the driver through training.console.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    address = os.environ.get("RAY_ADDRESS", "")
    local = address in ("", "local")
    if local:
        _require_short_sockets()
        for name, value in OWN_RAY.items():
            os.environ.setdefault(name, value)
        # It warns of a token that nobody needs to know: this Ray is on the loopback interface.
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
        # Without "local" Ray would look for a cluster that `ray start` left behind, dead ones included.
        with _on_loopback():
            ray.init(address="local", num_cpus=resources.LOCAL_CPUS, **quiet)
    else:
        _require_answer(address)
        try:
            ray.init(**quiet)
        except (ConnectionError, ValueError) as error:  # ValueError: of no form that Ray knows
            raise _no_ray(address, error) from None
    signals.pass_on_sigterm()
    resources.require(needed, local=local)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray start as on macOS, where no other machine can join it or reach its ports."""
    from ray._private import ray_constants

    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _require_short_sockets() -> None:
    """Refuse a folder for temporary files whose path leaves no room for those of Ray's sockets."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "")
    folder = os.environ.get(name, "/tmp")
    path = f"{folder}/ray/session_{'0' * 26}_{os.getpid()}/sockets/dash_MetricsHead"
    longest = 103 if sys.platform == "darwin" else 107
    if (excess := len(os.fsencode(path)) - longest) > 0:
        raise ConfigError(
            f"{name}={folder!r} is {excess} bytes too long for the sockets that Ray makes below it; give Ray a shorter "
            "folder of its own, such as RAY_TMPDIR=/tmp"
        )


def _require_answer(address: str) -> None:
    """Refuse an address at which nothing listens, where Ray would wait for a minute and end in a traceback."""
    found = re.fullmatch(r"(?:ray://)?(?:\[(.+)\]|([^:/]+)):(\d+)", address)
    if not found:  # `auto`, which Ray looks up itself
        return
    try:
        socket.create_connection((found[1] or found[2], int(found[3])), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise _no_ray(address, error) from None


def _no_ray(address: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"no Ray answers at RAY_ADDRESS={address} ({error}); give HOST:PORT of the head of a running cluster, or unset "
        "it to start Ray on this machine"
    )
