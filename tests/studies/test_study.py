"""Ray Tune for real: a trial that fails does not take the others or the study's record with it."""

from pathlib import Path

import pytest

from midibert_ray import tracking
from midibert_ray.config import Config
from midibert_ray.data.store import TokenStore
from midibert_ray.overrides import replace
from midibert_ray.studies.study import study
from midibert_ray.training.pretrain import new_model
from tests.tiny import tiny_study


@pytest.fixture
def config(tmp_path: Path) -> Config:
    variants = ("freeze-backbone", "scratch")
    return tiny_study(tmp_path, finetune__lr=1e30, study__variants=variants, compute__max_failures=0)


def test_a_task_that_the_corpus_cannot_serve_stops_before_any_trial(config: Config, sample_store: TokenStore) -> None:
    emotion = replace(config, {"study.tasks": ("emotion",)})
    with pytest.raises(ValueError, match=r"task emotion needs the labels Q1.*set finetune\.corpus=emopia"):
        study(emotion, stores={"sample": sample_store.uri}, encoder="pretrain-x", checkpoint="nowhere")


@pytest.mark.ray
def test_failed_trials_are_named_and_recorded(
    ray_cluster: object, config: Config, sample_store: TokenStore, tmp_path: Path
) -> None:
    new_model(config).save_pretrained(tmp_path / "encoder")
    place = str(tmp_path / "encoder")
    result = study(config, stores={"sample": sample_store.uri}, encoder="pretrain-x", checkpoint=place)
    assert result.outcomes == []
    assert sorted(result.failed) == ["melody-freeze-backbone-seed2021", "melody-scratch-seed2021"]
    assert all("lower finetune.lr" in reason for reason in result.failed.values())
    tracker = tracking.Tracker(tracking.address(config))
    (parent,) = tracker.parents(tracking.study_experiment(config.study.name))
    children = tracker.children(tracking.study_experiment(config.study.name), parent.info.run_id)
    assert {run.info.status for run in (parent, *children)} == {"FAILED"}


@pytest.mark.ray
def test_finished_trials_are_found_although_tune_has_forgotten_them(
    ray_cluster: object, sample_store: TokenStore, tmp_path: Path
) -> None:
    config = tiny_study(tmp_path, study__variants=("freeze-backbone", "scratch"))
    new_model(config).save_pretrained(tmp_path / "encoder")
    inputs = {"stores": {"sample": sample_store.uri}, "encoder": "pretrain-x"}
    first = study(config, checkpoint=str(tmp_path / "encoder"), **inputs)
    folder = tmp_path / "root" / "studies" / first.key
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*/checkpoint_*/outcome.json")}
    assert len(written) == 2
    for path in folder.iterdir():  # as if the driver had been killed before Tune wrote its books
        if path.is_file():
            path.unlink()

    again = study(config, checkpoint=str(tmp_path / "encoder"), **inputs)
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/checkpoint_*/outcome.json")} == written
    tracker = tracking.Tracker(tracking.address(config))
    (parent,) = tracker.parents(tracking.study_experiment(config.study.name))
    children = tracker.children(tracking.study_experiment(config.study.name), parent.info.run_id)
    assert len(children) == 2
    assert all(len(tracker.curve(run.info.run_id, "test/accuracy")) == 1 for run in children)
