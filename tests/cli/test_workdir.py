"""What is sent to a cluster: the code, and none of the secrets that lie about in a checkout."""

import os
import re
import shutil
import subprocess
import tomllib
import zipfile
from itertools import product
from pathlib import Path

import pytest
from ray._private.runtime_env import packaging

from midibert_ray.cli import workdir
from midibert_ray.settings.config import ConfigError

ROOT = Path(__file__).parents[2]

SECRETS = Path(__file__).with_name("secret_names.txt").read_text().split()
"""Names that secrets have."""


def checkout(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def sent(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in workdir.files(root)]


def sent_by_ray(root: Path) -> list[str]:
    """What `ray job submit --working-dir .` takes along."""
    paths: list[Path] = []
    packaging._dir_travel(root, [], paths.append, include_gitignore=True)
    return sorted(path.relative_to(root).as_posix() for path in paths if path.is_file())


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A copy of the code with secrets everywhere; a repository that does not know them; and the names of the code."""
    root = tmp_path_factory.mktemp("checkout")
    for part in ("jobs", "midibert_ray", "pyproject.toml", "requirements.txt", ".rayignore", ".gitignore"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, root / part)
    code = sent(root)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", *code], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], cwd=root, check=True)
    folders = ["", "jobs", "midibert_ray", "other"]
    folders += [f"midibert_ray/{name}" for name in ("music", "corpora/sample/POP909/042", "report/templates", "export")]
    checkout(root, *(f"{folder}/{name}".lstrip("/") for folder, name in product(folders, SECRETS)))
    return root, code


def test_there_are_many_secrets() -> None:
    assert len(set(SECRETS)) == len(SECRETS) >= 150


@pytest.mark.parametrize("repository", [True, False], ids=["git", "no git"])
def test_no_planted_secret_travels(planted: tuple[Path, list[str]], repository: bool, tmp_path: Path) -> None:
    root, code = planted
    if not repository:
        root = shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns(".git"))
    assert sent(root) == code
    assert sent_by_ray(root) == code


def test_git_knows_which_code_is_meant(planted: tuple[Path, list[str]], caplog: pytest.LogCaptureFixture) -> None:
    root, code = planted
    checkout(root, "midibert_ray/local_settings.py")
    assert sent(root) == code
    assert "midibert_ray/local_settings.py, which git does not know (git add it" in caplog.text
    (root / "midibert_ray/local_settings.py").unlink()


def test_a_repository_that_git_refuses_sends_nothing(tmp_path: Path) -> None:
    checkout(tmp_path, "jobs/study.py", ".git")
    with pytest.raises(ConfigError, match="git does not say"):
        workdir.files(tmp_path)


def test_links_and_hidden_files_stay(tmp_path: Path) -> None:
    checkout(tmp_path, "jobs/study.py", "jobs/.b.py", "data/c.py", "midibert_ray/.x/d.py", "midibert_ray/a.py")
    (tmp_path / "jobs/report.py").symlink_to(tmp_path / "data/c.py")
    (tmp_path / "midibert_ray/link").symlink_to(tmp_path / "data")
    assert sent(tmp_path) == ["jobs/study.py", "midibert_ray/a.py"]


def test_a_script_beside_the_jobs_stays(tmp_path: Path) -> None:
    """Without git as well: the jobs are known by their names."""
    checkout(tmp_path, "jobs/study.py", "jobs/credentials.py", "jobs/my_keys.py", "jobs/below/study.py")
    assert sent(tmp_path) == ["jobs/study.py"]
    (tmp_path / ".rayignore").write_text((ROOT / ".rayignore").read_text())
    assert sent_by_ray(tmp_path) == ["jobs/study.py"]


def test_every_file_of_the_package_is_code_and_lies_in_the_wheel() -> None:
    files = {path for part in ("jobs", "midibert_ray") for path in (ROOT / part).rglob("*") if path.is_file()}
    files = {path for path in files if "__pycache__" not in path.parts}
    assert files <= set(workdir.files(ROOT)), "add it to git, and to CODE in cli/workdir.py where it is data"
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    wheel = {
        path
        for package, globs in data.items()
        for glob in globs
        for path in ROOT.glob(f"{package.replace('.', '/')}/{glob}")
    }
    assert {path for path in files if path.suffix != ".py"} <= wheel


def test_rayignore_is_made_from_the_same_list() -> None:
    wanted = workdir.rayignore(ROOT)
    assert (ROOT / ".rayignore").read_text() == wanted, "python -m midibert_ray.cli.workdir > .rayignore"


def test_the_same_code_gives_the_same_archive(tmp_path: Path) -> None:
    paths = workdir.files(ROOT)
    assert {path.relative_to(ROOT).parts[0] for path in paths} == {
        "jobs",
        "midibert_ray",
        "pyproject.toml",
        "requirements.txt",
    }
    paths = [path for path in paths if path.relative_to(ROOT).parts[0] != "midibert_ray"]  # the others take no time
    code = workdir.pack(ROOT, paths, tmp_path / "a.zip")
    os.utime(ROOT / "requirements.txt")
    assert workdir.pack(ROOT, paths, tmp_path / "b.zip") == code
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert workdir.pack(ROOT, paths[1:], tmp_path / "c.zip") != code
    with zipfile.ZipFile(tmp_path / "a.zip") as packed:
        assert packed.read("jobs/pipeline.py") == (ROOT / "jobs/pipeline.py").read_bytes()


def test_dockerignore_is_made_from_the_same_list_and_keeps_secrets_out(planted: tuple[Path, list[str]]) -> None:
    root, code = planted
    text = (ROOT / "cluster/Dockerfile.dockerignore").read_text()
    assert text == workdir.dockerignore(), "python -m midibert_ray.cli.workdir docker > cluster/Dockerfile.dockerignore"
    names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    rules = [line for line in text.splitlines() if not line.startswith("#")]
    assert sorted(name for name in names if not ignored(name, rules)) == code


def ignored(name: str, rules: list[str]) -> bool:
    """Whether Docker leaves a file out: the last rule counts that fits it or a folder that it is in."""
    out, parents = False, [name, *map(str, Path(name).parents[:-1])]
    for rule in rules:
        pattern = re.escape(rule.lstrip("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        pattern = pattern.replace(r"\[0\-9\]", "[0-9]")
        if any(re.fullmatch(pattern, parent) for parent in parents):
            out = not rule.startswith("!")
    return out
