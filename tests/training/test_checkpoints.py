"""Which checkpoints are whole, which one a run goes on from, and what a full disk leaves behind."""

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from pyarrow import fs

from midibert_ray import storage
from midibert_ray.model.midibert import MidiBertModel
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.training import engine as engines
from midibert_ray.training.build import new_model
from midibert_ray.training.checkpoints import (
    BOOKS,
    CheckpointError,
    UnfinishedError,
    drop_broken_books,
    explain_full_disk,
    newest_sound,
    remove_unfinished,
    store,
    unused_name,
    verify,
    weights,
    write_digests,
)
from midibert_ray.training.engine import Progress
from midibert_ray.training.runs import finish, finished
from tests.s3 import S3
from tests.training.test_engine import step as one_step

LOCAL = fs.LocalFileSystem()


def written(folder: Path, workers: int = 2, run: str | None = None, score: float = 0.0) -> Path:
    """A small checkpoint, written by some workers of a run, that of its folder unless told, and merged."""
    run = folder.parent.name if run is None else run
    for rank in range(workers):
        part = folder.with_name(f".{folder.name}-{rank}")
        (part / "engine").mkdir(parents=True)
        (part / "engine" / f"shard{rank}.pt").write_bytes(bytes(range(100)) * (rank + 1))
        if rank == 0:
            progress = {
                "step": int(folder.name.split("_")[1][:9]),
                "reports": [{"valid/score": score, "valid/loss": -score}],
            }
            (part / "progress.json").write_text(json.dumps(progress))
        write_digests(part, rank, workers, run)
        for path in sorted(part.rglob("*.*")):
            target = folder / path.relative_to(part)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    return folder


def truncate(folder: Path) -> None:
    shard = folder / "engine" / "shard1.pt"
    shard.write_bytes(shard.read_bytes()[:-1])


def flip(folder: Path) -> None:
    (folder / "engine" / "shard1.pt").write_bytes(b"\0" + bytes(range(1, 100)) + bytes(range(99)) + b"\1")


