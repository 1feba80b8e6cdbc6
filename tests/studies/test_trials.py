from typing import get_args

import pytest

from midibert_ray.config import Config, ConfigError, TaskName, Variant
from midibert_ray.music.tasks import TASKS
from midibert_ray.overrides import replace
from midibert_ray.presets import preset
from midibert_ray.studies.run_trial import task_corpus
from midibert_ray.studies.study import study_key
from midibert_ray.studies.trials import VARIANTS, grid


def test_the_grid_is_tasks_by_variants_by_seeds() -> None:
    config = replace(preset("debug"), {"study.seeds": 3, "seed": 7})
    trials = grid(config)
    assert len(trials) == 2 * 4 * 3
    assert len({trial.name for trial in trials}) == len(trials)
    assert {trial.seed for trial in trials} == {7, 8, 9}
    for trial in trials:
        mine = trial.config(config)
        assert (mine.finetune.task, mine.seed) == (trial.task, trial.seed)
        assert {"finetune.init": mine.finetune.init, "finetune.freeze": mine.finetune.freeze} == VARIANTS[trial.variant]


def test_wrong_lists_are_refused_before_anything_starts() -> None:
    wrong = {
        "study.variants": [
            ("frozen", r"study\.variants='frozen'.*freeze-backbone"),
            ("scratch,scratch", "each value once"),
        ],
        "study.tasks": [
            ("harmony", r"study\.tasks='harmony'.*melody"),
            ("melody,melody", "each value once"),
            ("", "at"),
        ],
    }
    for key, values in wrong.items():
        for value, message in values:
            with pytest.raises(ConfigError, match=message):
                replace(preset("debug"), {key: value})


def test_every_variant_that_a_configuration_allows_is_known() -> None:
    assert tuple(VARIANTS) == get_args(Variant)
    assert tuple(TASKS) == get_args(TaskName)


def test_the_key_names_the_study_and_what_it_is_made_from() -> None:
    config, stores = preset("debug"), {"sample": "/a/tokens/sample-1"}
    key = study_key(config, stores, "pretrain-1")
    assert key.startswith("ablation-")
    assert (
        study_key(replace(config, {"compute.cpus_per_trial": 2}), {"sample": "/b/tokens/sample-1"}, "pretrain-1") == key
    )
    assert study_key(config, {"sample": "/a/tokens/sample-2"}, "pretrain-1") != key
    assert study_key(config, stores, "pretrain-2") != key
    assert study_key(replace(config, {"finetune.lr": 1e-5}), stores, "pretrain-1") != key
    with pytest.raises(ValueError, match=r"study\.name='\.\./x'"):
        study_key(replace(config, {"study.name": "../x"}), stores, "pretrain-1")


def test_tasks_bring_their_own_corpus() -> None:
    corpora = {task: task_corpus(Config(), task) for task in ("melody", "velocity", "composer", "emotion")}
    assert corpora == {"melody": "pop909", "velocity": "pop909", "composer": "pianist8", "emotion": "emopia"}
    assert task_corpus(preset("debug"), "melody") == "sample"
