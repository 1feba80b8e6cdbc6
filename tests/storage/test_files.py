from pathlib import Path

import pytest

from midibert_ray import storage


def test_joins_keep_a_query_at_the_end() -> None:
    assert storage.join("/a/", "b", "c") == "/a/b/c"
    assert storage.join("s3://bucket/x?scheme=http", "runs", "r") == "s3://bucket/x/runs/r?scheme=http"


def test_a_question_mark_in_a_local_path_is_a_letter() -> None:
    assert storage.join("/a?b=c/", "d") == "/a?b=c/d"
    assert storage.join("file:///a?b", "d") == "file:///a?b/d"
    assert storage.without_query("/a?b") == "/a?b"
    assert storage.without_query("s3://a?b") == "s3://a"


def test_local_roots_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert storage.resolve("out") == str(tmp_path / "out")
    assert storage.resolve("~/out") == "/home/someone/out"
    assert storage.resolve("s3://b/x/") == "s3://b/x"


def test_files_are_written_whole(tmp_path: Path) -> None:
    place = str(tmp_path / "deep" / "file.json")
    storage.write_bytes(place, b"one")
    storage.write_bytes(place, b"two")
    assert storage.read_bytes(place) == b"two"
    assert storage.exists(place)
    assert not storage.exists(place + "x")
    assert [path.name for path in Path(place).parent.iterdir()] == ["file.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    place = str(tmp_path / "file")
    storage.write_bytes(place, b"old")
    with pytest.raises(TypeError):
        storage.write_bytes(place, None)  # type: ignore[arg-type]
    assert storage.read_bytes(place) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_names_of_addresses() -> None:
    assert storage.basename("/a/b/") == "b"
    assert storage.basename("/a/what?") == "what?"
    assert storage.basename("s3://bucket/tokens/x-1?endpoint_override=http://host:1") == "x-1"


@pytest.mark.parametrize("content", [b"", b"  \n", b'{"a": ', b"[1]", b"\xff\xfe", b"null"])
def test_a_json_file_that_is_cut_is_named(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    uri = str(tmp_path / "manifest.json")
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(storage.DamagedError, match=r"^/.*/manifest\.json is (empty|damaged \(\d+ bytes)"):
        storage.read_json(uri)
    assert storage.find_json(uri) is None
    assert f"{uri} is " in caplog.text


def test_a_json_file_is_read_or_missed(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.json")
    assert storage.find_json(uri) is None
    with pytest.raises(FileNotFoundError):
        storage.read_json(uri)
    storage.write_bytes(uri, b'{"a": 1}\n')
    assert storage.find_json(uri) == storage.read_json(uri) == {"a": 1}
