"""`annotate` and `embed` over folders: outputs that mirror the input, done once, whole wherever a job is killed."""

import functools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import midibert_ray as mb
from midibert_ray import storage
from midibert_ray.cli.inference import parse_actors
from midibert_ray.cli.main import execute
from midibert_ray.cli.submission import describe
from midibert_ray.inference import job, sandboxed, worker
from midibert_ray.inference import plan as plans
from midibert_ray.inference.annotator import Annotator
from midibert_ray.inference.jams import to_jams
from midibert_ray.inference.outcome import Summary, finish
from midibert_ray.inference.plan import plan
from midibert_ray.inference.state import State
from midibert_ray.inference.worker import JobSpec, Worker
from midibert_ray.model.folder import ModelFileError
from midibert_ray.music.smf import MidiError
from midibert_ray.settings import shipped
from midibert_ray.settings.config import ConfigError
from midibert_ray.tokenizing.shard import UnusableError
from tests.inference.conftest import MakeModel
from tests.s3 import S3
from tests.tokenizing.malformed import BAD, STRANGE

ROOT = Path(__file__).parents[2]
ALL = ("midi", "csv", "parquet", "jams")
GOOD = ("a.mid", "deep/er/b.mid", "deep/Ünïcødé 音.MIDI")


@pytest.fixture
def music(tmp_path: Path, songs: list[Path]) -> Path:
    """Three songs and a file that is none."""
    folder = tmp_path / "music"
    for name, song in zip(GOOD, songs, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(song, folder / name)
    (folder / "bad.mid").write_bytes(BAD["text.mid"])
    (folder / "notes.txt").write_text("no music")
    return folder


class ReaderHere(sandboxed.Reader):
    """One without a child process, whose start takes a second."""

    def start(self) -> None:
        pass

    def _ask(self, message: Any, unpack: Any) -> Any:
        try:
            header, blobs = sandboxed.respond(*message)
        except MidiError as error:
            raise UnusableError(str(error)) from error
        return unpack({"reason": None, **header}, list(blobs))


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in this process, and each model opened once."""
    monkeypatch.setattr(worker, "Reader", ReaderHere)
    opened = functools.cache(mb.load)
    for module in (worker, plans):
        monkeypatch.setattr(module, "load", lambda uri, device="cpu": opened(uri, device))


def job_spec(model: Path | str, output: Path | str, kind: Any = "annotate", **changes: Any) -> JobSpec:
    more = {"formats": ("midi", "csv")} if kind == "annotate" else {}
    return JobSpec(kind=kind, model=str(model), output=str(output), **{**more, **changes})


def carry_out(spec: JobSpec, source: Path | str) -> Summary:
    """What `job.run` does, in this process."""
    made = plan(spec, str(source))
    State(made.spec.state).begin(made.settings)
    own = Worker(made.spec)
    try:
        for task in made.tasks():
            own.do(task)
    finally:
        own.close()
    return finish(made)


def contents(folder: Path, *, state: bool = False) -> dict[str, bytes]:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if state or not name.startswith("_job/")}


# ------------------------------------------------------------------------------------------- what is written


def test_outputs_mirror_the_input_and_hold_what_the_library_says(
    music: Path, note_folder: Path, note_model: Annotator, tmp_path: Path
) -> None:
    summary = carry_out(job_spec(note_folder, tmp_path / "out", formats=ALL), music)
    endings = ("", ".csv", ".parquet", ".jams")
    made = contents(tmp_path / "out")
    assert set(made) == {f"{name}{ending}" for name in GOOD for ending in endings} | {"files.csv", "manifest.json"}
    for name in GOOD:
        annotation = note_model.annotate(music / name)
        assert made[name] == annotation.to_bytes()
        written = pd.read_csv(tmp_path / "out" / f"{name}.csv", keep_default_na=False)
        assert written["label"].tolist() == annotation.notes["label"].tolist()
        np.testing.assert_allclose(written["onset_s"], annotation.notes["onset_s"], atol=1e-6)
        table = pq.read_table(tmp_path / "out" / f"{name}.parquet").to_pandas()
        assert table["file"].unique().tolist() == [name]
        np.testing.assert_array_equal(table["probability"], annotation.notes["probability"])
    files = pd.read_csv(tmp_path / "out/files.csv").set_index("file")
    assert files.loc["bad.mid", "reason"].startswith("not a MIDI file")
    assert files.loc[list(GOOD), "reason"].isna().all()
    assert (files[["melody", "bridge", "accompaniment"]].sum(axis=1) == files["notes"] - files["unseen"]).all()
    manifest = json.loads(made["manifest.json"])
    assert manifest["counts"] | {"notes": 0} == {"files": 4, "annotated": 3, "notes": 0, "unreadable": 1, "unseen": 0}
    assert "unreadable  bad.mid: not a MIDI file" in str(summary) and "next" in str(summary)


def test_jams_has_an_annotation_a_label(note_model: Annotator, sequence_model: Annotator, songs: list[Path]) -> None:
    """The fields that the schema of JAMS requires, and its namespaces note_midi and tag_open."""
    annotation = note_model.annotate(songs[0], abstain=0.335)
    text = json.loads(to_jams(annotation, title="a.mid", model="0123"))
    assert text["file_metadata"]["duration"] == pytest.approx(annotation.notes["offset_s"].max(), abs=1e-6)
    assert [part["sandbox"]["label"] for part in text["annotations"]] == ["melody", "bridge", "accompaniment"]
    counts = annotation.notes["label"].value_counts()
    for part in text["annotations"]:
        assert part["namespace"] == "note_midi"
        assert len(part["data"]) == counts.get(part["sandbox"]["label"], 0)
        assert all(set(row) == {"time", "duration", "value", "confidence"} for row in part["data"])
        assert all(0.335 <= row["confidence"] <= 1 and row["duration"] >= 0 for row in part["data"])
    piece = sequence_model.annotate(songs[0])
    (tag,) = json.loads(to_jams(piece, title="a.mid", model="0123"))["annotations"]
    assert (tag["namespace"], tag["data"][0]["value"]) == ("tag_open", piece.label)


@pytest.mark.usefixtures("no_child")
@pytest.mark.parametrize("pool", ["mean", None])
def test_embeddings_are_those_of_the_library(music: Path, make_model: MakeModel, tmp_path: Path, pool: Any) -> None:
    folder = make_model("encoder")
    carry_out(job_spec(folder, tmp_path / "e.parquet", "embed", pool=pool, layer=1), music)
    found = pd.read_parquet(tmp_path / "e.parquet")
    assert found["file"].unique().tolist() == sorted(GOOD)
    expected = mb.load(folder, device="cpu").embed([music / name for name in sorted(GOOD)], layer=1, pool=pool)
    rows = expected if pool else np.concatenate(expected)
    np.testing.assert_array_equal(np.stack(found["embedding"].tolist()), rows)
    assert pool or found["note"].tolist() == [note for vectors in expected for note in range(len(vectors))]
    assert pd.read_csv(tmp_path / "e.files.csv")["reason"].notna().tolist() == [False, True, False, False]


# ------------------------------------------------------------------------------------------- done once


@pytest.mark.usefixtures("no_child")
def test_what_is_done_is_not_done_again(music: Path, note_folder: Path, songs: list[Path], tmp_path: Path) -> None:
    spec = job_spec(note_folder, tmp_path / "out")
    carry_out(spec, music)
    before = contents(tmp_path / "out", state=True)
    again = plan(spec, str(music))
    assert again.is_complete and not again.open
    shutil.copyfile(songs[5], music / "new.mid")
    shutil.copyfile(songs[6], music / "bad.mid")
    assert set(plan(spec, str(music)).open) == {"new.mid", "bad.mid"}
    grown = carry_out(spec, music)
    assert (len(grown.records), grown.found) == (5, 3)
    after = contents(tmp_path / "out")
    assert {name: after[name] for name in GOOD} == {name: before[name] for name in GOOD}
    (music / "new.mid").unlink()
    smaller = plan(spec, str(music))
    assert not smaller.open and not smaller.is_complete
    assert "new.mid" not in [row["file"] for row in finish(smaller).records]


@pytest.mark.usefixtures("no_child")
def test_embeddings_grow_and_are_made_again_when_they_are_gone(
    music: Path, note_folder: Path, songs: list[Path], tmp_path: Path
) -> None:
    spec = job_spec(note_folder, tmp_path / "e.parquet", "embed")
    carry_out(spec, music)
    first = pd.read_parquet(spec.output)
    shutil.copyfile(songs[5], music / "new.mid")
    assert set(plan(spec, str(music)).open) == {"new.mid"}
    carry_out(spec, music)
    grown = pd.read_parquet(spec.output)
    assert grown["file"].tolist() == sorted([*GOOD, "new.mid"])
    kept = grown[grown["file"] != "new.mid"]["embedding"]
    np.testing.assert_array_equal(np.stack(kept.tolist()), np.stack(first["embedding"].tolist()))
    content = Path(spec.output).read_bytes()
    Path(spec.output).unlink()
    assert len(plan(spec, str(music)).open) == 5
    carry_out(spec, music)
    assert Path(spec.output).read_bytes() == content


@pytest.mark.slow
@pytest.mark.usefixtures("no_child")
@pytest.mark.parametrize("kind", ["annotate", "embed"])
def test_a_job_may_be_killed_before_any_write(
    music: Path, note_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The same bytes as of one that was not, whichever write it was; what says that all is there is never too early."""
    write, limit = storage.write_bytes, [10**9]

    def counted(uri: str, content: bytes) -> None:
        limit[0] -= 1
        if limit[0] < 0:
            raise InterruptedError(f"killed before {uri}")
        write(uri, content)

    monkeypatch.setattr(storage, "write_bytes", counted)
    name = "out" if kind == "annotate" else "out.parquet"
    carry_out(job_spec(note_folder, tmp_path / "whole" / name, kind), music)
    writes, killed = 10**9 - limit[0], tmp_path / "killed"
    for number in range(writes):
        limit[0] = number
        with pytest.raises(InterruptedError):
            carry_out(job_spec(note_folder, killed / name, kind), music)
        assert not plan(job_spec(note_folder, killed / name, kind), str(music)).is_complete
        limit[0] = 10**9
        carry_out(job_spec(note_folder, killed / name, kind), music)
        assert contents(killed) == contents(tmp_path / "whole"), f"killed before write {number}"
        shutil.rmtree(killed)


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.slow
def test_a_file_that_kills_its_reader_costs_a_row(
    music: Path, note_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deeds.py").write_text(
        "import ctypes, os, time\n"
        "from midibert_ray.inference import sandboxed\n"
        "def respond(header, blobs):\n"
        "    if blobs[0] == b'segfault':\n"
        "        ctypes.string_at(0)\n"
        "    if blobs[0] == b'exit':\n"
        "        os._exit(3)\n"
        "    if blobs[0] == b'hang':\n"
        "        time.sleep(600)\n"
        "    return sandboxed.respond(header, blobs)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sandboxed, "HANDLER", "deeds:respond")
    monkeypatch.setattr(sandboxed, "TIME_LIMIT_S", 10.0)
    for deed in ("segfault", "exit", "hang"):
        (music / f"{deed}.mid").write_bytes(deed.encode())
    summary = carry_out(job_spec(note_folder, tmp_path / "out"), music)
    reasons = {row["file"]: row["reason"] for row in summary.records}
    assert reasons["segfault.mid"] == "reader crashed: signal 11"
    assert reasons["exit.mid"] == "reader crashed: exit status 3"
    assert reasons["hang.mid"] == "timed out after 10 s"
    assert not any(reasons[name] for name in GOOD)


def test_a_model_that_ships_is_known_by_its_name_on_every_node(
    songs: list[Path], make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_model()
    (tmp_path / "weights").mkdir()
    made.rename(tmp_path / "weights/tune")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "weights")
    named = JobSpec(kind="annotate", model="tune", output=str(tmp_path / "out"), formats=("csv",))
    found = plan(named, str(songs[0]))
    assert found.spec.model == "tune" and "tune (" in found.describe()
    assert found.settings == plan(replace(named, model=str(tmp_path / "weights/tune")), str(songs[0])).settings
    assert len(carry_out(named, songs[0]).records) == 1
    assert list((tmp_path / "out").glob("*.csv"))


Place = Callable[..., tuple[JobSpec, Path]]


@pytest.mark.usefixtures("no_child")
@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        ("no model", ConfigError, "model='' is not allowed; use the folder of a model"),
        ("no folder", FileNotFoundError, "is not a model's folder: config.json and model.safetensors not found"),
        ("damaged", ModelFileError, "damaged"),
        ("encoder", ConfigError, "is an encoder and has no head; embed it .*, or fine-tune it"),
        ("no input", ConfigError, "input='' is not allowed"),
        ("absent input", FileNotFoundError, "input=.*/nowhere: there is no such file or folder"),
        ("empty", ValueError, r"input=.* has no music below it \(\*\.mid, \*\.midi, "),
        ("inside", ConfigError, "lies in the folder of the input"),
        ("other formats", ConfigError, r"written with other settings \(formats midi,csv, now csv\); name a new output"),
        ("other model", ConfigError, r"written with other settings \(model \w{12}, now \w{12}\)"),
        ("somebody's", ConfigError, "holds what no such job has written"),
        ("embed folder", ConfigError, r"output=.* is not allowed; use a file, output=embeddings\.parquet"),
        ("no layer", ConfigError, r"layer=3 is not allowed; use 0 \(embeddings\) to 2, or -1 to -3"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    case: str, error: type[Exception], message: str, music: Path, make_model: MakeModel, tmp_path: Path
) -> None:
    model, out = make_model("encoder" if case == "encoder" else "note"), tmp_path / "out"
    spec, source = job_spec(model, out), str(music)
    other = make_model("note", hidden_size=16)
    if case.startswith("other"):
        carry_out(spec, music)
    if case == "damaged":
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    if case == "somebody's":
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    changed: dict[str, tuple[JobSpec, str]] = {
        "no model": (replace(spec, model=""), source),
        "no folder": (replace(spec, model=str(music)), source),
        "no input": (spec, ""),
        "absent input": (spec, str(tmp_path / "nowhere")),
        "empty": (spec, str(model)),
        "inside": (replace(spec, output=str(music / "out")), source),
        "other formats": (replace(spec, formats=("csv",)), source),
        "other model": (replace(spec, model=str(other)), source),
        "embed folder": (replace(spec, kind="embed"), source),
        "no layer": (job_spec(model, tmp_path / "e.parquet", "embed", layer=3), source),
    }
    before = contents(tmp_path, state=True)
    with pytest.raises(error, match=message) as raised:
        plan(*changed.get(case, (spec, source)))
    assert "\n" not in str(raised.value)
    assert contents(tmp_path, state=True) == before


@pytest.mark.usefixtures("no_child")
def test_a_file_alone_may_have_any_name(note_folder: Path, songs: list[Path], tmp_path: Path) -> None:
    shutil.copyfile(songs[0], tmp_path / "song.kar")
    summary = carry_out(job_spec(note_folder, tmp_path / "out"), tmp_path / "song.kar")
    assert [row["file"] for row in summary.records] == ["song.kar"]
    assert (tmp_path / "out/song.kar.csv").exists() and (tmp_path / "out/song.kar.mid").exists()
    shutil.copyfile(songs[1], tmp_path / "other.kar")
    with pytest.raises(ConfigError, match=r"\(input .*/song\.kar, now .*/other\.kar\)"):
        plan(job_spec(note_folder, tmp_path / "out"), str(tmp_path / "other.kar"))


def test_a_dry_run_says_what_is_open(music: Path, note_folder: Path, tmp_path: Path) -> None:
    said = plan(job_spec(note_folder, tmp_path / "out"), str(music)).describe()
    assert "4 files of music" in said and "open     4" in said and "formats  midi,csv" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("no_child")
def test_buckets_hold_the_same(music: Path, note_folder: Path, s3: S3, tmp_path: Path) -> None:
    bucket = s3.bucket()
    for name, content in contents(music).items():
        storage.write_bytes(s3.address(f"{bucket}/in/{name}"), content)
    for name, content in contents(note_folder).items():
        storage.write_bytes(s3.address(f"{bucket}/model/{name}"), content)
    spec = job_spec(s3.address(f"{bucket}/model"), s3.address(f"{bucket}/out"))
    carry_out(spec, s3.address(f"{bucket}/in"))
    carry_out(job_spec(note_folder, tmp_path / "out"), music)
    expected = contents(tmp_path / "out")
    keys = [key for key in s3.keys(f"{bucket}/out") if not key.startswith("_job/")]
    assert {key: storage.read_bytes(s3.address(f"{bucket}/out/{key}")) for key in keys} == expected
    assert plan(spec, s3.address(f"{bucket}/in")).is_complete


@pytest.mark.usefixtures("no_child")
def test_an_actor_does_tasks_and_says_which_folder_it_does_not_see(
    music: Path, note_folder: Path, tmp_path: Path
) -> None:
    made = plan(job_spec(note_folder, tmp_path / "out"), str(music))
    State(made.spec.state).begin(made.settings)
    batch = {"task": [pickle.dumps((made.spec, task)) for task in made.tasks()]}
    actor = job._Actor()
    assert actor(batch) == {"files": [1] * 4, "absent": [""] * 4}
    music.rename(tmp_path / "elsewhere")
    expected = f"{music} is not on this node; input must be visible from every node"
    assert actor({"task": batch["task"][:1]}) == {"files": [1], "absent": [expected]}


@pytest.mark.parametrize(
    ("words", "actors"),
    [
        ({}, job.Actors()),
        ({"gpus": "0.25", "actors": "4"}, job.Actors(gpus=0.25, most=4)),
        ({"gpus": "0", "cpus": "0.5"}, job.Actors(gpus=0.0, cpus=0.5)),
        ({"gpus": "1", "cpus": "8"}, job.Actors(gpus=1.0, cpus=8)),
    ],
)
def test_actors_are_those_of_the_command_line(words: dict[str, str], actors: job.Actors) -> None:
    assert parse_actors(words) == actors


@pytest.mark.parametrize(
    ("word", "allowed"),
    [
        ("gpus=2", "a number from 0 to 1"),
        ("gpus=-0.5", "a number from 0 to 1"),
        ("gpus=all", "a number from 0 to 1"),
        ("cpus=0", "a share of one, or a whole number from 1"),
        ("cpus=1.5", "a share of one, or a whole number from 1"),
        ("actors=2.5", "a whole number"),
    ],
)
def test_actors_that_ray_cannot_give_are_refused(word: str, allowed: str) -> None:
    key, value = word.split("=")
    with pytest.raises(ConfigError, match=f"{key}='{value}' is not allowed; use {allowed}"):
        parse_actors({key: value})


def test_a_dry_run_says_that_there_is_no_gpu(
    music: Path, note_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    words = ["annotate", f"model={note_folder}", f"input={music}", f"output={tmp_path}/out", "--dry-run"]
    assert execute([*words, "gpus=0.25"]) == 0
    assert "not enough on this machine: an actor asks for 1 x (1 CPU, 0.25 GPUs); there are " in capsys.readouterr().out
    assert execute(words) == 0
    assert "not enough" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- with Ray


SHARED = """
import sys
import ray
from midibert_ray.cli.inference import parse_actors
from midibert_ray.cli.resources import Request, require
from midibert_ray.inference import job
from midibert_ray.inference.plan import plan
from midibert_ray.inference.worker import JobSpec
ray.init("local", num_cpus=4, num_gpus=1, log_to_driver=False)
actors = parse_actors({"gpus": "0.5"})
require([Request("an actor", 1, {"CPU": 1, "GPU": actors.gpus}, settings="cpus, gpus")], local=True)
assert job._room(1, 0.5, 9) == 2
model, music, out = sys.argv[1:]
made = plan(JobSpec(kind="annotate", model=model, output=out, formats=("midi", "csv")), music)
print(len(job.run(made, actors).records))
"""
"""A job on a Ray that claims a GPU: its actors share it, and compute on the CPU where there is none."""


@pytest.mark.ray
def test_actors_share_a_gpu_and_give_the_same_bytes(music: Path, note_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SHARED, note_folder, music, tmp_path / "shared"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "4", done.stderr
    carry_out(job_spec(note_folder, tmp_path / "alone"), music)
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


@pytest.mark.ray
def test_a_killed_job_goes_on_and_gives_the_same_bytes_for_any_number_of_actors(
    ray_cluster: Any, songs: list[Path], note_folder: Path, tmp_path: Path
) -> None:
    """96 songs and all malformed files: one actor undisturbed, and three after a driver that was killed."""
    music = tmp_path / "music"
    for number in range(96):
        (music / f"{number % 7}").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(songs[number % 32], music / f"{number % 7}" / f"{number:02d}.mid")
    for name, content in (BAD | STRANGE).items():
        (music / name).write_bytes(content)
    alone = job.run(plan(job_spec(note_folder, tmp_path / "alone"), str(music)), job.Actors(most=1))
    assert len(alone.records) == 96 + len(BAD) + len(STRANGE)
    bad = {row["file"] for row in alone.records if row["reason"]}
    assert set(BAD) <= bad <= set(BAD) | set(STRANGE)

    out = tmp_path / "killed"
    words = [f"model={note_folder}", f"input={music}", f"output={out}", "formats=midi,csv", "actors=3"]
    address = ray_cluster.get_runtime_context().gcs_address
    driver = subprocess.Popen(
        [sys.executable, "jobs/annotate.py", *words],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 180
    while not list(out.glob("_job/part-*.parquet")) and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    _, said = driver.communicate()
    assert list(out.glob("_job/part-*.parquet")), said
    assert not (out / "manifest.json").exists(), "killed too late"
    rest = plan(job_spec(note_folder, out), str(music))
    assert 0 < len(rest.done) < len(alone.records)
    went_on = job.run(rest, job.Actors(most=3))
    assert went_on.found == len(rest.done)
    assert contents(out) == contents(tmp_path / "alone")
    assert {path.name for path in (out / "_job").iterdir()} == {"settings.json", "done.parquet"}


# ------------------------------------------------------------------------------------------- on a cluster


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model=exports/melody", "input=/a", "output=/b"), "model='exports/melody' is a relative path"),
        (("model=/m", "input=midi", "output=/b"), "input='midi' is a relative path"),
        (("model=/m", "input=/a", "output=out"), "output='out' is a relative path"),
    ],
)
def test_relative_folders_are_not_submitted(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        describe("annotate", *words)


def test_models_of_mlflow_are_submitted_and_an_output_has_one_job() -> None:
    words = ("model=models:/melody/1", "input=s3://bucket/midi", "output=s3://bucket/out")
    one, other = describe("annotate", *words), describe("annotate", *words[:2], "output=s3://bucket/other")
    assert one.entrypoint == f"python jobs/annotate.py {' '.join(words)}"
    assert one.id != other.id


def test_the_file_that_a_child_process_writes_has_the_same_tracks(note_model: Annotator, songs: list[Path]) -> None:
    data = songs[0].read_bytes()
    plain = note_model.annotate(data, abstain=0.34)
    least = float(np.median(plain.scores[:, 1]))
    for annotation in (plain, replace(plain, favour=(plain.classes[1], least))):
        assert ReaderHere(note_model.protocol).write(data, annotation) == annotation.to_bytes()


@pytest.mark.usefixtures("no_child")
def test_the_table_has_the_range_of_numbers_and_a_row_a_tag(make_model: MakeModel, music: Path, tmp_path: Path) -> None:
    number = make_model("sequence", classes=("value",), answers="number")
    summary = carry_out(job_spec(number, tmp_path / "numbers", formats=("csv",)), music)
    said = pd.read_csv(tmp_path / "numbers" / "files.csv").set_index("file")["label"].loc[list(GOOD)]
    row = f"  {said.min():.6g} to {said.max():.6g}, mean {said.mean():.6g}"
    assert [line for line in str(summary).splitlines() if line.startswith(row)] and str(summary).count(" to ") == 1
    tagged = make_model("sequence", answers="tags")
    summary = carry_out(job_spec(tagged, tmp_path / "tags", formats=("csv",)), music)
    said = pd.read_csv(tmp_path / "tags" / "files.csv").set_index("file")["label"].loc[list(GOOD)].dropna()
    assert len(said)
    assert {f"  {label}" for label in said} == {
        line.rsplit(maxsplit=1)[0].rstrip() for line in str(summary).splitlines()[2:] if line.startswith("  ")
    }
