"""When a store is found and when it is made again; shards are made in this process, without Ray."""

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq
import pytest

from midibert_ray import pipeline, storage
from midibert_ray.cli.dry_run import describe_plan
from midibert_ray.data import node_copy
from midibert_ray.data.format import FORMAT_VERSION, MANIFEST, SHARDS, read_manifest, shard_name
from midibert_ray.data.store import TokenStore
from midibert_ray.music.protocol import CLEAN
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.presets import preset
from midibert_ray.storage import lease
from midibert_ray.tokenizing import commit, listing, plan, shard, tokenize
from midibert_ray.tokenizing.tokenize import Summary
from tests.tokenizing.malformed import BAD, GOOD

MIDI = GOOD["upper.MID"]
HIGHER, HIGHEST = MIDI.replace(b"\x3c", b"\x40"), MIDI.replace(b"\x3c", b"\x43")
"""Other pitches, the same size."""


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
    for name, data in {"a.mid": MIDI, "b.mid": HIGHEST, "bad.mid": BAD["no notes.mid"]}.items():
        (tmp_path / "midi" / name).write_bytes(data)
        os.utime(tmp_path / "midi" / name, (1000, 1000))
    return tmp_path / "midi"


def run(folder: Path, root: str | None = None) -> Summary:
    place = root or str(folder.parent / "root")
    return tokenize.tokenize_corpora([f"folder:{folder}"], corpora_root="", storage_root=place, protocol=CLEAN)[0]


def only_shard(summary: Summary) -> Path:
    (name,) = summary.manifest[SHARDS]
    return Path(summary.uri, name)


def reasons(summary: Summary) -> dict[str, str]:
    return {entry["file"]: entry["reason"] for entry in summary.manifest["quarantined"]}


def whole(summary: Summary) -> None:
    """Only the store is left, and it is what its manifest says."""
    address = Path(summary.uri)
    assert [path.name for path in address.parent.iterdir()] == [address.name]
    assert {path.name for path in address.iterdir()} == {MANIFEST, *summary.manifest[SHARDS]}
    store = TokenStore.open(summary.uri, str(address.parents[1].with_name("cache")))
    counts = summary.manifest["counts"]
    assert len(store) == counts["pieces"]
    assert (
        counts["files"] == sum(len(summary.manifest[key]) for key in ("quarantined", "duplicates")) + counts["pieces"]
    )


def test_an_unchanged_folder_is_found_without_a_task(folder: Path, tasks: list[int]) -> None:
    first = run(folder)
    before = {path: path.stat().st_mtime_ns for path in Path(first.uri).iterdir()}
    second = run(folder)
    assert (first.found, second.found, tasks) == (False, True, [0])
    assert second.manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in Path(first.uri).iterdir()} == before
    whole(second)


def test_a_file_that_changed_but_not_in_size_is_read_again(folder: Path) -> None:
    first = run(folder)
    (folder / "a.mid").write_bytes(HIGHER)
    second = run(folder)
    assert second.uri == first.uri
    assert not second.found
    assert second.manifest["digest"] != first.manifest["digest"]
    rows = pq.read_table(only_shard(second)).to_pylist()
    assert [row["tokens"][2] for row in rows] == [0x40 - 22, 0x43 - 22]
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
    assert second.uri == first.uri
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
    for name, data in {
        b"caf\xe9.mid": HIGHER,
        b"bad\xe9.mid": BAD["no notes.mid"] + b" ",
        b"caf\xe9.txt": b"text",
    }.items():
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
    assert Path(summary.uri).parent == root / "tokens"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["midi", "root? a=b"]
    assert len(TokenStore.open(summary.uri, str(tmp_path / "cache"))) == 2
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
    with commit.work(str(address), "test") as held:
        (address / shard_name(0, held.mark)).write_bytes(shard)
        manifest = {"settings": {"format_version": FORMAT_VERSION}, **about}
        commit.publish(held, manifest, [shard_name(0, held.mark)])
    return shard_name(0, held.mark)


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
                (name,) = manifest[SHARDS]
                assert (address / name).read_bytes() == str(manifest["job"]).encode()
                seen.append(manifest["job"])

        return look

    for step in ("write_bytes", "remove"):
        monkeypatch.setattr(commit.storage, step, looking(getattr(commit.storage, step)))
    name = published(address, b"2", job=2)
    assert set(seen) == {1, 2} and seen == sorted(seen), "first the old one, then the new one"
    assert sorted(path.name for path in address.iterdir()) == [MANIFEST, name]
    assert [path.name for path in address.parent.iterdir()] == ["a-0"]


