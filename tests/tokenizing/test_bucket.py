"""Corpora and token stores on a real S3 server: the same content, whole or not at all, at every moment."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from midibert_ray import storage
from midibert_ray.corpora.catalogue import CORPORA
from midibert_ray.data.format import MANIFEST, SHARDS, read_manifest, shard_name
from midibert_ray.data.segments import Segments
from midibert_ray.data.store import TokenStore
from midibert_ray.music.protocol import CLEAN
from midibert_ray.storage.lease import LeaseLostError
from midibert_ray.tokenizing import commit, tokenize
from midibert_ray.tokenizing.listing import list_files, open_file
from midibert_ray.tokenizing.tokenize import Summary
from tests.s3 import S3
from tests.tokenizing.malformed import BAD, GOOD

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tasks")]

ROOT = Path(__file__).parents[2]
MIDI = GOOD["upper.MID"]
HIGHER, HIGHEST = MIDI.replace(b"\x3c", b"\x40"), MIDI.replace(b"\x3c", b"\x43")
FILES = {"a.mid": MIDI, "deep/b ü+1.mid": HIGHEST, "bad.mid": BAD["no notes.mid"], "notes.txt": b"text"}


@pytest.fixture
def bucket(s3: S3) -> str:
    """A bucket with some MIDI files in `My Music`."""
    name = s3.bucket()
    for file, content in FILES.items():
        storage.write_bytes(s3.address(f"{name}/My Music/{file}"), content)
    return name


@pytest.fixture
def run(s3: S3, bucket: str) -> Callable[..., Summary]:
    """Tokenizes that folder into the same bucket."""

    def start(folder: str = "My Music", root: str = "") -> Summary:
        return tokenize.tokenize_corpora(
            [f"folder:{s3.address(f'{bucket}/{folder}')}"],
            corpora_root="",
            storage_root=root or s3.address(f"{bucket}/out"),
            protocol=CLEAN,
        )[0]

    return start


@pytest.fixture
def change(s3: S3, bucket: str) -> Callable[[bytes], None]:
    """Gives a.mid another content, and another time: S3 tells times in seconds."""

    def write(content: bytes) -> None:
        system, path = storage.filesystem(s3.address(f"{bucket}/My Music/a.mid"))
        before = system.get_file_info(path).mtime
        while system.get_file_info(path).mtime == before:
            storage.write_bytes(s3.address(path), content)

    return write


def whole(s3: S3, bucket: str, summary: Summary, cache: Path) -> TokenStore:
    """Nothing but the store is left, and it is what its manifest says."""
    name = storage.basename(summary.uri)
    shards = read_manifest(summary.uri)[SHARDS]
    assert s3.keys(f"{bucket}/out") == sorted(f"tokens/{name}/{file}" for file in (MANIFEST, *shards))
    store = TokenStore.open(summary.uri, str(cache))
    assert len(store) == summary.manifest["counts"]["pieces"]
    return store


def test_a_folder_in_a_bucket_is_listed_and_read(s3: S3, bucket: str) -> None:
    place = s3.address(f"{bucket}/My Music")
    listing = list_files(place)
    assert {name: file.size for name, file in listing.files.items()} == {k: len(v) for k, v in FILES.items()}
    assert all(file.mtime_ns for file in listing.files.values())
    for name, content in FILES.items():
        with open_file(place, listing.files[name].path) as stream:
            assert stream.read() == content


def test_tokens_are_those_of_the_same_files_on_a_disk(
    s3: S3, bucket: str, run: Callable[..., Summary], tasks: list[int], tmp_path: Path
) -> None:
    for file, content in FILES.items():
        (tmp_path / "My Music" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "My Music" / file).write_bytes(content)
    (here,) = tokenize.tokenize_corpora(
        [f"folder:{tmp_path / 'My Music'}"], corpora_root="", storage_root=str(tmp_path / "out"), protocol=CLEAN
    )
    there = run()
    assert there.manifest["digest"] == here.manifest["digest"]
    assert there.manifest["counts"] == here.manifest["counts"]
    assert there.manifest["corpus"] == f"folder:s3://{bucket}/My Music"
    assert [entry["file"] for entry in there.manifest["quarantined"]] == ["bad.mid"]
    store = whole(s3, bucket, there, tmp_path / "cache")
    pieces = Segments([store], length=16).gather(np.arange(2))
    assert [store.piece_id(int(piece)) for piece in pieces.piece] == ["a.mid", "deep/b ü+1.mid"]

    before, puts = len(tasks), s3.count("PUT")
    again = run()
    assert again.found and again.manifest == there.manifest
    assert (len(tasks), s3.count("PUT")) == (before, puts), "the same command again writes nothing"


def test_publishers_folders_lie_below_a_prefix(s3: S3, tmp_path: Path) -> None:
    bucket, sample = s3.bucket(), Path(CORPORA["sample"].folder)
    for path in sorted(sample.rglob("*.*"))[:6]:
        place = s3.address(f"{bucket}/corpora/POP909/{path.relative_to(sample).as_posix()}")
        storage.write_bytes(place, path.read_bytes())
    (made,) = tokenize.tokenize_corpora(
        ["pop909"], corpora_root=s3.address(f"{bucket}/corpora"), storage_root=str(tmp_path), protocol=CLEAN
    )
    assert 0 < made.manifest["counts"]["pieces"] <= 6
    assert made.manifest["counts"]["files"] == 865
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*set corpora\.root"):
        tokenize.tokenize_corpora(
            ["pop909"], corpora_root=s3.address(f"{bucket}/none"), storage_root=str(tmp_path), protocol=CLEAN
        )


def test_a_store_is_replaced_in_one_step(
    s3: S3, bucket: str, run: Callable[..., Summary], change: Callable[[bytes], None], tmp_path: Path
) -> None:
    first = run()
    change(HIGHER)
    seen: list[int] = []

    def look(request: str) -> bool:
        """Open the store as it is at every step of the replacement."""
        if request.startswith(("PUT", "DELETE", "POST")) and "/out/tokens/" in request:
            s3.hook = None
            manifest = read_manifest(first.uri)
            system, path = storage.filesystem(first.uri)
            names = manifest[SHARDS]
            assert all(system.get_file_info(f"{path}/{name}").is_file for name in names)
            seen.append(int(manifest["digest"] != first.manifest["digest"]))
            s3.hook = look
        return False

    s3.hook = look
    second = run()
    s3.hook = None
    assert second.uri == first.uri and second.manifest["digest"] != first.manifest["digest"]
    assert set(seen) == {0, 1} and seen == sorted(seen), "first the old one, then the new one"
    whole(s3, bucket, second, tmp_path / "cache")


def test_a_reader_whose_store_is_replaced_meanwhile_gets_the_new_one(
    s3: S3, bucket: str, run: Callable[..., Summary], change: Callable[[bytes], None], tmp_path: Path
) -> None:
    first = run()
    change(HIGHER)
    (shard,) = first.manifest[SHARDS]

    def replace(request: str) -> bool:
        if request.startswith(("GET", "HEAD")) and request.endswith(shard):
            s3.hook = None
            run()
        return False

    s3.hook = replace
    store = TokenStore.open(first.uri, str(tmp_path / "cache"))
    assert s3.hook is None
    assert store.manifest["digest"] != first.manifest["digest"]
    assert store.tokens[:, 2].tolist() == [0x40 - 22, 0x43 - 22]


TOKENIZE = """
import sys
from midibert_ray.music.protocol import CLEAN
from midibert_ray.tokenizing import tokenize
from tests.stores import make_here
tokenize._stream = make_here
tokenize.tokenize_corpora([sys.argv[1]], corpora_root="", storage_root=sys.argv[2], protocol=CLEAN)
"""


def killed_at(s3: S3, bucket: str, start: str) -> None:
    """Tokenize in a process that is killed when it makes a request that starts like this."""

    def kill(request: str) -> bool:
        if request.startswith(start):
            child.kill()
            s3.hook = None
            return True
        return False

    s3.hook = kill
    words = [f"folder:{s3.address(f'{bucket}/My Music')}", s3.address(f"{bucket}/out")]
    child = subprocess.Popen([sys.executable, "-c", TOKENIZE, *words], cwd=ROOT)
    assert child.wait(timeout=120) == -9
    assert s3.hook is None


@pytest.mark.parametrize("step", ["its claim", "the first shard", "the manifest"])
def test_a_job_that_is_killed_leaves_no_store_and_the_next_cleans_up(
    s3: S3, bucket: str, run: Callable[..., Summary], tmp_path: Path, step: str
) -> None:
    address = run(root=s3.address(f"{bucket}/elsewhere")).uri.replace("elsewhere", "out")
    store = f"/{bucket}/out/tokens/{storage.basename(address)}"
    starts = {
        "its claim": f"PUT {store}/lease.",
        "the first shard": f"PUT {store}/part-00000.",
        "the manifest": f"PUT {store}/manifest.json",
    }
    killed_at(s3, bucket, starts[step])
    assert bool(s3.keys(f"{bucket}/out")) == (step != "its claim")
    with pytest.raises(FileNotFoundError, match="no token store at"):
        TokenStore.open(address, str(tmp_path / "cache"))
    again = run()
    assert again.uri == address and not again.found
    whole(s3, bucket, again, tmp_path / "cache")


def test_a_job_that_is_killed_after_a_replacement_leaves_the_new_store(
    s3: S3, bucket: str, run: Callable[..., Summary], change: Callable[[bytes], None], tmp_path: Path
) -> None:
    first = run()
    change(HIGHER)
    killed_at(s3, bucket, f"DELETE /{bucket}/out/tokens/{storage.basename(first.uri)}")
    shards = read_manifest(first.uri)[SHARDS]
    assert shards != first.manifest[SHARDS]
    assert len([key for key in s3.keys(f"{bucket}/out") if "part-" in key]) == 2, "the old one and the new one"
    again = run()
    assert again.found and again.manifest[SHARDS] == shards
    whole(s3, bucket, again, tmp_path / "cache")


def test_a_job_that_was_taken_for_gone_publishes_nothing(
    s3: S3, bucket: str, run: Callable[..., Summary], change: Callable[[bytes], None], tmp_path: Path
) -> None:
    first = run()
    with pytest.raises(LeaseLostError), commit.work(first.uri, "test") as held:
        storage.write_bytes(storage.join(first.uri, shard_name(0, held.mark)), b"x")
        storage.remove(held.claim)
        change(HIGHER)
        second = run()
        commit.publish(held, first.manifest, [shard_name(0, held.mark)])
    assert read_manifest(first.uri) == second.manifest
    whole(s3, bucket, run(), tmp_path / "cache")


def test_trouble_with_the_server_is_not_a_files_trouble(s3: S3, bucket: str, run: Callable[..., Summary]) -> None:
    s3.hook = lambda request: request.endswith("a.mid")
    with pytest.raises(OSError, match="ACCESS_DENIED"):
        run()
    s3.hook = None
    assert s3.keys(f"{bucket}/out") == []
    assert run().manifest["counts"]["pieces"] == 2
