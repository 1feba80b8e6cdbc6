"""When a store is found and when it is made again; shards are made in this process, without Ray."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq
import pytest

from midibert_ray.data import node_copy
from midibert_ray.data.format import FORMAT_VERSION, MANIFEST, SHARDS, read_manifest, shard_name, shard_names
from midibert_ray.data.store import TokenStore
from midibert_ray.music.protocol import CLEAN
from midibert_ray.tokenizing import commit, listing, plan, shard, tokenize
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

    for module in (shard, plan):
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


def only_shard(summary: Summary) -> Path:
    (name,) = shard_names(summary.address, summary.manifest)
    return Path(summary.address, name)


def reasons(summary: Summary) -> dict[str, str]:
    return {entry["file"]: entry["reason"] for entry in summary.manifest["quarantined"]}


def whole(summary: Summary, others: int = 0) -> None:
    """Only the store is left, beside so many files of a job at work, and it is what its manifest says."""
    address = Path(summary.address)
    assert [path.name for path in address.parent.iterdir()] == [address.name]
    left = {path.name for path in address.iterdir()} - {MANIFEST, *shard_names(summary.address, summary.manifest)}
    assert len(left) == others
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
    rows = pq.read_table(only_shard(second)).to_pylist()
    assert rows[0]["tokens"] == rows[1]["tokens"]
    whole(second)
    assert run(folder).found


def test_a_file_with_another_time_and_the_same_bytes_leaves_the_store_as_it_is(folder: Path, tasks: list[int]) -> None:
    first = run(folder)
    inode = only_shard(first).stat().st_ino
    os.utime(folder / "a.mid", (2000, 2000))
    second = run(folder)
    assert len(tasks) == 2
    assert only_shard(second).stat().st_ino == inode
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
    table = pq.read_table(only_shard(summary))
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

    def late(shards: Sequence[shard.Shard]) -> Iterator[list[dict[str, Any]]]:
        for reports in inner(shards):
            start = 100.0 if reports[0]["corpus"] == "sample" else 500.0
            yield [report | {"began": start, "ended": start + 7} for report in reports]

    monkeypatch.setattr(tokenize, "_stream", late)
    made = tokenize.tokenize_corpora(
        ["sample", f"folder:{folder}"], corpora_root="", storage_root=str(folder.parent / "root"), protocol=CLEAN
    )
    assert [summary.manifest["seconds"] for summary in made] == [7.0, 7.0]


def published(address: Path, shard: bytes, **about: Any) -> str:
    """Publish a store of one shard as a job does; gives the name of the shard."""
    mark = commit.begin(str(address))
    (address / shard_name(0, mark)).write_bytes(shard)
    manifest = {"settings": {"format_version": FORMAT_VERSION}, **about}
    commit.publish(str(address), manifest, [shard_name(0, mark)])
    commit.end(str(address), mark)
    return shard_name(0, mark)


def test_a_store_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step of the replacement, the manifest names shards that are there."""
    address = tmp_path / "tokens" / "a-0"
    published(address, b"1", job=1)
    seen: list[int] = []

    def looking(step: Callable[..., None]) -> Callable[..., None]:
        def look(uri: str, *arguments: Any) -> None:
            for act in (lambda: None, lambda: step(uri, *arguments)):
                act()
                manifest = read_manifest(str(address))
                (name,) = shard_names(str(address), manifest)
                assert (address / name).read_bytes() == str(manifest["job"]).encode()
                seen.append(manifest["job"])

        return look

    for step in ("write_bytes", "remove"):
        monkeypatch.setattr(commit.storage, step, looking(getattr(commit.storage, step)))
    name = published(address, b"2", job=2)
    assert set(seen) == {1, 2} and seen == sorted(seen), "first the old one, then the new one"
    assert sorted(path.name for path in address.iterdir()) == [MANIFEST, name]
    assert [path.name for path in address.parent.iterdir()] == ["a-0"]


def test_a_store_from_before_there_were_marks_is_replaced(folder: Path, tmp_path: Path) -> None:
    first = run(folder)
    only_shard(first).rename(Path(first.address, "part-00000.parquet"))
    manifest = {key: value for key, value in first.manifest.items() if key != SHARDS}
    Path(first.address, MANIFEST).write_text(json.dumps(manifest))
    assert run(folder).found
    assert len(TokenStore.open(first.address, str(tmp_path / "cache"))) == 2
    (folder / "a.mid").write_bytes(HIGHER)
    whole(run(folder))


def test_two_jobs_that_publish_one_store_leave_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second job publishes between the moments in which the first looks for a manifest and writes its own."""
    publish = commit.publish

    def late(*arguments: Any) -> None:
        monkeypatch.setattr(commit, "publish", publish)
        whole(run(folder), others=2)
        publish(*arguments)

    monkeypatch.setattr(commit, "publish", late)
    whole(run(folder))


def test_a_job_that_fails_leaves_the_store_that_stands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(folder)
    (folder / "a.mid").write_bytes(HIGHER)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="disk"):
        patched.setattr(commit, "publish", lambda *arguments: (_ for _ in ()).throw(OSError("disk")))
        run(folder)
    assert read_manifest(first.address) == first.manifest
    whole(first)


def test_a_job_that_fails_leaves_no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "publish", lambda *arguments: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        run(folder)
    assert list((folder.parent / "root" / "tokens").iterdir()) == []


def test_a_reader_whose_store_is_replaced_meanwhile_gets_the_new_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = run(folder)
    (folder / "a.mid").write_bytes(HIGHER)
    build = node_copy._build

    def slow(*arguments: Any) -> None:
        monkeypatch.setattr(node_copy, "_build", build)
        run(folder)
        build(*arguments)

    monkeypatch.setattr(node_copy, "_build", slow)
    store = TokenStore.open(first.address, str(tmp_path / "cache"))
    assert store.manifest["digest"] != first.manifest["digest"]
    assert store.tokens[0].tolist() == store.tokens[1].tolist()


def test_a_store_that_has_lost_a_shard_says_so(folder: Path, tmp_path: Path) -> None:
    summary = run(folder)
    only_shard(summary).unlink()
    with pytest.raises(
        ValueError, match=r"is damaged: part-00000\..*\.parquet is missing; delete it and tokenize again"
    ):
        TokenStore.open(summary.address, str(tmp_path / "cache"))
