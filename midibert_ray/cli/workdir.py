"""What a submitted job takes to the cluster: the code, in one archive, and never a secret.

Beside the fixed parts below, `.gitignore` and `.rayignore` files decide, as they do for `ray job submit`.
"""

import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pathspec import GitIgnoreSpec

from midibert_ray.settings.config import ConfigError
from midibert_ray.settings.overrides import digest

PARTS = ("jobs", "midibert_ray", "pyproject.toml", "requirements.txt")
"""What of a checkout a job needs."""

NEVER = (
    ".env*",
    "*.pem",
    "*.key",
    "*.p12",
    "id_rsa*",
    "id_ed25519*",
    "auth_token*",
    "*credentials",
    "*credentials.json",
    "*credentials.csv",
    ".netrc",
    ".pgpass",
    "__pycache__/",
)
"""Left out whatever the ignore files say; `.rayignore` says the same to `ray job submit`."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
_MIB = 1 << 20


def files(root: Path) -> list[Path]:
    """The files of a checkout that a job needs, sorted. Links are left out: they may lead anywhere."""
    never = (root, GitIgnoreSpec.from_lines(NEVER))
    return sorted(_kept((root / part for part in PARTS), [never, *_rules(root)]))


def _kept(paths: Iterable[Path], rules: Sequence[tuple[Path, GitIgnoreSpec]]) -> Iterator[Path]:
    for path in paths:
        folder = path.is_dir()
        names = [(spec, path.relative_to(base).as_posix() + "/" * folder) for base, spec in rules]
        if path.is_symlink() or any(spec.match_file(name) for spec, name in names):
            continue
        if folder:
            yield from _kept(path.iterdir(), [*rules, *_rules(path)])
        elif path.is_file():
            yield path


def _rules(folder: Path) -> list[tuple[Path, GitIgnoreSpec]]:
    found = [folder / name for name in (".gitignore", ".rayignore")]
    return [(folder, GitIgnoreSpec.from_lines(path.read_text().splitlines())) for path in found if path.is_file()]


def size(paths: Iterable[Path]) -> int:
    """Bytes of some files together."""
    return sum(path.stat().st_size for path in paths)


def check_size(root: Path, paths: Sequence[Path], limit_mib: float) -> None:
    """Refuse to send more than a limit, as every node fetches all of it through the head.

    Raises:
        ConfigError: with the ten largest files.
    """
    total = size(paths)
    if total <= limit_mib * _MIB:
        return
    largest = sorted(paths, key=lambda path: -path.stat().st_size)[:10]
    lines = [f"{path.stat().st_size / _MIB:9.2f} MiB  {path.relative_to(root)}" for path in largest]
    raise ConfigError(
        f"the job would take {total / _MIB:.1f} MiB of files along, more than --limit-mib {limit_mib:g}; name in "
        ".rayignore what it does not need, or raise the limit. The largest:\n" + "\n".join(lines)
    )


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
