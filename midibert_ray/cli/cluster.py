"""Talking to the job server of a Ray cluster: connect, start, follow, stop.

A job's own output goes to stdout as it comes; remarks on the job are logged.
"""

import asyncio
import logging
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import requests

from midibert_ray.cli import workdir
from midibert_ray.cli.submission import ROOT, Submission
from midibert_ray.settings.config import ConfigError
from midibert_ray.settings.presets import program

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

logger = logging.getLogger(__name__)

STOPPED = 128 + 15
"""Exit code of a job that was stopped: that of a shell for SIGTERM, which Ray sends."""

START_S = 90.0
"""How long a head that has just started may take before it can run jobs."""

CONTACT_S = 600.0
"""How long a job is followed without any answer of the cluster."""

SILENCE_S = 120.0
"""How long a connection may send nothing before another one is made."""

_NO_AGENT = "No available agent"
"""Part of Ray's message while no process of the head can take a job."""

BROKEN = 5
"""How many connections in a row may break off before the log of a job that has ended is taken as it is."""


class ClusterError(LookupError):
    """No cluster that runs jobs answers at an address."""


def connect(address: str) -> "JobSubmissionClient":
    """The job server of a cluster.

    Raises:
        ClusterError: where none answers.
        PermissionError: where it does not take our token.
    """
    if has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it once, on import; its client does not set it
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # which the client prefers to its own argument
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with _explained(address):
        return JobSubmissionClient(address)


def has_token() -> bool:
    """Tell whether there is a token where Ray looks for one."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return path.is_file() and bool(path.read_text().strip())


@contextmanager
def _explained(address: str, job: str = "") -> Iterator[None]:
    """Say in one line what goes wrong between here and a cluster."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        found = "does not take the token that is set here" if has_token() else "wants a token, and none is set here"
        raise PermissionError(
            f"the cluster at {address} {found}; put the token of its head (`ray get-auth-token` there) into "
            "~/.ray/auth_token, or the path of such a file into RAY_AUTH_TOKEN_PATH"
        ) from None
    except (ConnectionError, requests.RequestException) as error:
        silent = isinstance(error, ConnectionError | requests.ConnectionError)
        reason = "" if silent else f" ({type(error).__name__}: {error})"
        raise ClusterError(
            f"no Ray cluster answers at {address}{reason}; give the address of its dashboard by --address or "
            "RAY_API_SERVER_ADDRESS, and open a tunnel if it is on another machine (ssh -L 8265:127.0.0.1:8265 HEAD)"
        ) from None
    except RuntimeError as error:
        if "Version check" in str(error):
            raise ClusterError(f"what answers at {address} runs no Ray jobs: {error}") from None
        if _NO_AGENT in str(error):
            raise ClusterError(
                f"the cluster at {address} answers, but no job agent runs on its head; most often another program "
                "there has port 52365: start the head with another (`ray start --dashboard-agent-listen-port`), or "
                "look into dashboard_agent.log in the folder of its session"
            ) from None
        if "status code 404" not in str(error) or not job:
            raise
        raise LookupError(
            f"the cluster at {address} knows no job {job!r} (`ray job list` shows those that it knows); if it has been "
            "started anew, submit the job again: it goes on where it stopped"
        ) from None


def start(client: "JobSubmissionClient", submission: Submission, paths: Sequence[Path]) -> tuple[str, bool]:
    """Start a job with some files of this checkout, or find it running; gives its id, and whether it was started now.

    Raises:
        ConfigError: where the same results are being made by a job with other settings.
    """
    from midibert_ray.tracking import origin  # here, as help needs no framework

    labels = {"job": submission.job, "preset": submission.preset, "identity": submission.identity}
    deadline = time.monotonic() + START_S
    with tempfile.TemporaryDirectory() as scratch, _explained(client.get_address()):
        archive = Path(scratch, "code.zip")
        code = workdir.pack(ROOT, paths, archive)
        while True:
            earlier = _earlier(client, submission.id)
            for job in earlier.values():
                if not job.status.is_terminal():
                    return join(submission, job, code), False
            number = max(earlier, default=0) + 1
            try:
                name = client.submit_job(
                    entrypoint=submission.entrypoint,  # Ray runs it on the head as long as it asks for no resources
                    submission_id=submission.id if number == 1 else f"{submission.id}-{number}",
                    runtime_env={"working_dir": str(archive), "env_vars": {origin.COMMIT: origin.revision()}},
                    metadata=labels | {"settings": submission.settings, "code": code},
                )
                return name, True
            except RuntimeError as error:
                # Somebody was faster, or the head has just started: it answers before it can run jobs.
                passing = any(words in str(error) for words in ("already exists", _NO_AGENT))
                if not passing or time.monotonic() > deadline:
                    raise
                time.sleep(1)


