"""What `run=` of an export may name, and what is said where nothing fits."""

import dataclasses
import json
from pathlib import Path

import pytest

from midibert_ray.export.find import find
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.training.runs import PretrainRun

RUN, OPEN_RUN = "pretrain-0a1b2c3d4e", "pretrain-1111111111"
TRIAL, OTHER = "melody-pretrained-clean-seed2021-0123456789", "melody-scratch-clean-seed2021-abcdef0123"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A storage root with two pre-training runs, one of them finished, and two studies, which share a trial's name."""
    root = tmp_path / "root"
    for folder in (f"runs/{RUN}/step_000000010", f"runs/{OPEN_RUN}", f"studies/mine-9999999999/{TRIAL}"):
        (root / folder).mkdir(parents=True)
    for study in ("mine-9999999999", "yours-8888888888"):
        (root / "studies" / study / OTHER).mkdir(parents=True)
        (root / "studies" / study / "experiment_state.json").touch()
    done = PretrainRun(RUN, f"/before/it/moved/runs/{RUN}/step_000000010", 10, {})
    (root / "runs" / RUN / "result.json").write_text(json.dumps(dataclasses.asdict(done)))
    return replace(Config(), {"storage.root": str(root)})


@pytest.mark.parametrize("name", [TRIAL, TRIAL[:-11]])
def test_a_trial_by_its_key_or_its_name_in_the_tables(name: str, config: Config) -> None:
    assert find(config, name) == f"{config.storage.root}/studies/mine-9999999999/{TRIAL}"


def test_a_finished_run_stands_for_its_best_checkpoint(config: Config) -> None:
    best = f"{config.storage.root}/runs/{RUN}/step_000000010"
    assert find(config, RUN) == find(config, f"{config.storage.root}/runs/{RUN}/") == best
    assert find(replace(config, {"storage.root": "/else"}), best) == best, "a URI is looked for nowhere else"


def test_a_name_that_several_trials_have_is_refused(config: Config) -> None:
    with pytest.raises(ValueError, match=r"names 2 of them: .*mine-9999999999.*yours-8888888888.*give one of these"):
        find(config, OTHER[:-11])


def test_what_nothing_fits_gets_a_list(config: Config) -> None:
    with pytest.raises(FileNotFoundError, match=r"no trial .* has this name; did you mean '(.*)'\? (.*)") as caught:
        find(config, "melody-pretraind-clean-seed2021")
    assert f"did you mean '{TRIAL[:-11]}'" in str(caught.value)
    assert str(caught.value).endswith(f"there are: {RUN}, {OPEN_RUN}, {TRIAL[:-11]}, {OTHER[:-11]}")
    with pytest.raises(FileNotFoundError, match="nothing has been trained"):
        find(replace(config, {"storage.root": f"{config.storage.root}/empty"}), "melody")


def test_a_missing_folder_is_not_one_without_weights(config: Config, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"there is no such folder; did you mean '{RUN}'"):
        find(config, f"{config.storage.root}/runs/pretrain-0a1b2c3d4f")
    assert find(config, str(tmp_path)) == str(tmp_path), "it is there; that it holds no model is said on opening it"
