"""A submission: a job's command line, understood by the job itself, and the names that follow from it."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from midibert_ray.cli import arguments, commands
from midibert_ray.cli.arguments import Args
from midibert_ray.settings.config import ConfigError
from midibert_ray.settings.overrides import digest, flatten, identity
from midibert_ray.settings.shipped import is_shipped

ROOT = Path(__file__).parents[2]

_PLACES = ("corpora.root", "storage.root", "storage.cache", "output", "run", "reference", "input")
"""Settings that name folders or files; the last four are those of `export`, `annotate` and `embed`."""

_MODEL = ("runs:/", "models:/", "mlflow-artifacts:/")
"""Beginnings of models that are no folders."""


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
        """The name of the first job of this identity on a cluster; later ones get -2, -3 ..."""
        return f"{self.job}-{self.identity}"


def describe(job: str, *words: str) -> Submission:
    """The submission of a job (`NAME` or `jobs/NAME.py`) and its command line, in which folders are the cluster's.

    `--help` in it is answered, and ends the process.

    Raises:
        ConfigError: for what is no job of this checkout, a command line that the job would refuse, and a folder that
            would not outlive the job.
    """
    name = Path(job).stem if Path(job).parent == Path("jobs") or Path(job).resolve().parent == ROOT / "jobs" else job
    known = [file.stem for file in sorted(ROOT.glob("jobs/[a-z]*.py")) if file.stem != "submit"]
    if not known:
        raise ConfigError(
            f"the code of a checkout is sent, and {ROOT} is none; run `midibert submit` in one, or let Ray start "
            f"what its nodes have installed: ray job submit -- {shlex.join(['midibert', name, *words])}"
        )
    if name not in known:
        raise ConfigError(f"{job!r} is no job of {ROOT}; name one as jobs/NAME.py: {', '.join(known)}")
    args = arguments.parse(commands.find(name), words)
    _check_places(args)
    flat = flatten(args.config)
    own = {"words": [*args.words, *args.flags], "extra": args.extra, "dry_run": args.dry_run}
    sections = {key.split(".")[0] for key in flat}
    return Submission(
        job=name,
        preset=args.preset,
        entrypoint=shlex.join(["python", f"jobs/{name}.py", *words]),
        identity=identity(args.config, sections, root=args.config.storage.root, **own),
        settings=digest({"settings": flat} | own),
    )


def _check_places(args: Args) -> None:
    """Refuse relative folders: below the job's working directory, which Ray deletes, results would be lost."""
    settings = flatten(args.config) | dict(args.extra)
    places = [(key, str(settings.get(key, ""))) for key in _PLACES]
    places += [("tracking.uri", args.config.tracking.uri.removeprefix("sqlite:///"))]
    model = args.extra.get("model", "")
    places += [("model", "" if model.startswith(_MODEL) or is_shipped(model) else model)]
    folders = [name for name in args.config.corpora.names if name.startswith("folder:")]
    places += [("corpora.names", name.removeprefix("folder:")) for name in folders]
    for key, place in places:
        if place and "://" not in place and not place.startswith(("/", "~")):
            raise ConfigError(
                f"{key}={place!r} is a relative path, and on the cluster it would lie in the job's working directory, "
                "which Ray deletes; give an absolute path that every node sees, or an address such as s3://bucket/out"
            )