def _earlier(client: "JobSubmissionClient", base: str) -> "dict[int, JobDetails]":
    """Jobs of an identity that the cluster has seen, by number."""
    pattern = re.compile(rf"{re.escape(base)}(?:-(\d+))?")
    matches = [(pattern.fullmatch(job.submission_id or ""), job) for job in client.list_jobs()]
    return {int(match[1] or 1): job for match, job in matches if match}


def join(submission: Submission, running: "JobDetails", code: str) -> str:
    """The id of a running job, if it is the one that is submitted; notes where it runs other code.

    Raises:
        ConfigError: where it makes the same results with other settings.
    """
    labels, name = running.metadata or {}, str(running.submission_id)
    if labels.get("settings") != submission.settings:
        stop = shlex.join([*program("submit"), "--stop", name])
        raise ConfigError(
            f"{name} makes the same results just now, with other settings for the way there: {running.entrypoint}\n"
            f"Let it end, or stop it ({stop}); what is submitted then goes on from there"
        )
    if labels.get("code") != code:
        logger.warning("note      %s runs other code than that of %s", name, ROOT)
    return name


def follow(client: "JobSubmissionClient", job: str) -> int:
    """Copy a job's log to stdout until the job ends, through any number of lost connections; gives its exit code.

    Raises:
        ClusterError: where the cluster has not answered for ten minutes.
        LookupError: for an unknown job.
    """
    with _explained(client.get_address(), job):
        client.get_job_info(job)
        details = asyncio.run(_Log(client, job).copy())
    status, code = details.status.value, details.driver_exit_code
    if status == "FAILED" and code is None:  # the driver was not even started; other reasons stand in the log
        logger.error("%s", details.message)
    logger.info("%-10s%s", status.lower(), job)
    if status == "STOPPED":
        return STOPPED
    return 1 if code is None else code if code >= 0 else 128 - code


@dataclass
class _Log:
    """A job's log on its way to stdout."""

    client: "JobSubmissionClient"
    job: str
    written: int = 0

    async def copy(self) -> "JobDetails":
        """Copy until the job has ended and all of its log has arrived; gives how it ended."""
        heard, broken = time.monotonic(), 0
        while True:
            complete = await self._copy_once()
            broken = 0 if complete else broken + 1
            try:
                details = self.client.get_job_info(self.job)
            except (ConnectionError, requests.RequestException, RuntimeError) as error:
                if "status code 404" in str(error):
                    raise
                if time.monotonic() - heard > CONTACT_S:
                    raise ConnectionError(str(error)) from None
            else:
                heard = time.monotonic()
                # The machine that holds the log may be gone, and the rest of it as well.
                if details.status.is_terminal() and (complete or broken > BROKEN):
                    return details
            await asyncio.sleep(1)

    async def _copy_once(self) -> bool:
        """Copy what one connection sends, which begins with the log's beginning; whether it sent all of it."""
        position, now = 0, asyncio.get_running_loop().time
        try:
            # A connection that is silent may have been lost without a word, as when a laptop sleeps.
            async with asyncio.timeout(SILENCE_S) as limit:
                async for chunk in self.client.tail_job_logs(self.job):
                    limit.reschedule(now() + SILENCE_S)
                    sys.stdout.write(chunk[max(0, self.written - position) :])
                    sys.stdout.flush()
                    position += len(chunk)
                    self.written = max(self.written, position)
        except (aiohttp.ClientError, ConnectionError, RuntimeError, TimeoutError) as error:
            logger.debug("the log of %s broke off: %s", self.job, error)
            return False
        return True


def stop(client: "JobSubmissionClient", job: str) -> str:
    """Stop a job and wait for its end; gives its last status.

    Raises:
        LookupError: for an unknown job.
    """
    with _explained(client.get_address(), job):
        while not (details := client.get_job_info(job)).status.is_terminal():
            client.stop_job(job)  # more than once, as a job that is just being started does not hear it
            time.sleep(0.5)
    return str(details.status.value).lower()
