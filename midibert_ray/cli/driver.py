"""The process that runs a job: its folders, its log, the Ray that it joins or starts, and how it ends."""

import importlib
import logging
import os
import sys
from argparse import Namespace
from dataclasses import replace
from typing import Any

from midibert_ray import storage
from midibert_ray.cli import signals
from midibert_ray.cli.arguments import Args
from midibert_ray.settings import overrides
from midibert_ray.settings.config import Config
from midibert_ray.tracking.spool import UnreachableError

MENDABLE = (ValueError, LookupError, FileNotFoundError, PermissionError, FloatingPointError, UnreachableError)
"""Errors that the user can do something about."""


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


def start_ray() -> None:
    """Join the cluster of RAY_ADDRESS (`ray job submit` sets it), else start Ray on this machine."""
    import ray  # here, as not every job needs it

    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it would go on to tables of a study that was left
    ray.init(**_ray_options())
    signals.pass_on_sigterm()


def _ray_options() -> dict[str, Any]:
    # Workers' own output stays in Ray's log files; progress reaches the driver through training.console.
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    if os.environ.get("RAY_ADDRESS"):
        return quiet
    # A laptop with two cores is given four logical CPUs, as two pre-training workers must leave room for the processes
    # that drive them. Without "local" Ray would look for a cluster that `ray start` left behind, dead ones included.
    return quiet | {"address": "local", "num_cpus": max(4, os.cpu_count() or 1)}
