"""Corpora -> token stores with Ray Data: same content everywhere, whole or not at all, no bad file fatal."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from midibert_ray.corpora import catalogue as corpora
from midibert_ray.corpora.labels import list_pieces
from midibert_ray.corpora.tokens import tokenize_piece
from midibert_ray.data.format import FORMAT_VERSION, MANIFEST, SCHEMA, SHARDS, read_manifest, shard_name
from midibert_ray.data.segments import Segments
from midibert_ray.data.store import TokenStore
from midibert_ray.music.protocol import CLEAN, PAPER
from midibert_ray.music.vocabulary import vocabulary_digest
from midibert_ray.storage.lease import _machine
from midibert_ray.tokenizing import commit
from midibert_ray.tokenizing import plan as plans
from midibert_ray.tokenizing.shard import FILE_LIMIT, make_shard
from midibert_ray.tokenizing.tokenize import Summary, plan_corpus, tokenize_corpora, tokenize_plans
from tests.tokenizing.malformed import BAD, GOOD, STRANGE, mutated

ROOT = Path(__file__).parents[2]
SAMPLE = Path(corpora.corpus("sample").location(""))
HEAVY = {"00/large.mid": 3, "03/huge.mid": 9, "09/last.mid": 3, "09/late.mid": 3}
"""Names of files, and MiB."""
ORDERS = (CLEAN, CLEAN.switch(), CLEAN.switch(order="track"), CLEAN.switch(order="pitch"))


def settings(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return {"corpora_root": "", "storage_root": str(tmp_path / "root"), "protocol": CLEAN, **changes}


def stores(tmp_path: Path) -> list[str]:
    folder = tmp_path / "root" / "tokens"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def midi_folder(folder: Path, copies: int = 3, seed: int = 0) -> Path:
    """The sample's files, some times over, written in an order of its own; no two have the same bytes."""
    files = [(f"{copy:02d}/{midi.name}", midi) for copy in range(copies) for midi in sorted(SAMPLE.glob("*/*.mid"))]
    random.Random(seed).shuffle(files)
    for name, midi in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        own = b"copy\0\0\0\1" + bytes([int(name[:2])])  # a chunk that readers pass over: the same notes, other bytes
        (folder / name).write_bytes(midi.read_bytes() + (own if copies > 1 else b""))
    return folder


# ------------------------------------------------------------------------------------ plans, without Ray


def test_a_plan_names_its_store_by_what_goes_into_it(tmp_path: Path) -> None:
    folder = midi_folder(tmp_path / "My Söngs!", copies=1)
    name = f"folder:{folder}"
    plan = plan_corpus(name, **settings(tmp_path))
    assert plan.uri.startswith(f"{tmp_path}/root/tokens/folder-My-S")
    assert len(plan.pieces) == 32
    assert plan.uri == plan_corpus(name, **settings(tmp_path)).uri
    others = [
        plan_corpus(name, **settings(tmp_path, **change)).uri for change in ({"protocol": PAPER}, {"segment": 64})
    ]
    (folder / "one more.mid").write_bytes(b"")
    others.append(plan_corpus(name, **settings(tmp_path)).uri)
    assert len({plan.uri, *others}) == 4


def test_only_an_order_of_its_own_is_part_of_a_stores_name(tmp_path: Path) -> None:
    plans = [plan_corpus("sample", **settings(tmp_path, protocol=order)) for order in ORDERS]
    assert plans[0].uri == plans[1].uri
    assert len({plan.uri for plan in plans}) == 3
    assert "order" not in plans[1].settings
    assert plans[2].settings == {**plans[0].settings, "order": "track"}
    with pytest.raises(ValueError, match="order='pich' is not possible; allowed: corpus, track, pitch"):
        CLEAN.switch(order="pich")


def test_the_order_reaches_the_tokens(tmp_path: Path) -> None:
    digests = []
    for order in ORDERS:
        plan = plan_corpus("sample", **settings(tmp_path, protocol=order))
        Path(plan.uri).mkdir(parents=True, exist_ok=True)
        shards = plan.shards("a-1-00000000")
        digests.append([report["digest"] for shard in shards for report in make_shard(shard)])
    default, own, track, pitch = digests
    assert default == own == pitch
    assert not set(own) & set(track)


