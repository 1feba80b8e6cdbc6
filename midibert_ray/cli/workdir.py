"""The files that a submitted job takes to the cluster: the code, in one archive, and nothing that may be a secret.

Sent is what has its place in `CODE` and is known to git, where the checkout is a repository. `.rayignore`, which
`ray job submit` reads and which cannot ask git, says the rest of it: `python -m midibert_ray.cli.workdir > .rayignore`.
"""

import hashlib
import logging
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

from midibert_ray.cli.commands import COMMANDS
from midibert_ray.settings.config import ConfigError
from midibert_ray.settings.overrides import digest

logger = logging.getLogger(__name__)

CODE = (
    "pyproject.toml",
    "requirements.txt",
    "jobs/_checkout.py",
    *(f"jobs/{name}.py" for name in COMMANDS),
    "midibert_ray/**/*.py",
    "midibert_ray/py.typed",
    "midibert_ray/music/vocabulary.json",
    "midibert_ray/corpora/contents.json",
    "midibert_ray/corpora/splits/asap.json",
    "midibert_ray/corpora/splits/emopia.json",
    "midibert_ray/corpora/splits/emopia_song_disjoint.json",
    "midibert_ray/corpora/splits/lieder.json",
    "midibert_ray/corpora/splits/lieder_composers.json",
    "midibert_ray/corpora/splits/pianist8.json",
    "midibert_ray/corpora/splits/pop909.json",
    "midibert_ray/corpora/sample/POP909/LICENSE",
    "midibert_ray/corpora/sample/POP909/*/[0-9][0-9][0-9].mid",
    "midibert_ray/corpora/sample/POP909/*/beat_audio.txt",
    "midibert_ray/corpora/sample/POP909/*/beat_midi.txt",
    "midibert_ray/inference/templates/assets.html",
    "midibert_ray/inference/templates/base.css",
    "midibert_ray/inference/templates/page.html",
    "midibert_ray/inference/templates/player.html",
    "midibert_ray/inference/templates/roll.css",
    "midibert_ray/inference/templates/roll.html",
    "midibert_ray/inference/templates/roll.js",
    "midibert_ray/report/templates/page.html",
    "midibert_ray/report/templates/parts.html",
    "midibert_ray/report/templates/report.css",
    "midibert_ray/report/templates/sections.html",
    "midibert_ray/export/card.md",
    "midibert_ray/weights/*/config.json",
    "midibert_ray/weights/*/model.safetensors",
    "midibert_ray/weights/*/vocabulary.json",
    "midibert_ray/weights/*/calibration.json",
    "midibert_ray/weights/*/README.md",
    "midibert_ray/weights/*/LICENSE-*",
)
"""The files of a checkout that a job needs: code anywhere in the package, jobs and data by their names."""

_EPOCH = (1980, 1, 1, 0, 0, 0)


def files(root: Path) -> list[Path]:
    """The files of a checkout that a job needs, sorted; hidden ones and links, which may lead anywhere, are left out.

    Raises:
        ConfigError: where git does not say which files it knows.
    """
    found = {path for pattern in CODE for path in root.glob(pattern) if _is_plain(path, root)}
    known = _known_to_git(root)
    if known is None:
        return sorted(found)
    for path in sorted(found - known):
        logger.warning("left out  %s, which git does not know (git add it, if jobs need it)", path.relative_to(root))
    return sorted(found & known)


def _is_plain(path: Path, root: Path) -> bool:
    names = [path, *(parent for parent in path.parents if parent != root and root in parent.parents)]
    return path.is_file() and not any(name.name.startswith(".") or name.is_symlink() for name in names)


def _known_to_git(root: Path) -> set[Path] | None:
    """The files that git has under control; None where the checkout is no repository."""
    if not (root / ".git").exists():
        return None
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip()
        raise ConfigError(
            f"git does not say which files of {root} are its own, and no others are sent: {reason}"
        ) from None
    return {root / name for name in listed.stdout.split("\0") if name}


def rayignore(root: Path) -> str:
    """The `.rayignore` of a checkout: everything but the folders that have code, and in them everything but `CODE`.

    Ray matches the checkout itself as `.`, which no pattern here may exclude, and folders without a slash behind them.
    """
    parents = {parent.as_posix() for path in files(root) for parent in path.relative_to(root).parents}
    lines = ["# What `ray job submit --working-dir .` leaves here. Written by `python -m midibert_ray.cli.workdir`."]
    lines.append("[!.]*")
    for folder in sorted({re.sub(r"\d", "[0-9]", parent) for parent in parents - {"."}}):
        lines += [f"!/{folder}", f"/{folder}/*"]
    return "\n".join([*lines, *(f"!/{pattern}" for pattern in CODE), ".?*", "__pycache__", ""])


def dockerignore() -> str:
    """The same for images: `cluster/Dockerfile.dockerignore`."""
    head = "# What no image takes along. Written by `python -m midibert_ray.cli.workdir docker`."
    return "\n".join([head, "*", *(f"!{pattern}" for pattern in CODE), "**/.*", "**/__pycache__", ""])


def pack(root: Path, paths: Iterable[Path], archive: Path) -> str:
    """Write files as a zip archive, and give the hash of their names and contents.

    Nothing else is in it, such as times, so that Ray finds an archive that it has and uploads nothing.
    """
    contents = {}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in paths:
            entry = zipfile.ZipInfo(path.relative_to(root).as_posix(), _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            content = path.read_bytes()
            packed.writestr(entry, content)
            contents[entry.filename] = hashlib.sha256(content).hexdigest()
    return digest(contents)


if __name__ == "__main__":
    sys.stdout.write(dockerignore() if "docker" in sys.argv else rayignore(Path(__file__).parents[2]))
