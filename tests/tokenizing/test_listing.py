"""What lies below a corpus folder: names that are not UTF-8, closed folders, loops of links, times."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from midibert_ray import storage
from midibert_ray.music.protocol import CLEAN
from midibert_ray.tokenizing.listing import list_files, listing_digest, open_file
from midibert_ray.tokenizing.plan import plan_corpus
from tests.tokenizing.malformed import GOOD

MIDI = GOOD["upper.MID"]


def write(folder: Path, *names: str | bytes) -> Path:
    for name in names:
        place = folder / os.fsdecode(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(MIDI)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(list_files(str(folder)).files)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of folders that may not be listed; tests may run as root, who may do everything."""
    folders: set[str] = set()
    scandir = os.scandir

    def guarded(path: str) -> Iterator[Any]:
        if Path(path).name in folders:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    return folders


def plan(name: str, tmp_path: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {"corpora_root": "", "storage_root": str(tmp_path / "root"), "protocol": CLEAN}
    return plan_corpus(name, **settings | changes)


def test_files_are_listed_by_their_path_below_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a" / "folder.mid").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe.mid")
    (tmp_path / "broken.mid").symlink_to("nowhere")
    (tmp_path / "linked.mid").symlink_to("a/b/c.mid")
    write(tmp_path, "x.mid", "a/b/c.mid", "a/Ü?.txt")
    listing = list_files(str(tmp_path))
    assert sorted(listing.files) == ["a/b/c.mid", "a/Ü?.txt", "linked.mid", "x.mid"]
    assert listing.files["x.mid"].size == len(MIDI)
    assert listing.files["x.mid"].mtime_ns == (tmp_path / "x.mid").stat().st_mtime_ns
    assert not listing.unlisted


def test_names_that_are_not_utf8_are_spelled_differently_from_all_others(tmp_path: Path) -> None:
    write(tmp_path, b"caf\xe9.mid", "caf\\xe9.mid", b"d\xff/x.mid", b"note\xe9.txt")
    listing = list_files(str(tmp_path))
    assert sorted(listing.files) == ["caf\\xe9.mid", "caf\\xe9~2.mid", "d\\xff/x.mid", "note\\xe9.txt"]
    assert listing.files["caf\\xe9.mid"].path == "caf\\xe9.mid"
    for name, file in listing.files.items():
        name.encode()
        with open_file(str(tmp_path), file.path) as stream:
            assert stream.read() == MIDI
    assert [piece.piece for piece in plan(f"folder:{tmp_path}", tmp_path).pieces] == [
        "caf\\xe9.mid",
        "caf\\xe9~2.mid",
        "d\\xff/x.mid",
    ]


def test_a_corpus_folder_whose_own_path_is_not_utf8_is_refused(tmp_path: Path) -> None:
    folder = write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")), "x.mid")
    with pytest.raises(ValueError, match=r"caf\\udce9: .*not UTF-8; rename or link it"):
        plan(f"folder:{folder}", tmp_path)


def test_loops_of_links_are_entered_once(tmp_path: Path) -> None:
    write(tmp_path, "a/x.mid", "z/y.mid")
    (tmp_path / "self").symlink_to(".")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "again").symlink_to("z")
    (tmp_path / "me.mid").symlink_to("me.mid")
    listing = list_files(str(tmp_path))
    assert sorted(listing.files) == ["a/x.mid", "z/y.mid"]
    assert listing.unlisted == {"me.mid": "this file cannot be looked at: Too many levels of symbolic links"}


def test_links_to_folders_elsewhere_are_followed_but_only_once(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "one/x.mid", "two.mid")
    (tmp_path / "elsewhere" / "one" / "back").symlink_to(tmp_path / "midi")
    folder = write(tmp_path / "midi", "own.mid")
    (folder / "second").symlink_to("../elsewhere")
    (folder / "first").symlink_to("../elsewhere/one")
    assert names(folder) == ["first/x.mid", "own.mid", "second/two.mid"]


def test_a_closed_folder_is_quarantined_and_the_others_are_read(tmp_path: Path, closed: set[str]) -> None:
    folder = write(tmp_path / "midi", "x.mid", "private/y.mid", "private/z.mid")
    everything = plan(f"folder:{folder}", tmp_path)
    closed.add("private")
    made = plan(f"folder:{folder}", tmp_path)
    assert [piece.piece for piece in made.pieces] == ["x.mid"]
    assert made.quarantined == {"private/": "no permission to look into this folder"}
    assert made.uri != everything.uri
    assert made.listing != everything.listing


def test_a_listed_piece_in_a_closed_folder_says_so(tmp_path: Path, closed: set[str]) -> None:
    write(tmp_path / "POP909", "001/001.mid", "001/beat_audio.txt", "002/002.mid", "notes/x.mid")
    closed |= {"002", "notes"}
    made = plan("pop909", tmp_path, corpora_root=str(tmp_path))
    assert made.quarantined == {}, "the pieces are counted, and no folder beside them"
    assert made.reason("002/002.mid", "file not found") == "002/: no permission to look into this folder"
    assert made.reason("003/003.mid", "file not found") == "file not found"
    assert made.reason("001/001.mid", "no notes") == "no notes"


def test_nothing_but_closed_folders(tmp_path: Path, closed: set[str]) -> None:
    folder = write(tmp_path / "midi", "private/y.mid")
    closed.add("private")
    with pytest.raises(ValueError, match=r"could not be looked at: 1, first private/: no permission"):
        plan(f"folder:{folder}", tmp_path)
    closed.add("midi")
    with pytest.raises(PermissionError, match=r"corpus folder:.*/midi: no permission to list .*; grant it"):
        plan(f"folder:{folder}", tmp_path)


def test_the_listing_s_digest_knows_times_and_the_address_does_not(tmp_path: Path) -> None:
    folder = write(tmp_path / "midi", "x.mid", "y.mid")
    first = plan(f"folder:{folder}", tmp_path)
    os.utime(folder / "x.mid", ns=(0, 1))
    second = plan(f"folder:{folder}", tmp_path)
    assert second.uri == first.uri
    assert second.listing != first.listing
    files = dict(reversed(first.files.items()))
    assert listing_digest(files, {}) == first.listing


def test_a_question_mark_in_a_local_path_is_no_query(tmp_path: Path) -> None:
    folder = write(tmp_path / "what? now", "x.mid")
    made = plan(f"folder:{folder}", tmp_path, storage_root=str(tmp_path / "root?a=b"))
    assert made.uri.startswith(f"{tmp_path}/root?a=b/tokens/folder-what-now-")
    other = write(tmp_path / "what", "x.mid")
    assert plan(f"folder:{other}", tmp_path).uri.rpartition("/")[2] != made.uri.rpartition("/")[2]


def test_an_object_store_is_listed_by_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import fs

    write(tmp_path / "bucket", "a/x.mid", "y.mid")
    monkeypatch.setattr(storage, "filesystem", lambda uri: (fs.LocalFileSystem(), f"{tmp_path}/bucket"))
    listing = list_files(f"s3://{tmp_path.name}")
    assert sorted(listing.files) == ["a/x.mid", "y.mid"]
    assert listing.files["y.mid"].mtime_ns == (tmp_path / "bucket" / "y.mid").stat().st_mtime_ns
    with open_file(f"s3://{tmp_path.name}", "a/x.mid") as stream:
        assert stream.read() == MIDI