def test_a_job_that_was_taken_for_gone_publishes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops between the moments in which it looks for a manifest and writes its own; another takes over."""
    publish = commit.publish
    made: list[Summary] = []

    def late(held: lease.Lease, *arguments: Any) -> None:
        monkeypatch.setattr(commit, "publish", publish)
        storage.remove(held.claim)
        made.append(run(folder))
        publish(held, *arguments)

    monkeypatch.setattr(commit, "publish", late)
    with pytest.raises(lease.LeaseLostError, match="another process has taken over"):
        run(folder)
    whole(made[0])
    again = run(folder)
    assert again.found and again.manifest == made[0].manifest


def test_who_comes_second_waits_and_finds(
    folder: Path, tasks: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same command twice at the same time: one store, made once, and one line that says so."""
    monkeypatch.setattr(lease, "LOOK_S", 0.01)
    caplog.set_level("INFO")
    summaries: dict[str, Summary] = {}
    inner, entered = tokenize._stream, threading.Event()

    def stream(shards: Sequence[shard.Shard]) -> Iterator[list[dict[str, Any]]]:
        entered.set()
        while "waiting for its end" not in caplog.text:
            time.sleep(0.01)
        yield from inner(shards)

    monkeypatch.setattr(tokenize, "_stream", stream)
    first = threading.Thread(target=lambda: summaries.update(first=run(folder)))
    first.start()
    assert entered.wait(60)
    summaries["second"] = run(folder)
    first.join()
    assert (summaries["first"].found, summaries["second"].found, tasks) == (False, True, [0])
    assert summaries["first"].manifest == summaries["second"].manifest
    whole(summaries["second"])
    assert caplog.text.count("waiting for its end") == 1


