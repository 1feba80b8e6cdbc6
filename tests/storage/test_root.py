"""A root that cannot be written to is one line with the remedy, before anything starts."""

import os
import subprocess
from pathlib import Path

import pytest

from midibert_ray import storage
from midibert_ray.settings.validators import ConfigError


def test_a_root_is_made_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    assert not storage.root.obstacle(str(tmp_path / "a" / "b")) and not list(tmp_path.iterdir())
    storage.root.require_writable(str(tmp_path / "a" / "b"))
    assert list((tmp_path / "a").rglob("*")) == [tmp_path / "a" / "b"]


def test_a_root_with_a_question_mark(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^storage\.root=.*/what\? has a question mark, .* name a folder without"):
        storage.root.require_writable(str(tmp_path / "what?"))
    assert not list(tmp_path.iterdir())


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "root").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"^storage\.root=.*/root cannot be written to: .*name another folder"):
        storage.root.require_writable(str(tmp_path / "root"))


def test_a_root_on_a_disk_without_room(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    with pytest.raises(ConfigError, match=r"has 1\.0 MiB of room left, .*; free some, or name a larger disk"):
        storage.root.require_writable(str(small_disk))
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "full").write_bytes(bytes(free))
    with pytest.raises(ConfigError, match=r"cannot be written to: No space left on device; .*name another folder"):
        storage.root.require_writable(str(small_disk))


def test_a_root_on_a_disk_that_is_read_only(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for root in (small_disk, small_disk / "not" / "there"):
        with pytest.raises(ConfigError, match="cannot be written to: Read-only file system; name another"):
            storage.root.require_writable(str(root))
        assert storage.root.obstacle(str(root)) == f"{small_disk} cannot be written to"


def test_a_root_of_somebody_else(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written to: Permission denied"):
        storage.root.require_writable(str(tmp_path / "root"))