def test_tasks_are_cut_by_pieces_and_by_bytes(tmp_path: Path) -> None:
    folder = midi_folder(tmp_path / "midi", copies=5)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*.mid")}
    for name, mib in HEAVY.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with (folder / name).open("wb") as file:
            file.write(name.encode())  # no two are the same
            file.truncate(mib << 20)
    shards = plan_corpus(f"folder:{folder}", **settings(tmp_path)).shards("a-1-00000000")
    pieces = [[piece.piece for piece in shard.pieces] for shard in shards]
    assert [piece for shard in pieces for piece in shard] == sorted([*sizes, *HEAVY])
    assert all(len(shard) <= 64 for shard in pieces)
    assert max(sum(file.size for file in shard.files.values()) for shard in shards if len(shard.pieces) > 1) <= 4 << 20
    assert ["03/huge.mid"] in pieces, "one that is larger than the bound is alone"
    assert len(pieces) <= 3 + 2 * len(HEAVY), "small pieces stay together"
    assert [shard.name for shard in shards] == [f"part-{n:05d}.a-1-00000000.parquet" for n in range(len(shards))]


def test_content_does_not_depend_on_how_tasks_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for most in (1 << 30, 20_000):
        monkeypatch.setattr(plans, "_MOST_BYTES", most)
        plan = plan_corpus("sample", **settings(tmp_path))
        Path(plan.uri).mkdir(parents=True, exist_ok=True)
        shards = plan.shards("a-1-00000000")
        digests.append([report["digest"] for shard in shards for report in make_shard(shard)])
    assert len(shards) > 5 and digests[0] == digests[1]


def test_folders_are_found_from_wherever_a_worker_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    midi_folder(tmp_path / "midi", copies=1)
    absolute = plan_corpus(f"folder:{tmp_path}/midi", **settings(tmp_path))
    monkeypatch.chdir(tmp_path)
    relative = plan_corpus("folder:midi/", **settings(Path()))
    assert relative.corpus == absolute.corpus
    assert relative.uri == absolute.uri


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("pop910", ValueError, "did you mean 'pop909'"),
        (
            "pop909",
            FileNotFoundError,
            r"no folder .*POP909; set corpora\.root \(now '.*'\) to where POP909 lies",
        ),
        ("folder:{tmp}/nowhere", FileNotFoundError, "no folder .*/nowhere$"),
        (
            "folder:{tmp}/empty",
            ValueError,
            r"its MIDI files \(\*\.mid or \*\.midi or \*\.mxl or \*\.musicxml\) are not below .*/empty",
        ),
        ("emopia", ValueError, r"its MIDI files \(.*\.mid and others\) are not below .*EMOPIA_1\.0/midis"),
    ],
)
def test_absent_corpora(tmp_path: Path, name: str, error: type[Exception], message: str) -> None:
    (tmp_path / "empty" / "x.mid").mkdir(parents=True)
    (tmp_path / "EMOPIA_1.0" / "midis").mkdir(parents=True)
    with pytest.raises(error, match=message):
        plan_corpus(name.format(tmp=tmp_path), **settings(tmp_path, corpora_root=str(tmp_path)))
    assert not stores(tmp_path)


# ------------------------------------------------------------------------------------ commits, without Ray


def test_what_dead_jobs_left_goes_and_others_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = f"{_machine()}-{dead.pid}-01234567"
    killed, forgotten, elsewhere, copied = (tmp_path / "tokens" / f"{name}-0" for name in ("a", "b", "c", "d"))
    for store, mark in (
        (killed, here),
        (forgotten, "other-01234567-7-01234567"),
        (elsewhere, "other-01234567-8-01234567"),
    ):
        store.mkdir(parents=True)
        for name in (f"lease.{mark}", shard_name(0, mark), f".{shard_name(1, mark)}.0123abcd"):
            (store / name).write_bytes(b"x")
    (killed / "part-00000.named.parquet").write_bytes(b"xx")
    manifest = {"settings": {"format_version": FORMAT_VERSION}, SHARDS: {"part-00000.named.parquet": 2}}
    (killed / MANIFEST).write_text(json.dumps(manifest))
    long_ago = time.time() - 2 * 86400
    for path in forgotten.iterdir():
        os.utime(path, (long_ago, long_ago))
    copied.mkdir()
    (copied / shard_name(0, here)).write_bytes(b"a store that is copied to here: no job claims it")
    (tmp_path / "tokens" / ".DS_Store").mkdir()
    commit.remove_leftovers(str(tmp_path / "tokens"))
    assert sorted(path.name for path in copied.parent.iterdir()) == [".DS_Store", "a-0", "c-0", "d-0"]
    assert sorted(path.name for path in killed.iterdir()) == [MANIFEST, "part-00000.named.parquet"]
    assert len(list(elsewhere.iterdir())) == 3 and len(list(copied.iterdir())) == 1


