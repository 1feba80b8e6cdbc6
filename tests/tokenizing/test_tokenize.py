"""Corpora -> token stores with Ray Data: same content everywhere, whole or not at all, no bad file fatal."""

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
from midibert_ray.data.format import FORMAT_VERSION, MANIFEST, SCHEMA, read_manifest, shard_name, shard_names
from midibert_ray.data.segments import Segments
from midibert_ray.data.store import TokenStore
from midibert_ray.music.protocol import CLEAN, PAPER
from midibert_ray.music.vocabulary import vocabulary_digest
from midibert_ray.tokenizing import commit
from midibert_ray.tokenizing import plan as plans
from midibert_ray.tokenizing.shard import FILE_LIMIT, make_shard
from midibert_ray.tokenizing.tokenize import Summary, plan_corpus, tokenize_corpora, tokenize_corpus, tokenize_plans
from tests.tokenizing.malformed import BAD, GOOD, STRANGE, mutated

ROOT = Path(__file__).parents[2]
SAMPLE = Path(corpora.corpus("sample").location(""))
HEAVY = {"0/large.mid": 3, "3/huge.mid": 9, "9/last.mid": 3, "9/late.mid": 3}
"""Names of files, and MiB."""
ORDERS = (CLEAN, CLEAN.switch(), CLEAN.switch(order="track"), CLEAN.switch(order="pitch"))


