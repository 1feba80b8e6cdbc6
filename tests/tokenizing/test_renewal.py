"""When a store is found and when it is made again; parts are made in this process, without Ray."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq
import pytest

from midibert_ray.data import layout
from midibert_ray.data.store import TokenStore
from midibert_ray.music.protocol import CLEAN
from midibert_ray.tokenizing import commit as staging
from midibert_ray.tokenizing import listing, plan, tokenize
from midibert_ray.tokenizing import shard as part
from midibert_ray.tokenizing.tokenize import Summary
from tests.tokenizing.malformed import BAD, GOOD

MIDI = GOOD["upper.MID"]
HIGHER = MIDI.replace(b"\x3c", b"\x40")
"""Another pitch, the same size."""


pytestmark = pytest.mark.usefixtures("tasks")


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> dict[str, OSError]:
    """Files that cannot be opened, with what is raised; tests may run as root, who may do everything."""
    files: dict[str, OSError] = {}

    def guarded(location: str, path: str) -> BinaryIO:
        if path in files:
            raise files[path]
        return listing.open_file(location, path)

    for module in (part, plan):
        monkeypatch.setattr(module, "open_file", guarded)
    return files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "midi").mkdir()
    for name, data in {"a.mid": MIDI, "b.mid": HIGHER, "bad.mid": BAD["no notes.mid"]}.items():
        (tmp_path / "midi" / name).write_bytes(data)
        os.utime(tmp_path / "midi" / name, (1000, 1000))
    return tmp_path / "midi"


def run(folder: Path, root: str | None = None) -> Summary:
    place = root or str(folder.parent / "root")
    return tokenize.tokenize_corpus(f"folder:{folder}", corpora_root="", storage_root=place, protocol=CLEAN)


def reasons(summary: Summary) -> dict[str, str]:
    return {entry["file"]: entry["reason"] for entry in summary.manifest["quarantined"]}


def whole(summary: Summary) -> None:
    """Only the store is left, and it is what its manifest says."""
    address = Path(summary.address)
    assert [path.name for path in address.parent.iterdir()] == [address.name]
    assert sorted(path.name for path in address.iterdir()) == [layout.MANIFEST, layout.part_name(0)]
    store = TokenStore.open(summary.address, str(address.parents[1].with_name("cache")))
    counts = summary.manifest["counts"]
    assert len(store) == counts["pieces"]
    assert counts["files"] == counts["pieces"] + len(summary.manifest["quarantined"])


def test_an_unchanged_folder_is_found_without_a_task(folder: Path, tasks: list[int]) -> None:
    first = run(folder)
    before = {path: path.stat().st_mtime_ns for path in Path(first.address).iterdir()}
    second = run(folder)
    assert (first.found, second.found, tasks) == (False, True, [0])
    assert second.manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in Path(first.address).iterdir()} == before
    whole(second)


def test_a_file_that_changed_but_not_in_size_is_read_again(folder: Path) -> None:
    first = run(folder)
    (folder / "a.mid").write_bytes(HIGHER)
    second = run(folder)
    assert second.address == first.address
    assert not second.found
    assert second.manifest["digest"] != first.manifest["digest"]
    rows = pq.read_table(f"{second.address}/{layout.part_name(0)}").to_pylist()
    assert rows[0]["tokens"] == rows[1]["tokens"]
    whole(second)
    assert run(folder).found


def test_a_file_with_another_time_and_the_same_bytes_leaves_the_store_as_it_is(folder: Path, tasks: list[int]) -> None:
    first = run(folder)
    inode = Path(first.address, layout.part_name(0)).stat().st_ino
    os.utime(folder / "a.mid", (2000, 2000))
    second = run(folder)
    assert len(tasks) == 2
    assert Path(second.address, layout.part_name(0)).stat().st_ino == inode
    assert second.manifest == first.manifest | {"checked": second.manifest["checked"]}
    os.utime(folder / "a.mid", (1000, 1000))
    assert run(folder).found, "copies of a corpus take turns"
    whole(second)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied"), "no permission to read a.mid"),
        (FileNotFoundError(2, "No such file"), "file not found (a.mid)"),
        (OSError(5, "Input/output error"), "cannot read a.mid: Input/output error"),
    ],
)
def test_a_file_that_could_not_be_read_is_tried_again(
    folder: Path, tasks: list[int], forbidden: dict[str, OSError], error: OSError, reason: str
) -> None:
    forbidden["a.mid"] = error
    first = run(folder)
    assert reasons(first) == {"a.mid": reason, "bad.mid": "no notes"}
    assert first.manifest["checked"]["unread"] == ["a.mid"]
    assert run(folder).found, "it still cannot be read"
    assert len(tasks) == 1
    forbidden.clear()
    second = run(folder)
    assert not second.found
    assert second.address == first.address
    assert reasons(second) == {"bad.mid": "no notes"}
    whole(second)
    assert run(folder).found


def test_a_reason_that_changes_alone_reaches_the_manifest(folder: Path, forbidden: dict[str, OSError]) -> None:
    forbidden["bad.mid"] = PermissionError(13, "Permission denied")
    first = run(folder)
    forbidden.clear()
    second = run(folder)
    assert second.manifest["digest"] == first.manifest["digest"]
    assert reasons(second) == {"bad.mid": "no notes"}
    whole(second)


def test_names_that_are_not_utf8_become_pieces_or_are_quarantined(folder: Path) -> None:
    for name, data in {b"caf\xe9.mid": MIDI, b"bad\xe9.mid": BAD["no notes.mid"], b"caf\xe9.txt": b"text"}.items():
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(data)
    summary = run(folder)
    table = pq.read_table(f"{summary.address}/{layout.part_name(0)}")
    assert table["piece"].to_pylist() == ["a.mid", "b.mid", "caf\\xe9.mid"]
    assert reasons(summary) == {"bad.mid": "no notes", "bad\\xe9.mid": "no notes"}
    assert "caf\\xe9" not in Summary.table([summary])
    whole(summary)


def test_folders_that_cannot_be_listed_count_as_quarantined(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = listing.list_files(str(folder))
    closed = listing.Listing(files=found.files, unlisted={"private/": "no permission to look into this folder"})
    monkeypatch.setattr(plan, "list_files", lambda location: closed)
    summary = run(folder)
    assert reasons(summary)["private/"] == "no permission to look into this folder"
    assert summary.manifest["counts"]["files"] == 4
    whole(summary)
    assert run(folder).found


def test_a_question_mark_in_the_storage_root_is_a_letter(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root? a=b"
    summary = run(folder, str(root))
    assert Path(summary.address).parent == root / "tokens"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["midi", "root? a=b"]
    assert len(TokenStore.open(summary.address, str(tmp_path / "cache"))) == 2
    assert run(folder, str(root)).found


def test_seconds_are_those_of_the_corpus(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tokenize._stream

    def late(parts: Sequence[part.Part]) -> Iterator[list[dict[str, Any]]]:
        for reports in inner(parts):
            start = 100.0 if reports[0]["corpus"] == "sample" else 500.0
            yield [report | {"began": start, "ended": start + 7} for report in reports]

    monkeypatch.setattr(tokenize, "_stream", late)
    made = tokenize.tokenize_corpora(
        ["sample", f"folder:{folder}"], corpora_root="", storage_root=str(folder.parent / "root"), protocol=CLEAN
    )
    assert [summary.manifest["seconds"] for summary in made] == [7.0, 7.0]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_store_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool) -> None:
    if not swaps:
        monkeypatch.setattr(staging.ctypes, "CDLL", lambda name: object())
    address = tmp_path / "tokens" / "a-0"
    for job in (1, 2):
        folder = staging.create(str(address))
        Path(folder, f"part-{job}.parquet").write_bytes(b"")
        (staging.publish if job == 1 else staging.replace)(folder, str(address), {"job": job})
    assert sorted(path.name for path in address.iterdir()) == [layout.MANIFEST, "part-2.parquet"]
    assert json.loads((address / layout.MANIFEST).read_text()) == {"job": 2}
    assert [path.name for path in address.parent.iterdir()] == ["a-0"]


def test_a_reader_whose_store_is_replaced_meanwhile_gets_the_new_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = run(folder)
    (folder / "a.mid").write_bytes(HIGHER)
    build = layout._build

    def slow(*arguments: Any) -> None:
        monkeypatch.setattr(layout, "_build", build)
        run(folder)
        build(*arguments)

    monkeypatch.setattr(layout, "_build", slow)
    store = TokenStore.open(first.address, str(tmp_path / "cache"))
    assert store.manifest["digest"] != first.manifest["digest"]
    assert store.tokens[0].tolist() == store.tokens[1].tolist()
