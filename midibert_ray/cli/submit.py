"""The command line of jobs/submit.py."""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from midibert_ray.cli import cluster as server
from midibert_ray.cli import workdir
from midibert_ray.cli.submission import ROOT, describe, resolve
from midibert_ray.settings.overrides import refuse_secrets

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

logger = logging.getLogger(__name__)

ADDRESS = "http://127.0.0.1:8265"
INTERRUPTED = 128 + 2
"""Exit code after Ctrl-C."""


def main(description: str | None, arguments: Sequence[str] | None = None) -> int:
    """Do what a command line of jobs/submit.py asks for; gives the exit code.

    Args:
        description: the docstring of the job file, for `--help`.
        arguments: the command line, by default this process's.

    Raises:
        ConfigError: for what cannot be submitted.
        LookupError: for a cluster or a job that is not there.
        PermissionError: for a token that the cluster does not take.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    arguments = sys.argv[1:] if arguments is None else arguments
    refuse_secrets([*arguments, f"RAY_API_SERVER_ADDRESS={os.environ.get('RAY_API_SERVER_ADDRESS', '')}"])
    asked = _parse(description, arguments)
    address, again = _address(asked.address)
    if asked.stop:
        logger.info("%-10s%s", server.stop(server.connect(address), asked.stop), asked.stop)
        return 0
    if asked.attach:
        return _watch(server.connect(address), asked.attach, again)
    job, *words = asked.command
    logger.info("checking  %s", shlex.join(asked.command))
    path, invocation = resolve(job, words)
    wanted, paths = describe(path, words, invocation), workdir.files(ROOT)
    workdir.check_size(ROOT, paths, asked.limit_mib)
    logger.info("sending   %d files, %.1f MiB, to %s", len(paths), workdir.size(paths) / (1 << 20), address)
    if asked.dry_run:
        logger.info("job       %s: %s", wanted.id, wanted.entrypoint)
        return 0
    client = server.connect(address)
    name, fresh = server.start(client, wanted, paths)
    logger.info("%-10s%s: %s", "started" if fresh else "running", name, wanted.entrypoint)
    if asked.no_wait:
        _say_how(name, again)
        return 0
    return _watch(client, name, again)


def _address(given: str | None) -> tuple[str, list[str]]:
    """The address of the cluster, and how a command begins that reaches it again."""
    address = given or os.environ.get("RAY_API_SERVER_ADDRESS") or ADDRESS
    again = ["python", "jobs/submit.py", *(["--address", given] if given else [])]
    return address if "://" in address else f"http://{address}", again


def _watch(client: "JobSubmissionClient", job: str, again: Sequence[str]) -> int:
    try:
        return server.follow(client, job)
    except KeyboardInterrupt:
        logger.info("\n%s goes on without you", job)
        _say_how(job, again)
        return INTERRUPTED


def _say_how(job: str, again: Sequence[str]) -> None:
    logger.info("follow    %s", shlex.join([*again, "--attach", job]))
    logger.info("stop      %s", shlex.join([*again, "--stop", job]))


def _parse(description: str | None, arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] (JOB [options and settings of the job] | --attach ID | --stop ID)",
    )
    parser.add_argument("--address", help=f"dashboard of the cluster (default: RAY_API_SERVER_ADDRESS, or {ADDRESS})")
    parser.add_argument("--limit-mib", type=float, default=20, help="refuse to send more than this (default: 20)")
    parser.add_argument("--no-wait", action="store_true", help="do not follow the log")
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent and started, and stop")
    running = parser.add_mutually_exclusive_group()
    running.add_argument("--attach", metavar="ID", help="follow the log of a job, and end with its exit code")
    running.add_argument("--stop", metavar="ID", help="stop a job")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="JOB ...", help="jobs/NAME.py and what it takes")
    asked = parser.parse_args(arguments)
    if bool(asked.command) == bool(asked.attach or asked.stop):
        parser.error("name a job to submit, such as jobs/pipeline.py, or give --attach ID or --stop ID")
    return asked
