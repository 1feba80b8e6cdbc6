"""Tags that tell from which code, libraries and command line a run comes; nothing here needs MLflow."""

import getpass
import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import midibert_ray
from midibert_ray.settings.presets import program

COMMIT = "MIDIBERT_COMMIT"
"""Environment variable of submitted jobs, whose code comes without its repository: the commit, `+` behind it if files
differ from it."""
DIRTY = "git.dirty"
REQUIREMENT = f"midibert-ray=={midibert_ray.__version__}"
"""This version, as pip takes it."""
LIBRARIES = ("torch", "transformers", "ray", "deepspeed", "mlflow", "numpy", "symusic")
_ROOT = Path(__file__).parents[2]


def tags(job: str) -> dict[str, str]:
    """Tags of a run that this process makes, in MLflow's own names where it has them; `job` makes such runs."""
    entry = Path(sys.argv[0])
    words = [entry.name, *sys.argv[1:2]] if entry.name == "midibert" else program(job)
    if entry.parent.name == "jobs":
        words = [f"jobs/{entry.name}"]
    found = {
        "mlflow.user": _user(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": shlex.join(words),
    }
    if commit := revision():
        found |= {"mlflow.source.git.commit": commit.rstrip("+"), DIRTY: str(commit.endswith("+")).lower()}
    return found | _libraries()


@cache
def revision() -> str:
    """The commit of this code, `+` behind it where files differ from it; empty where there is no repository."""
    if not (_ROOT / ".git").exists():  # in site-packages a repository further up would be another project's
        return os.environ.get(COMMIT, "")
    try:
        return _git("rev-parse", "HEAD") + "+" * bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):  # no git, or it does not trust the folder's owner
        return ""


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=_ROOT, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


@cache
def _libraries() -> dict[str, str]:
    found = {"library.midibert_ray": midibert_ray.__version__, "library.python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[f"library.{name}"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user that has no name
        return "unknown"