def settings(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return {"corpora_root": "", "storage_root": str(tmp_path / "root"), "protocol": CLEAN, **changes}


def stores(tmp_path: Path) -> list[str]:
    folder = tmp_path / "root" / "tokens"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def midi_folder(folder: Path, copies: int = 3, seed: int = 0) -> Path:
    """The sample's files, some times over, written in an order of its own."""
    files = [(f"{copy}/{midi.name}", midi) for copy in range(copies) for midi in sorted(SAMPLE.glob("*/*.mid"))]
    random.Random(seed).shuffle(files)
    for name, midi in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(midi, folder / name)
    return folder


# ------------------------------------------------------------------------------------ plans, without Ray


def test_a_plan_names_its_store_by_what_goes_into_it(tmp_path: Path) -> None:
    folder = midi_folder(tmp_path / "My Söngs!", copies=1)
    name = f"folder:{folder}"
    plan = plan_corpus(name, **settings(tmp_path))
    assert plan.address.startswith(f"{tmp_path}/root/tokens/folder-My-S")
    assert len(plan.pieces) == 32
    assert plan.address == plan_corpus(name, **settings(tmp_path)).address
    others = [
        plan_corpus(name, **settings(tmp_path, **change)).address for change in ({"protocol": PAPER}, {"segment": 64})
    ]
    (folder / "one more.mid").write_bytes(b"")
    others.append(plan_corpus(name, **settings(tmp_path)).address)
    assert len({plan.address, *others}) == 4


def test_only_an_order_of_its_own_is_part_of_a_stores_name(tmp_path: Path) -> None:
    plans = [plan_corpus("sample", **settings(tmp_path, protocol=order)) for order in ORDERS]
    assert plans[0].address == plans[1].address
    assert len({plan.address for plan in plans}) == 3
    assert "order" not in plans[1].settings
    assert plans[2].settings == {**plans[0].settings, "order": "track"}
    with pytest.raises(ValueError, match="order='pich' is not possible; allowed: corpus, track, pitch"):
        CLEAN.switch(order="pich")


def test_the_order_reaches_the_tokens(tmp_path: Path) -> None:
    digests = []
    for order in ORDERS:
        plan = plan_corpus("sample", **settings(tmp_path, protocol=order))
        shards = plan.shards(commit.begin(plan.address))
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
            file.truncate(mib << 20)
    shards = plan_corpus(f"folder:{folder}", **settings(tmp_path)).shards("a-1-00000000")
    pieces = [[piece.piece for piece in shard.pieces] for shard in shards]
    assert [piece for shard in pieces for piece in shard] == sorted([*sizes, *HEAVY])
    assert all(len(shard) <= 64 for shard in pieces)
    assert max(sum(file.size for file in shard.files.values()) for shard in shards if len(shard.pieces) > 1) <= 4 << 20
    assert ["3/huge.mid"] in pieces, "one that is larger than the bound is alone"
    assert len(pieces) <= 3 + 2 * len(HEAVY), "small pieces stay together"
    assert [shard.name for shard in shards] == [f"part-{n:05d}.a-1-00000000.parquet" for n in range(len(shards))]


def test_content_does_not_depend_on_how_tasks_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for most in (1 << 30, 20_000):
        monkeypatch.setattr(plans, "_MOST_BYTES", most)
        plan = plan_corpus("sample", **settings(tmp_path))
        shards = plan.shards(commit.begin(plan.address))
        digests.append([report["digest"] for shard in shards for report in make_shard(shard)])
    assert len(shards) > 5 and digests[0] == digests[1]


def test_folders_are_found_from_wherever_a_worker_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    midi_folder(tmp_path / "midi", copies=1)
    absolute = plan_corpus(f"folder:{tmp_path}/midi", **settings(tmp_path))
    monkeypatch.chdir(tmp_path)
    relative = plan_corpus("folder:midi/", **settings(Path()))
    assert relative.corpus == absolute.corpus
    assert relative.address == absolute.address


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
        ("folder:{tmp}/empty", ValueError, r"its MIDI files \(\*\.mid or \*\.midi\) are not below .*/empty"),
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


def manifest_of(**about: Any) -> dict[str, Any]:
    return {"settings": {"format_version": FORMAT_VERSION}, **about}


def test_what_dead_jobs_left_goes_and_others_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    pop909, asap = tmp_path / "tokens" / "pop909-0123456789ab", tmp_path / "tokens" / "asap-0123456789ab"
    mine = commit.begin(str(pop909))
    host, _, random_part = mine.rsplit("-", 2)
    killed, elsewhere, forgotten = (
        f"{host}-{dead.pid}-{random_part}",
        f"other-7-{random_part}",
        f"other-8-{random_part}",
    )
    asap.mkdir()
    for store, mark in ((pop909, mine), (pop909, killed), (pop909, elsewhere), (asap, forgotten)):
        for name in (f"writing.{mark}", shard_name(0, mark), f".{shard_name(1, mark)}.0123abcd"):
            (store / name).write_bytes(b"")
    long_ago = time.time() - 2 * 86400
    for path in asap.iterdir():
        os.utime(path, (long_ago, long_ago))
    copying, foreign = tmp_path / "tokens" / "pop1k7-0123456789ab", tmp_path / "tokens" / ".DS_Store"
    for folder in (copying, foreign):
        folder.mkdir()
    (copying / shard_name(0, killed)).write_bytes(b"a store that is copied to here: no job announced it")
    commit.remove_leftovers(str(tmp_path / "tokens"))
    assert set((tmp_path / "tokens").iterdir()) == {pop909, copying, foreign}
    assert {commit._mark(path.name) for path in pop909.iterdir()} == {mine, elsewhere}
    assert len(list(pop909.iterdir())) == 6 and len(list(copying.iterdir())) == 1


def test_the_last_of_two_jobs_wins_and_rubbish_goes(tmp_path: Path) -> None:
    address = tmp_path / "tokens" / "pop909-0"
    address.mkdir(parents=True)
    (address / "part-00000.parquet").write_bytes(b"no manifest: no store")
    marks = [commit.begin(str(address)) for _ in range(2)]
    (address / f".{shard_name(0, marks[0])}.left").write_bytes(b"from a killed task")
    for mark in marks:
        (address / shard_name(0, mark)).write_bytes(mark.encode())
    for job, mark in enumerate(marks):
        commit.publish(str(address), manifest_of(job=job), [shard_name(0, mark)])
        if job == 1:
            commit.end(str(address), marks[0])
            commit.end(str(address), marks[1])
    assert {path.name for path in address.iterdir()} == {MANIFEST, shard_name(0, marks[1])}
    assert read_manifest(str(address))["job"] == 1
    assert [path.name for path in address.parent.iterdir()] == ["pop909-0"]


# ------------------------------------------------------------------------------------ with Ray


@pytest.mark.ray
def test_the_sample_becomes_a_store(ray_cluster: object, tmp_path: Path) -> None:
    summary = tokenize_corpus("sample", **settings(tmp_path))
    corpus = corpora.corpus("sample")
    expected = {}
    for piece in list_pieces(corpus, {}, CLEAN):
        contents = [(SAMPLE / file).read_bytes() for file in piece.files]
        expected[piece.piece] = piece, tokenize_piece(corpus, piece, contents, CLEAN)
    table = pq.read_table(Path(summary.address, *shard_names(summary.address, summary.manifest)))
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
    assert len(Segments([TokenStore.open(summary.address, str(tmp_path / "cache"))])) == manifest["counts"]["segments"]


@pytest.mark.ray
def test_the_second_run_does_nothing(ray_cluster: object, tmp_path: Path) -> None:
    first = tokenize_corpus("sample", **settings(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in Path(first.address).iterdir()}
    second = tokenize_corpus("sample", **settings(tmp_path))
    assert (first.found, second.found) == (False, True)
    assert second.manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in Path(first.address).iterdir()} == before
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
    many = [tokenize_corpus(f"folder:{folder}", **settings(tmp_path)) for folder in folders]
    alone = job(folders[0], tmp_path / "alone")
    assert alone.wait(timeout=120) == 0
    assert alone.stdout is not None
    digests = [many[0].manifest["digest"], many[1].manifest["digest"], alone.stdout.read().split()[-1]]
    assert len(set(digests)) == 1
    [other] = (tmp_path / "alone" / "tokens").iterdir()
    contents = [
        [(address / name).read_bytes() for name in shard_names(str(address), read_manifest(str(address)))]
        for address in (Path(many[0].address), other)
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
        TokenStore.open(plan_corpus(f"folder:{folder}", **settings(tmp_path)).address, str(tmp_path / "cache"))
    summary = tokenize_corpus(f"folder:{folder}", **settings(tmp_path))
    assert summary.manifest["counts"]["pieces"] == 40 * 32
    assert stores(tmp_path) == [Path(summary.address).name]
    names = {path.name for path in Path(summary.address).iterdir()}
    assert names == {MANIFEST, *shard_names(summary.address, summary.manifest)}, "the dead job's shards are gone"


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
    summary = tokenize_corpus(f"folder:{folder}", **settings(tmp_path))
    counts = summary.manifest["counts"]
    reasons = {entry["file"]: entry["reason"] for entry in summary.manifest["quarantined"]}
    assert counts["files"] == len(files) + 1 == counts["pieces"] + len(reasons)
    assert not set(GOOD) & set(reasons)
    assert set(BAD) <= set(reasons)
    assert all(reasons.values())
    assert reasons["huge.mid"] == "too large: 32.0 MiB, the limit is 32 MiB"
    store = TokenStore.open(summary.address, str(tmp_path / "cache"))
    assert {store.piece_id(i) for i in range(len(store))} == set(files) - set(reasons)
    assert (np.asarray(store.tokens).max(axis=0) < (2, 16, 86, 64)).all()


@pytest.mark.ray
def test_a_listed_piece_whose_file_is_absent_is_quarantined(ray_cluster: object, tmp_path: Path) -> None:
    shutil.copytree(SAMPLE / "042", tmp_path / "POP909" / "042")
    summary = tokenize_corpus("pop909", **settings(tmp_path, corpora_root=str(tmp_path)))
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
