"""What a study consists of: trials, the pre-trainings that they share, and names that last."""

from collections.abc import Iterable

import pytest

from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.presets import STUDIES, preset
from midibert_ray.studies.plan import make, task_corpora


def locate(config: Config, names: Iterable[str]) -> dict[str, str]:
    kind = f"{config.tokens.protocol}-{config.protocol_in_force.order}"
    return {name: f"/root/tokens/{name}-{kind}" for name in names}


def paper(**changes: object) -> Config:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return replace(preset("base"), STUDIES["paper"] | {"study.seeds": 5} | dotted)


def test_the_papers_tables_take_four_pretrainings_a_protocol() -> None:
    tokens: dict[str, set[str]] = {}

    def noting(config: Config, names: Iterable[str]) -> dict[str, str]:
        found = locate(config, names)
        tokens.setdefault(config.tokens.protocol, set()).update(found)
        return found

    plan = make(paper(), noting)
    assert len(plan.trials) == 2 * 4 * 9 * 5
    described = {
        (run.config.tokens.protocol, run.config.model.representation, run.config.pretrain.splits, len(run.stores))
        for run in plan.pretrainings.values()
    }
    assert described == {
        (protocol, *kind)
        for protocol in ("paper", "clean")
        for kind in (("cp", "all", 5), ("cp", "train", 5), ("cp", "all", 2), ("remi", "all", 5))
    }
    assert len(plan.pretrainings) == len(described)
    users = [entry.encoder for entry in plan.trials.values()]
    assert users.count("") == 2 * 4 * 3 * 5  # scratch and both recurrent baselines
    assert set(users) - {""} == set(plan.pretrainings)
    five = {"pop909", "asap", "pop1k7", "pianist8", "emopia"}
    assert tokens == {"paper": five, "clean": five}


def test_the_leak_is_measured_with_all_else_equal() -> None:
    plan = make(paper(study__tables=("leak",), study__protocols=("paper",), study__seeds=1), locate)
    of = {entry.trial.variant: entry for entry in plan.trials.values() if entry.trial.task == "melody"}
    track, pitch = of["pretrained"], of["pretrained-by-pitch"]
    assert replace(pitch.config, {"protocol.order": None}) == track.config
    assert (*track.stores, *pitch.stores) == ("/root/tokens/pop909-paper-corpus", "/root/tokens/pop909-paper-pitch")
    assert pitch.encoder != track.encoder
    assert {store.rpartition("-")[2] for store in plan.pretrainings[pitch.encoder].stores} == {"pitch"}


def test_more_cells_keep_those_that_are_there() -> None:
    small = make(paper(study__tables=("3",), study__protocols=("paper",), study__seeds=1), locate)
    large = make(paper(), locate)
    assert small.key == large.key
    assert small.trials.keys() <= large.trials.keys()
    assert small.pretrainings.keys() <= large.pretrainings.keys()


def test_a_trial_is_named_by_all_that_it_is_made_from() -> None:
    def keys(**changes: object) -> set[str]:
        return set(make(paper(study__tables=("3",), study__seeds=1, **changes), locate).trials)

    known = keys()
    assert keys(compute__cpus_per_trial=4, compute__workers=4, storage__root="/elsewhere") == known
    longer = keys(pretrain__epochs=7)
    assert longer & known == {key for key in known if "-scratch-" in key or "-rnn-" in key}
    assert not keys(finetune__lr=1e-3) & known
    assert not keys(seed=3) & known


def test_the_key_names_the_study() -> None:
    assert make(preset("debug"), locate).key.startswith("ablation-")
    with pytest.raises(ValueError, match=r"study\.name='\.\./x'"):
        make(replace(preset("debug"), {"study.name": "../x"}), locate)


def test_tasks_bring_their_own_corpus() -> None:
    corpora = {task: task_corpora(Config(), task) for task in ("melody", "velocity", "composer", "emotion")}
    assert corpora == {
        "melody": ("pop909",),
        "velocity": ("pop909",),
        "composer": ("pianist8",),
        "emotion": ("emopia",),
    }
    assert task_corpora(preset("debug"), "melody") == ("sample",)
    assert task_corpora(replace(Config(), {"finetune.corpus": "pop909, lieder"}), "line") == ("pop909", "lieder")