def rewrite(name: str, content: str | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_text(content)

    return change


DAMAGES = {
    "truncated": (truncate, r"shard1\.pt has 199 bytes instead of 200"),
    "changed": (flip, r"content of .*shard1\.pt is not what was written"),
    "missing": (rewrite("engine/shard1.pt", None), r"shard1\.pt is missing"),
    "worker missing": (rewrite("digests-00001.json", None), r"no digests-00001\.json, so worker 1 did not finish"),
    "no digests": (rewrite("digests-00000.json", None), r"no digests-00000\.json, so worker 0 did not finish"),
    "half digests": (rewrite("digests-00001.json", '{"rank": 1, "wor'), r"digests-00001\.json cannot be read"),
    "other digests": (rewrite("digests-00001.json", "[]"), r"digests-00001\.json cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_noticed(tmp_path: Path, damage: str) -> None:
    folder = written(tmp_path / "step_000000010")
    verify(LOCAL, str(folder))
    action, message = DAMAGES[damage]
    action(folder)
    with pytest.raises(CheckpointError, match=message):
        verify(LOCAL, str(folder))


def test_digests_name_every_file_with_its_size(tmp_path: Path) -> None:
    folder = written(tmp_path / "step_000000010")
    first, second = (json.loads((folder / f"digests-0000{rank}.json").read_text()) for rank in range(2))
    assert (first["world"], first["files"].keys()) == (2, {"engine/shard0.pt", "progress.json"})
    assert second["files"]["engine/shard1.pt"]["size"] == 200
    assert re.fullmatch("[0-9a-f]{64}", second["files"]["engine/shard1.pt"]["sha256"])


def test_files_of_more_workers_before_do_no_harm(tmp_path: Path) -> None:
    folder = written(tmp_path / "step_000000010", workers=1)
    (folder / "digests-00001.json").write_text("{}")
    (folder / "engine" / "shard1.pt").write_text("of an earlier save")
    verify(LOCAL, str(folder))


def test_the_newest_sound_checkpoint_is_chosen_on_any_filesystem(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        written(tmp_path / "run" / f"step_{step:09d}")
    bucket = fs.SubTreeFileSystem(str(tmp_path), LOCAL)
    assert newest_sound(bucket, "run").name == "step_000000040"
    (tmp_path / "run" / "step_000000040" / "digests-00001.json").unlink()
    truncate(tmp_path / "run" / "step_000000030")
    flip(tmp_path / "run" / "step_000000020")
    choice = newest_sound(bucket, "run")
    assert choice.name == "step_000000010"
    assert list(choice.problems) == ["step_000000040", "step_000000030", "step_000000020"]
    assert "worker 1 did not finish" in choice.problems["step_000000040"]
    assert "199 bytes instead of 200" in choice.problems["step_000000030"]
    truncate(tmp_path / "run" / "step_000000010")
    nothing = newest_sound(bucket, "run")
    assert nothing.name is None
    assert len(nothing.problems) == 4


def test_the_checkpoint_of_another_run_is_passed_over(tmp_path: Path) -> None:
    run, key = tmp_path / "pretrain-a", "pretrain-a"
    written(run / "step_000000010", run=key)
    written(run / "step_000000020", run=key)
    written(run / "step_000000030", run="pretrain-b")
    written(run / "step_000000040", run="")  # as by version 0.1.0: it may be anybody's
    choice = newest_sound(LOCAL, str(run))
    assert choice.name == "step_000000020"
    assert list(choice.problems) == ["step_000000040", "step_000000030"]
    assert "is a checkpoint that names no run and not of pretrain-a; remove" in choice.problems["step_000000040"]
    assert "is a checkpoint of the run pretrain-b and not of pretrain-a; remove" in choice.problems["step_000000030"]
    truncate(run / "step_000000020")
    assert newest_sound(LOCAL, str(run)).name == "step_000000010"
    verify(LOCAL, str(run / "step_000000030"))  # whoever names a folder himself, for an export say, may have it


def test_the_result_of_a_run_is_its_own_best_sound_checkpoint(tmp_path: Path, tiny: Config) -> None:
    config, key = replace(tiny, {"storage.root": str(tmp_path)}), "pretrain-a"
    run = tmp_path / "runs" / key
    for step, score in ((10, 1.0), (20, 2.0), (30, 2.0), (40, 3.0)):
        written(run / f"step_{step:09d}", run=key, score=score)
    written(run / "step_000000050", run="pretrain-b", score=9.0)
    truncate(run / "step_000000040")
    assert finished(config, key) is None
    done = finish(config, key)
    assert (done.step, done.metrics) == (20, {"valid/score": 2.0, "valid/loss": -2.0})
    assert done.checkpoint == str(run / "step_000000020")
    assert finished(config, key) == done
    (run / "step_000000020").rename(tmp_path / "kept")
    (run / "step_000000050").rename(run / "step_000000020")
    with pytest.raises(CheckpointError, match=r"step_000000020 was written by the run pretrain-b, not by pretrain-a"):
        finished(config, key)
    for folder in run.glob("step_*"):
        (folder / "engine" / "shard1.pt").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint of pretrain-a is whole \(.*shard1.pt is missing"):
        finish(config, key)


def test_what_was_never_finished_is_removed_unless_ray_train_counts_on_it(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        written(tmp_path / f"step_{step:09d}")
    for step, name in ((20, "digests-00001.json"), (30, "engine/shard1.pt"), (50, "digests-00000.json")):
        (tmp_path / f"step_{step:09d}" / name).unlink()
    truncate(tmp_path / "step_000000040")  # somebody may want to look at it
    (tmp_path / BOOKS).write_text('{"checkpoint_results": [{"checkpoint_dir_name": "step_000000050"}]}')
    (tmp_path / "other").mkdir()
    assert remove_unfinished(str(tmp_path), "step_") == ["step_000000030", "step_000000020"]
    left = ["other", "step_000000010", "step_000000040", "step_000000050"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir() and path.name[0] != ".") == left
    assert remove_unfinished(str(tmp_path / "not" / "there"), "step_") == []


def test_the_content_of_some_files_may_be_left_uncompared(tmp_path: Path) -> None:
    folder = written(tmp_path / "step_000000010")
    flip(folder)
    verify(LOCAL, str(folder), only=("progress.json",))
    with pytest.raises(CheckpointError, match="is not what was written"):
        verify(LOCAL, str(folder), only=("engine/shard1.pt",))
    truncate(folder)
    with pytest.raises(CheckpointError, match="bytes instead of"):
        verify(LOCAL, str(folder), only=())


@pytest.mark.parametrize("where", ["disk", pytest.param("bucket", marks=pytest.mark.slow)])
def test_parts_are_stored_with_their_digests_last(tmp_path: Path, where: str, request: pytest.FixtureRequest) -> None:
    address = str(tmp_path / "run" / "step_000000010")
    if where == "bucket":
        s3: S3 = request.getfixturevalue("s3")
        address = s3.address(f"{s3.bucket()}/run/step_000000010")
    for rank in range(2):
        part = tmp_path / f"part-{rank}"
        (part / "engine").mkdir(parents=True)
        (part / "engine" / f"shard{rank}.pt").write_bytes(bytes(100))
        (part / "zzz.json").write_text("{}")
        write_digests(part, rank, 2)
        with pytest.raises(UnfinishedError):
            verify(*storage.filesystem(address))
        store(part, address, rank)
    verify(*storage.filesystem(address))


@pytest.mark.slow
def test_a_part_that_s3_refuses_is_an_error_and_no_checkpoint(tmp_path: Path, s3: S3) -> None:
    """Ray Train's own copy says nothing, and goes on."""
    run = s3.address(f"{s3.bucket()}/run")
    for step in (10, 20):
        part = tmp_path / str(step)
        part.mkdir()
        for name in ("a.pt", "b.pt", "c.pt"):
            (part / name).write_bytes(bytes(100 * step))
        write_digests(part, 0, 1, "run")
        s3.hook = lambda request: request.startswith("PUT") and request.partition("?")[0].endswith("20/b.pt")
        with pytest.raises(OSError, match="ACCESS_DENIED") if step == 20 else nullcontext():
            store(part, storage.join(run, f"step_{step}"), 0)
        s3.hook = None
    system, path = storage.filesystem(run)
    choice = newest_sound(system, path)
    assert choice.name == "step_10" and "worker 0 did not finish" in choice.problems["step_20"]
    assert remove_unfinished(run, "step_") == ["step_20"]
    assert storage.names(run) == ["step_10"]


@pytest.mark.slow
def test_checkpoints_in_a_bucket_are_chosen_by_their_digests(tmp_path: Path, s3: S3) -> None:
    run = s3.address(f"{s3.bucket()}/run")
    system, path = storage.filesystem(run)
    for step in (10, 20, 30):
        folder = written(tmp_path / "run" / f"step_{step:09d}")
        names = [file.relative_to(folder).as_posix() for file in folder.rglob("*.*")]
        storage.upload(folder, storage.join(run, folder.name), names)
    shard = storage.join(run, "step_000000030", "engine/shard1.pt")
    storage.write_bytes(shard, storage.read_bytes(shard)[:-1])
    system.delete_file(f"{path}/step_000000020/engine/shard0.pt")
    choice = newest_sound(system, path)
    assert choice.name == "step_000000010"
    assert "199 bytes instead of 200" in choice.problems["step_000000030"]
    assert "shard0.pt is missing" in choice.problems["step_000000020"]
    assert drop_broken_books(run) is None
    storage.write_bytes(storage.join(run, BOOKS), b'{"checkpoint_resul')
    assert "it was cut off" in str(drop_broken_books(run))
    assert not storage.exists(storage.join(run, BOOKS))


@pytest.mark.parametrize("where", ["disk", pytest.param("bucket", marks=pytest.mark.slow)])
def test_weights_are_those_that_were_written(
    tmp_path: Path, tiny: Config, where: str, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "step_000000010"
    new_model(tiny).save_pretrained(folder)
    (folder / "engine").mkdir()
    (folder / "engine" / "large.pt").write_bytes(bytes(100))
    write_digests(folder, 0, 1)
    address = str(folder)
    if where == "bucket":
        s3: S3 = request.getfixturevalue("s3")
        address = s3.address(f"{s3.bucket()}/step_000000010")
        store(folder, address, 0)
    with weights(address) as found:
        assert MidiBertModel.from_pretrained(found).config.hidden_size == tiny.model.hidden
        assert (found == folder) == (where == "disk")
    if where == "bucket":
        assert not any("large.pt" in request for request in s3.requests if request.startswith("GET"))
    place = storage.join(address, "model.safetensors")
    content = storage.read_bytes(place)
    storage.write_bytes(place, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model\.safetensors.* is not what was written"), weights(address):
        pass


@pytest.mark.parametrize(
    ("content", "flaw"),
    [
        ("", "it was cut off"),
        ('{"checkpoint_results": [{"checkpoint_d', "it was cut off"),
        ("[]", "it was cut off"),
        ('{"checkpoint_results": [{"checkpoint_dir_name": "step_000000020"}]}', "step_000000020 that it names is gone"),
        ('{"checkpoint_results": [{"checkpoint_dir_name": "step_000000010"}]}', None),
        (None, None),
    ],
)
def test_books_that_ray_train_would_refuse_are_removed(tmp_path: Path, content: str | None, flaw: str | None) -> None:
    written(tmp_path / "step_000000010")
    books = tmp_path / BOOKS
    if content is not None:
        books.write_text(content)
    said = drop_broken_books(str(tmp_path))
    if flaw:
        assert said and flaw in said
        assert not books.exists()
    else:
        assert said is None
        assert books.exists() == (content is not None)


def test_the_name_of_a_broken_checkpoint_is_not_used_again(tmp_path: Path) -> None:
    broken = frozenset({"step_000000030", "step_000000030-again"})
    assert unused_name(20, broken) == "step_000000020"
    name = unused_name(30, broken)
    assert name not in broken
    for folder in (*broken, "step_000000020"):
        written(tmp_path / folder)
        truncate(tmp_path / folder) if folder in broken else None
    written(tmp_path / name)
    assert newest_sound(LOCAL, str(tmp_path)).name == name
    truncate(tmp_path / name)
    assert newest_sound(LOCAL, str(tmp_path)).name == "step_000000020"


def test_only_a_full_disk_is_explained(tmp_path: Path) -> None:
    with pytest.raises(KeyError), explain_full_disk(str(tmp_path), 1, ""):
        raise KeyError
    for folder in (str(tmp_path / "not" / "there"), "s3://bucket/runs"):
        with pytest.raises(CheckpointError, match=r"\(No space left on device\)$"), explain_full_disk(folder, 1, ""):
            raise OSError(28, "No space left on device", "/a/file/whose/path/is/as/long/as/the/folder's")


@pytest.mark.slow
def test_a_full_disk_is_named_and_leaves_the_checkpoint_before_intact(
    process_group: None, tiny: Config, small_disk: Path
) -> None:
    engine = engines.build(new_model(tiny), tiny, steps=20, device=torch.device("cpu"))
    first, second = small_disk / "step_000000010", small_disk / "step_000000020"
    first.mkdir()
    second.mkdir()
    one_step(engine)
    engines.save(engine, Progress(step=10), first, run=small_disk.name)
    size = sum(path.stat().st_size for path in first.rglob("*.*"))
    assert engines.checkpoint_bytes(engine) == pytest.approx(size, rel=0.1)
    with pytest.raises(CheckpointError) as caught:
        engines.save(engine, Progress(step=20), second, run=small_disk.name)
    message = str(caught.value)
    assert f"the disk of {second} is too full" in message
    assert re.search(r"it takes about \d\.\d MiB and \d\.\d MiB were free; free some space there", message)
    assert "\n" not in message
    choice = newest_sound(LOCAL, str(small_disk))
    assert (choice.name, list(choice.problems)) == (first.name, [second.name])
    again = engines.build(new_model(tiny), tiny, steps=20, device=torch.device("cpu"))
    assert engines.load(again, first).step == 10
