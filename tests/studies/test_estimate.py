"""A dry run says what a study would take, from a step that is measured, and what of it is done."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from midibert_ray import pipeline
from midibert_ray.cli import dry_run
from midibert_ray.data.store import TokenStore
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.presets import STUDIES
from midibert_ray.studies.estimate import _Meter, estimate
from midibert_ray.studies.plan import make
from tests.tiny import tiny_study


@pytest.mark.slow
def test_hours_follow_epochs_and_segments(tmp_path: Path, sample_store: TokenStore) -> None:
    def locate(config: Config, names: Iterable[str]) -> dict[str, str]:
        return dict.fromkeys(names, sample_store.uri)

    config = tiny_study(tmp_path, study__variants=("pretrained", "scratch", "rnn"), rnn__epochs=2)
    plan = make(config, locate)
    found = estimate(plan.pretrainings, plan.trials, {}, threads=1)
    assert found.pretraining.keys() == plan.pretrainings.keys() and found.trials.keys() == plan.trials.keys()
    assert all(hours > 0 for hours in (*found.pretraining.values(), *found.trials.values()))
    assert "device-hours at most (1 pre-training " in str(found) and "3 trials" in str(found)

    meter = _Meter(torch.device("cpu"), {})
    (run,) = plan.pretrainings.values()
    (longer,) = make(replace(config, {"pretrain.epochs": 24}), locate).pretrainings.values()
    assert meter.pretraining(longer) == pytest.approx(2 * meter.pretraining(run)), "one step is measured for both"

    def hours(**changes: int) -> float:
        few = replace(config, {f"finetune.{name}": value for name, value in changes.items()})
        entries = make(few, locate).trials.values()
        return meter.trial(next(entry for entry in entries if entry.trial.variant == "pretrained"))

    epochs, scored = config.finetune.epochs, hours(train_segments=1, valid_segments=1)
    step = (hours(train_segments=4, valid_segments=1) - scored) / (3 * epochs)
    assert hours(train_segments=1, valid_segments=4) - scored == pytest.approx(epochs * step), "a third, of three more"


def test_a_dry_run_tells_of_a_paper_study_before_there_are_tokens(tmp_path: Path) -> None:
    config = replace(tiny_study(tmp_path), STUDIES["paper"] | {"study.tables": ("3",), "study.tasks": ("melody",)})
    told = dry_run.describe_plan(pipeline.plan(config, study=True))
    assert "pre-trainings   2" in told and "trials          10, 10 of them open" in told
    assert "open  for 3 trials: CP, sample, all splits, protocol paper" in told
    assert "device-hours at most (2 pre-trainings" in told
    assert told.count("and the sizes of the files of sample (no tokens yet)") == 1
    assert not (tmp_path / "root").exists(), "a dry run writes nothing"
    config = replace(tiny_study(tmp_path), {"study.variants": ("pretrained", "noise-roll"), "study.tasks": ("melody",)})
    told = dry_run.describe_plan(pipeline.plan(config, study=True))
    words = "protocol clean, mask.fraction=0.3, pretrain.objective=noise, pretrain.roll=0.0057"
    assert told.count("protocol clean\n") == told.count(words + "\n") == 1
    assert "device-hours at most (2 pre-trainings" in told
