"""Where a run comes from: commit, command line, libraries."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest

from midibert_ray.tracking import origin


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with one commit, taken for that of the code."""
    (tmp_path / "a.py").write_text("1\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "a.py"], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(origin, "_ROOT", tmp_path)
    origin.revision.cache_clear()
    yield tmp_path
    origin.revision.cache_clear()


def commit(folder: Path) -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True).stdout.strip()


def test_a_run_names_its_commit_and_whether_files_differ(checkout: Path) -> None:
    (checkout / "untracked.txt").touch()
    found = origin.tags("study")
    assert (found["mlflow.source.git.commit"], found["git.dirty"]) == (commit(checkout), "false")
    (checkout / "a.py").write_text("2\n")
    origin.revision.cache_clear()
    found = origin.tags("study")
    assert (found["mlflow.source.git.commit"], found["git.dirty"]) == (commit(checkout), "true")


def test_a_submitted_job_has_its_commit_from_where_it_was_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin, "_ROOT", tmp_path)
    for sent, expected in (("abc+", ("abc", "true")), ("abc", ("abc", "false")), ("", (None, None))):
        origin.revision.cache_clear()
        monkeypatch.setenv(origin.COMMIT, sent)
        found = origin.tags("study")
        assert (found.get("mlflow.source.git.commit"), found.get("git.dirty")) == expected
    origin.revision.cache_clear()


def test_a_run_names_its_command_and_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for called, source in (
        (["/somewhere/bin/midibert", "study", "--preset", "debug"], "midibert study"),
        (["jobs/pipeline.py", "--preset", "debug"], "jobs/pipeline.py"),
        (["/usr/lib/default_worker.py", "x"], "python jobs/pretrain.py"),
    ):
        monkeypatch.setattr(sys, "argv", called)
        found = origin.tags("pretrain")
        assert found["mlflow.source.name"] == source
    assert found["library.numpy"] == numpy.__version__
    assert found["library.python"].startswith("3.")
