"""What is submitted: a job's command line, understood by the job itself, and the names that follow from it."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from midibert_ray import storage
from midibert_ray.cli.arguments import Invocation
from midibert_ray.settings.config import ConfigError
from midibert_ray.settings.overrides import digest, flatten, identity

ROOT = Path(__file__).parents[2]

_PLACES = ("corpora.root", "storage.root", "storage.cache", "output", "run", "reference")
"""Settings that name folders or files; the last three are those of jobs/export.py."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job as it will be started on the cluster."""

    job: str
    """Its name, such as `pipeline`."""

    preset: str

    entrypoint: str
    """The command line, in the user's own words: folders are those of the cluster."""

    identity: str
    """Hash of what decides the results and where they go; jobs that share it must not run side by side."""

    settings: str
    """Hash of everything that was asked, in whatever order it was written."""

    @property
    def id(self) -> str:
        """What the first job of this identity is called on a cluster; later ones get -2, -3 ..."""
        return f"{self.job}-{self.identity}"


def describe(job: Path, words: Sequence[str], asked: Invocation) -> Submission:
    """The submission of a job's command line.

    Raises:
        ConfigError: for a folder that would not outlive the job.
    """
    _check_places(asked)
    flat = flatten(asked.config)
    own = {"words": [*asked.words, *asked.flags], "extra": asked.extra, "dry_run": asked.dry_run}
    sections = {key.split(".")[0] for key in flat}
    return Submission(
        job=job.stem,
        preset=asked.preset,
        entrypoint=shlex.join(["python", f"jobs/{job.name}", *words]),
        identity=identity(asked.config, sections, root=asked.config.storage.root, **own),
        settings=digest({"settings": flat} | own),
    )


def _check_places(asked: Invocation) -> None:
    """Refuse relative folders: below the job's working directory, which Ray deletes, results would be lost."""
    settings = flatten(asked.config) | dict(asked.extra)
    places = [(key, str(settings.get(key, ""))) for key in _PLACES]
    places += [("tracking.uri", asked.config.tracking.uri.removeprefix("sqlite:///"))]
    folders = [name for name in asked.config.corpora.names if name.startswith("folder:")]
    places += [("corpora.names", name.removeprefix("folder:")) for name in folders]
    for key, place in places:
        if place and storage.is_local(place) and not place.startswith(("/", "~")):
            raise ConfigError(
                f"{key}={place!r} is a relative path, and on the cluster it would lie in the job's working directory, "
                "which Ray deletes; give an absolute path that every node sees, or an address such as s3://bucket/out"
            )


def resolve(job: str, words: Sequence[str]) -> tuple[Path, Invocation]:
    """The file of a job, and what its command line asks for; ends the process as the job would where it is wrong.

    Raises:
        ConfigError: for anything but one of the jobs of this checkout.
    """
    path = Path(job).resolve()
    known = sorted(item.stem for item in ROOT.glob("jobs/*.py") if item.stem != "submit")
    if path.parent != ROOT / "jobs" or path.suffix != ".py" or path.stem not in known:
        raise ConfigError(f"{job!r} is no job of {ROOT}; name one as jobs/NAME.py: {', '.join(known)}")
    command = [sys.executable, str(path), "--resolve", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"config": ')]
    if done.returncode or not lines:  # it has said why, or answered --help
        sys.stdout.write(done.stdout)
        sys.exit(done.returncode)
    return path, Invocation.from_json(lines[-1])
