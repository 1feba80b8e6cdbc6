"""A model that was trained here answers for whole songs as it did for the segments of its test split."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

import midibert_ray as mb
from midibert_ray.data.store import TokenStore
from midibert_ray.inference.sources import Song, read_song
from midibert_ray.model.calibration import CALIBRATION
from midibert_ray.model.folder import save_export
from midibert_ray.music.grid import align_to_beats, read_beats
from midibert_ray.music.midi import read_notes, ticks_to_seconds
from midibert_ray.music.tasks import Task
from midibert_ray.settings.overrides import replace as override
from midibert_ray.training.calibrate import calibrate
from midibert_ray.training.finetune import Finetuning, finetune, new_model
from midibert_ray.training.task_data import TaskData
from tests.stores import Piece, beginnings, write_store
from tests.tiny import tiny_study


def aligned(path: Path) -> Song:
    """A song on its annotated beats, as the corpus has it."""
    beats = read_beats((path.parent / "beat_audio.txt").read_bytes())
    notes, _ = align_to_beats(read_notes(path.read_bytes(), keep_unreleased=True), beats)
    onset, offset = ticks_to_seconds(notes, np.stack([notes.start, notes.end]))
    return replace(read_song(path), notes=notes, onset_s=onset, offset_s=offset)


@pytest.mark.slow
@pytest.mark.parametrize("representation", ["cp", "remi"])
def test_songs_are_labelled_as_well_as_segments(
    representation: str, tmp_path: Path, sample_pieces: list[Piece], songs: list[Path]
) -> None:
    sample_store = TokenStore.open(write_store(tmp_path / "few", sample_pieces[::2], "sample"), str(tmp_path / "cache"))
    changes = {
        "finetune.task": "melody",
        "finetune.corpus": "sample",
        "finetune.init": "scratch",
        "finetune.epochs": 4,
        "finetune.lr": 3e-3,
        "finetune.batch": 8,
        "model.representation": representation,
        "model.hidden": 32,
    }
    config = override(tiny_study(tmp_path), changes)
    data = TaskData(config, sample_store)
    job = Finetuning(config, data, new_model(config, data, ""), torch.device("cpu"))
    predictions = finetune(job, lambda metrics, save: None)
    calibration = calibrate(job, predictions, "test").to_json()
    model = mb.load(save_export(job.model, tmp_path / "export", {CALIBRATION: calibration}), "cpu")  # type: ignore[arg-type]
    assert model.classes == ("melody", "bridge", "accompaniment") and model.config.task == "melody"
    assert model.config.protocol == {"name": "clean"} and model.calibration

    right, probability = [], []
    test = {data.splits["test"].piece_id(piece) for piece in range(data.splits["test"].pieces)}
    assert 0 < len(test) <= 10
    by_name = {"MELODY": "melody", "BRIDGE": "bridge", "PIANO": "accompaniment"}
    for path in (path for path in songs if path.stem in test):
        notes = model.annotate(aligned(path)).notes
        right.append(notes["label"] == notes["instrument"].map(by_name))
        probability.append(notes["probability"])
    hits, answers = np.concatenate(right), np.concatenate(probability)
    assert len(hits) == len(predictions.label)
    accuracy = float(predictions.metrics("test")["test/accuracy"])
    assert accuracy > 0.6
    # Windows overlap where segments end, so that a song's answers are no worse.
    assert hits.mean() == pytest.approx(accuracy, abs=0.03)
    assert answers.mean() == pytest.approx(hits.mean(), abs=0.1)
    assert hits[answers > 0.8].mean() > hits.mean()


@pytest.mark.parametrize("kind", ["number", "tags"])
def test_pieces_are_given_numbers_and_tags(
    kind: Literal["number", "tags"], tmp_path: Path, sample_pieces: list[Piece], songs: list[Path]
) -> None:
    """A number in the units of its labels: a fast model learns no more than their mean, 1900 and some."""
    classes = ("low", "sad", "slow") if kind == "tags" else ()
    metric = "average_precision" if kind == "tags" else "r2"
    task = Task(name="own", level="sequence", kind=kind, classes=classes, corpus="sample", metric=metric)  # type: ignore[arg-type]
    labels = {"tags": ("slow;sad", "slow", "low;slow"), "number": ("1890", "1900", "1910")}[kind]
    cut = enumerate(beginnings(sample_pieces, 200))
    pieces = [(piece, split, labels[k % 3], tokens) for k, (piece, split, _, tokens) in cut]
    store = TokenStore.open(write_store(tmp_path / "store", pieces, "sample"), str(tmp_path / "cache"))
    config = override(tiny_study(tmp_path), {"finetune.init": "scratch", "finetune.epochs": 2, "finetune.lr": 1e-3})
    data = TaskData(config, store, task)
    job = Finetuning(config, data, new_model(config, data, ""), torch.device("cpu"))
    predictions = finetune(job, lambda metrics, save: None)
    job.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / CALIBRATION).write_text(calibrate(job, predictions, "test").to_json())
    model = mb.load(tmp_path / "model", "cpu")
    assert (model.kind, model.level, model.classes) == (kind, "sequence", classes)
    found = model.annotate(songs[0])
    if kind == "number":
        assert 1870 < found.value < 1930 and found.label == f"{found.value:.6g}"
    else:
        assert "slow" in found.label.split(";")