@pytest.mark.parametrize("content", [b"", b'{"corpus": "x', b"{}"])
def test_a_store_whose_manifest_is_cut_is_made_again(
    folder: Path, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    first = run(folder)
    Path(first.uri, MANIFEST).write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json is (empty|damaged)|has format None"):
        TokenStore.open(first.uri, str(tmp_path / "cache"))
    second = run(folder)
    assert not second.found and second.manifest["digest"] == first.manifest["digest"]
    whole(second)
    assert "manifest.json is" in caplog.text or content == b"{}"


@pytest.mark.parametrize("cut", [lambda shard: shard.unlink(), lambda shard: os.truncate(shard, 100)])
def test_a_store_whose_shard_is_cut_is_made_again(folder: Path, cut: Callable[[Path], None]) -> None:
    first = run(folder)
    cut(only_shard(first))
    second = run(folder)
    assert not second.found and second.manifest["digest"] == first.manifest["digest"]
    whole(second)


def test_files_with_the_same_bytes_count_once(folder: Path) -> None:
    for name in ("z.mid", "deep/a.mid", "Z.mid"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(MIDI)
    (folder / "worse.mid").write_bytes(BAD["no notes.mid"])
    summary = run(folder)
    assert summary.manifest["duplicates"] == [
        {"file": "a.mid", "of": "Z.mid"},
        {"file": "deep/a.mid", "of": "Z.mid"},
        {"file": "worse.mid", "of": "bad.mid"},
        {"file": "z.mid", "of": "Z.mid"},
    ]
    assert pq.read_table(only_shard(summary))["piece"].to_pylist() == ["Z.mid", "b.mid"]
    assert summary.manifest["counts"] == {"files": 7, "pieces": 2, "notes": 2, "segments": 2}
    assert "4 files of the same bytes as another, named in manifest.json, left out" in Summary.table([summary])
    whole(summary)
    assert run(folder).found
    (folder / "z.mid").write_bytes(HIGHER)
    assert run(folder).manifest["counts"]["pieces"] == 3


def test_a_duplicate_that_cannot_be_read_is_none_for_now(
    folder: Path, monkeypatch: pytest.MonkeyPatch, forbidden: dict[str, OSError]
) -> None:
    (folder / "z.mid").write_bytes(MIDI)
    read = listing.open_file
    monkeypatch.setattr(
        listing, "open_file", lambda uri, path: shard.open_file(uri, path) if path in forbidden else read(uri, path)
    )
    forbidden["a.mid"] = PermissionError(13, "Permission denied")
    first = run(folder)
    assert first.manifest["duplicates"] == [] and reasons(first)["a.mid"] == "no permission to read a.mid"
    forbidden.clear()
    assert run(folder).manifest["duplicates"] == [{"file": "z.mid", "of": "a.mid"}]


def test_files_of_macos_are_no_music(folder: Path) -> None:
    for name in ("._a.mid", "__MACOSX/a.mid", "__MACOSX/deep/._b.mid"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0\5\x16\7")
    assert run(folder).manifest["counts"]["files"] == 3


def test_remarks_reach_the_manifest_and_the_table(folder: Path) -> None:
    (folder / "late.mid").write_bytes(performance())
    summary = run(folder)
    assert summary.manifest["remarks"] == {"pieces off the grid": 1}
    told = ": 1 piece off the grid: share of onsets further than a 32nd triplet from the nearest sixteenth 0.25 or more"
    assert told in Summary.table([summary])
    standing = Summary.standing(summary.uri)
    assert standing and standing == dataclasses.replace(summary, found=True)
    assert list(standing.notes())[1].endswith("; by chance 1/3")
    assert Summary.standing(summary.uri + "x") is None


def test_a_dry_run_tells_the_remarks_on_tokens_that_are_there(folder: Path) -> None:
    (folder / "late.mid").write_bytes(performance())
    changes = {"storage.root": str(folder.parent / "root"), "corpora.names": (f"folder:{folder}",)}
    plan = pipeline.plan(replace(preset("debug"), changes))
    assert "off the grid" not in describe_plan(plan, "tokenize")
    pipeline.tokenize(plan)
    assert f"folder:{folder}: 1 piece off the grid: share of onsets" in describe_plan(plan, "tokenize")


def performance() -> bytes:
    """Eighty notes 0.29 beats apart: they keep to no sixteenths."""
    track = b"".join(b"\x00\x90\x3c\x40\x3c\x80\x3c\x00" + b"\x4f\xff\x01\x00" for _ in range(80)) + b"\x00\xff\x2f\x00"
    return MIDI[:14] + b"MTrk" + len(track).to_bytes(4, "big") + track


def test_the_sample_says_what_is_normal(tmp_path: Path) -> None:
    made = tokenize.tokenize_corpora(["sample"], corpora_root="", storage_root=str(tmp_path), protocol=CLEAN)[0]
    (line,) = [line for line in made.notes() if "zero duration" in line]
    assert line.endswith(
        f"dropped {made.manifest['dropped_notes']['zero duration']:,} notes: zero duration (normal for POP909)"
    )


def test_a_job_that_fails_leaves_the_store_that_stands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(folder)
    (folder / "a.mid").write_bytes(HIGHER)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="disk"):
        patched.setattr(commit, "publish", lambda *arguments: (_ for _ in ()).throw(OSError("disk")))
        run(folder)
    assert read_manifest(first.uri) == first.manifest
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
    store = TokenStore.open(first.uri, str(tmp_path / "cache"))
    assert store.manifest["digest"] != first.manifest["digest"]
    assert store.tokens[:, 2].tolist() == [0x40 - 22, 0x43 - 22]


def test_a_store_that_has_lost_a_shard_says_so(folder: Path, tmp_path: Path) -> None:
    summary = run(folder)
    only_shard(summary).unlink()
    with pytest.raises(
        ValueError, match=r"is damaged: part-00000\..*\.parquet is missing; delete it and tokenize again"
    ):
        TokenStore.open(summary.uri, str(tmp_path / "cache"))