# ------------------------------------------------------------------------------------ with Ray


@pytest.mark.ray
def test_the_sample_becomes_a_store(ray_cluster: object, tmp_path: Path) -> None:
    (summary,) = tokenize_corpora(["sample"], **settings(tmp_path))
    corpus = corpora.corpus("sample")
    expected = {}
    for piece in list_pieces(corpus, {}, CLEAN):
        contents = [(SAMPLE / file).read_bytes() for file in piece.files]
        expected[piece.piece] = piece, tokenize_piece(corpus, piece, contents, CLEAN)
    table = pq.read_table(Path(summary.uri, *summary.manifest[SHARDS]))
    assert table.schema.equals(SCHEMA)
    assert table["piece"].to_pylist() == sorted(expected)
    for row in table.to_pylist():
        piece, tokens = expected[row["piece"]]
        assert (row["split"], row["label"]) == (piece.split, piece.label)
        assert row["tokens"] == tokens.tokens.ravel().tolist()
        for name in ("onset", "velocity", "part"):
            assert row[name] == getattr(tokens, name).tolist()
    manifest = summary.manifest
    notes = [len(tokens) for _, tokens in expected.values()]
    assert manifest["counts"] == {
        "files": 32,
        "pieces": 32,
        "notes": sum(notes),
        "segments": sum(-(-n // 512) for n in notes),
    }
    assert {"corpus", "protocol", "settings", "vocabulary_digest", "dropped_notes", "quarantined"} < set(manifest)
    assert manifest["vocabulary_digest"] == vocabulary_digest()
    assert len(Segments([TokenStore.open(summary.uri, str(tmp_path / "cache"))])) == manifest["counts"]["segments"]


@pytest.mark.ray
def test_the_second_run_does_nothing(ray_cluster: object, tmp_path: Path) -> None:
    (first,) = tokenize_corpora(["sample"], **settings(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in Path(first.uri).iterdir()}
    (second,) = tokenize_corpora(["sample"], **settings(tmp_path))
    assert (first.found, second.found) == (False, True)
    assert second.manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in Path(first.uri).iterdir()} == before
    assert "found" in Summary.table([second])


_JOB = """
import sys, ray
from midibert_ray.music.protocol import CLEAN
from midibert_ray.tokenizing.tokenize import tokenize_corpora
ray.init(num_cpus=int(sys.argv[1]), address=sys.argv[2] or None, include_dashboard=False)
[summary] = tokenize_corpora([sys.argv[3]], corpora_root="", storage_root=sys.argv[4], protocol=CLEAN)
print(summary.manifest["digest"])
"""


def job(folder: Path, storage_root: Path, *, cpus: int = 1, address: str = "") -> "subprocess.Popen[str]":
    """A driver of its own, with a cluster of its own unless it is given an address."""
    script = _JOB if not address else _JOB.replace("num_cpus=int(sys.argv[1]), ", "")
    command = [sys.executable, "-c", script, str(cpus), address, f"folder:{folder}", str(storage_root)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.ray
def test_the_content_does_not_depend_on_workers_or_listing(ray_cluster: object, tmp_path: Path) -> None:
    """Four CPUs and one, and a folder whose files were written in another order."""
    folders = [midi_folder(tmp_path / f"midi{seed}", copies=5, seed=seed) for seed in (0, 1)]
    many = tokenize_corpora([f"folder:{folder}" for folder in folders], **settings(tmp_path))
    alone = job(folders[0], tmp_path / "alone")
    assert alone.wait(timeout=120) == 0
    assert alone.stdout is not None
    digests = [many[0].manifest["digest"], many[1].manifest["digest"], alone.stdout.read().split()[-1]]
    assert len(set(digests)) == 1
    [other] = (tmp_path / "alone" / "tokens").iterdir()
    contents = [
        [(address / name).read_bytes() for name in read_manifest(str(address))[SHARDS]]
        for address in (Path(many[0].uri), other)
    ]
    assert len(contents[0]) == 3 and contents[0] == contents[1]


@pytest.mark.ray
def test_a_killed_driver_leaves_nothing_that_looks_like_a_store(ray_cluster: Any, tmp_path: Path) -> None:
    import ray

    folder = midi_folder(tmp_path / "midi", copies=40)
    driver = job(folder, tmp_path / "root", address=ray.get_runtime_context().gcs_address)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "root").glob("tokens/*/part-*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert stores(tmp_path), "killed before it had begun"
    assert not list((tmp_path / "root").glob(f"tokens/*/{MANIFEST}"))
    with pytest.raises(FileNotFoundError, match="no token store"):
        TokenStore.open(plan_corpus(f"folder:{folder}", **settings(tmp_path)).uri, str(tmp_path / "cache"))
    (summary,) = tokenize_corpora([f"folder:{folder}"], **settings(tmp_path))
    assert summary.manifest["counts"]["pieces"] == 40 * 32
    assert stores(tmp_path) == [Path(summary.uri).name]
    names = {path.name for path in Path(summary.uri).iterdir()}
    assert names == {MANIFEST, *summary.manifest[SHARDS]}, "the dead job's shards are gone"


@pytest.mark.ray
def test_a_folder_of_malformed_files(ray_cluster: object, tmp_path: Path) -> None:
    """2,000 mutated files and the hand-made ones: a piece or a reason each, and the good ones are pieces."""
    folder = tmp_path / "midi"
    originals = [path.read_bytes() for path in sorted(SAMPLE.glob("*/*.mid"))]
    files = {f"mutated/{i:04d}.mid": data for i, data in enumerate(mutated(originals, 2000, seed=2))}
    files |= GOOD | BAD | STRANGE
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "a folder.mid").mkdir()
    with (folder / "huge.mid").open("wb") as huge:
        huge.truncate(FILE_LIMIT + 1)
    (summary,) = tokenize_corpora([f"folder:{folder}"], **settings(tmp_path))
    counts = summary.manifest["counts"]
    reasons = {entry["file"]: entry["reason"] for entry in summary.manifest["quarantined"]}
    same = {entry["file"]: entry["of"] for entry in summary.manifest["duplicates"]}
    assert counts["files"] == len(files) + 1 == counts["pieces"] + len(reasons) + len(same)
    assert all(file > first and files[file] == files[first] for file, first in same.items())
    assert {"with space/deep/er.midi", "Ünïcødé 音楽 🎹.mid"} <= set(same)
    assert not set(GOOD) & set(reasons)
    assert set(BAD) <= set(reasons) | set(same)
    assert all(reasons.values())
    assert reasons["huge.mid"] == "too large: 32.0 MiB, the limit is 32 MiB"
    store = TokenStore.open(summary.uri, str(tmp_path / "cache"))
    assert {store.piece_id(i) for i in range(len(store))} == set(files) - set(reasons) - set(same)
    assert (np.asarray(store.tokens).max(axis=0) < (2, 16, 86, 64)).all()


@pytest.mark.ray
def test_a_listed_piece_whose_file_is_absent_is_quarantined(ray_cluster: object, tmp_path: Path) -> None:
    shutil.copytree(SAMPLE / "042", tmp_path / "POP909" / "042")
    (summary,) = tokenize_corpora(["pop909"], **settings(tmp_path, corpora_root=str(tmp_path)))
    assert summary.manifest["counts"]["pieces"] == 1
    assert len(summary.manifest["quarantined"]) == 864
    assert {entry["reason"].partition(" (")[0] for entry in summary.manifest["quarantined"]} == {"file not found"}


@pytest.mark.ray
def test_no_usable_piece_no_store(ray_cluster: object, tmp_path: Path) -> None:
    for name, data in BAD.items():
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / name).write_bytes(data)
    with pytest.raises(ValueError, match=r"corpus folder:.*/bad: none of its files can be used: .*\(\d+ files\)"):
        tokenize_corpora([f"folder:{tmp_path}/bad", "sample"], **settings(tmp_path))
    assert [name.split("-")[0] for name in stores(tmp_path)] == ["sample"]


@pytest.mark.ray
def test_a_folder_that_a_node_does_not_see_is_named(ray_cluster: object, tmp_path: Path) -> None:
    folder = midi_folder(tmp_path / "midi", copies=1)
    plan = plan_corpus(f"folder:{folder}", **settings(tmp_path))
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError) as error:
        tokenize_plans([plan])
    assert str(error.value) == f"{folder} is not on this node; corpora.root must be visible from every node"
    assert stores(tmp_path) == []
