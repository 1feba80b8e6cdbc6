"""Submit a job to a Ray cluster, follow its log, and end with its exit code.

    midibert submit pipeline --preset base corpora.root=s3://bucket/corpora storage.root=s3://bucket/out
    midibert submit --no-wait pretrain --preset small storage.root=/shared/out
    midibert submit --attach pipeline-1a2b3c4d5e             # follow it again
    midibert submit --stop pipeline-1a2b3c4d5e               # submitted again, it goes on where it stopped

Ctrl-C leaves the log and not the job. The cluster is that of RAY_API_SERVER_ADDRESS or --address; its token is taken
from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. Passwords and keys are no settings: nodes have them in
their environment or in files.
"""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from midibert_ray.cli import cluster, submission, workdir
from midibert_ray.cli.arguments import Parser
from midibert_ray.cli.commands import find
from midibert_ray.settings.config import ConfigError
from midibert_ray.settings.overrides import refuse_secrets
from midibert_ray.settings.presets import program

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

logger = logging.getLogger(__name__)

ADDRESS = "http://127.0.0.1:8265"


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line, that of the job within it.

    Raises:
        ConfigError: for what cannot be understood or submitted.
    """
    refuse_secrets([*words, f"RAY_API_SERVER_ADDRESS={os.environ.get('RAY_API_SERVER_ADDRESS', '')}"])
    parser = Parser(find("submit"), usage="%(prog)s [options] (JOB [its command line] | --attach ID | --stop ID)")
    parser.add_argument("-h", "--help", action="help", help="show this; for a job's own help: submit JOB --help")
    parser.add_argument("--address", help=f"dashboard of the cluster (default: RAY_API_SERVER_ADDRESS, or {ADDRESS})")
    parser.add_argument("--no-wait", action="store_true", help="do not follow the log")
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent and started, and stop")
    running = parser.add_mutually_exclusive_group()
    running.add_argument("--attach", metavar="ID", help="follow the log of a job, and end with its exit code")
    running.add_argument("--stop", metavar="ID", help="stop a job")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="JOB ...", help="NAME or jobs/NAME.py")
    args = parser.parse_args(words)
    if bool(args.command) == bool(args.attach or args.stop):
        raise ConfigError("name a job to submit, such as pipeline, or give --attach ID or --stop ID")
    args.submission = submission.describe(*args.command) if args.command else None
    return args


def run(args: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    address, again = _address(args.address)
    if args.stop:
        logger.info("%-10s%s", cluster.stop(cluster.connect(address), args.stop), args.stop)
        return 0
    if args.attach:
        return _follow(cluster.connect(address), args.attach, again)
    submitted = args.submission
    paths = workdir.files(submission.ROOT)
    logger.info("sending   %d files of code to %s", len(paths), address)
    if args.dry_run:
        logger.info("job       %s: %s", submitted.id, submitted.entrypoint)
        return 0
    client = cluster.connect(address)
    name, fresh = cluster.start(client, submitted, paths)
    logger.info("%-10s%s: %s", "started" if fresh else "running", name, submitted.entrypoint)
    if args.no_wait:
        _say_how(name, again)
        return 0
    return _follow(client, name, again)


def _address(given: str | None) -> tuple[str, list[str]]:
    """The address of the cluster, and how a command begins that reaches it again."""
    address = given or os.environ.get("RAY_API_SERVER_ADDRESS") or ADDRESS
    again = [*program("submit"), *(["--address", given] if given else [])]
    return address if "://" in address else f"http://{address}", again


def _follow(client: "JobSubmissionClient", job: str, again: Sequence[str]) -> int:
    try:
        return cluster.follow(client, job)
    except KeyboardInterrupt:
        logger.info("\n%s goes on without you", job)
        _say_how(job, again)
        raise


def _say_how(job: str, again: Sequence[str]) -> None:
    logger.info("follow    %s", shlex.join([*again, "--attach", job]))
    logger.info("stop      %s", shlex.join([*again, "--stop", job]))
