from typing import get_args

import pytest

from midibert_ray.settings.config import ConfigError, TableName, Variant
from midibert_ray.settings.overrides import flatten, replace
from midibert_ray.settings.presets import preset
from midibert_ray.studies import paper
from midibert_ray.studies.trials import OF_SEGMENTS, VARIANTS, grid

ROWS = ("pretrained", "segment-1024")


def test_the_grid_is_tasks_by_variants_by_seeds() -> None:
    config = replace(preset("debug"), {"study.tasks": ("melody", "velocity"), "study.seeds": 3, "seed": 7})
    trials = grid(config)
    assert len(trials) == 2 * 4 * 3
    assert len({trial.name for trial in trials}) == len(trials)
    assert {trial.seed for trial in trials} == {7, 8, 9}
    for trial in trials:
        mine = trial.config(config)
        assert (mine.finetune.task, mine.seed) == (trial.task, trial.seed)
        assert flatten(mine).items() >= VARIANTS[trial.variant].items()


def test_wrong_lists_are_refused_before_anything_starts() -> None:
    wrong = {
        "study.variants": [
            ("frozen", r"study\.variants='frozen'.*freeze-backbone"),
            ("scratch,scratch", "each value once"),
        ],
        "study.tasks": [
            ("harmony", r"study\.tasks='harmony'.*melody"),
            ("composr", r"\(did you mean 'composer'\?\)"),
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
    assert {"1", *paper.TABLES} == set(get_args(TableName))
    assert set(paper.variants(tuple(paper.TABLES))) == set(VARIANTS) - {"probe"}


def test_longer_segments_are_fewer_so_that_a_row_sees_as_many_notes() -> None:
    counts = {"pretrain.batch": 12, "finetune.batch": 5, "finetune.train_segments": 160, "finetune.valid_segments": 1}
    config = replace(preset("debug"), counts | {"tokens.segment": 128, "study.seeds": 1, "study.variants": ROWS})
    usual, longer = (flatten(trial.config(config)) for trial in grid(config))
    assert [usual[name] for name in ("tokens.segment", *OF_SEGMENTS)] == [128, 12, 5, 160, 1]
    assert [longer[name] for name in ("tokens.segment", *OF_SEGMENTS)] == [1024, 2, 1, 20, 1]
    every = grid(replace(config, {"finetune.train_segments": 0}))[1].config(config)
    assert every.finetune.train_segments == 160, "where all are read, there is nothing to divide"
