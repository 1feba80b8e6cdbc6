"""What a study consists of: trials, the pre-trainings that they share, and names that last."""

from collections.abc import Iterable

import pytest

from midibert_ray.corpora.catalogue import corpus
from midibert_ray.music.tasks import TASKS
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import flatten, replace
from midibert_ray.settings.presets import STUDIES, preset
from midibert_ray.studies.plan import make, task_corpora
from midibert_ray.training.build import parameter_counts


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


def test_levers_are_pretrainings_that_see_as_many_notes_and_are_fine_tuned_alike() -> None:
    plan = make(replace(preset("small"), STUDIES["levers"]), locate)
    assert (len(plan.trials), len(plan.pretrainings)) == (9 * 4 * 2, 6)
    base = plan.config
    spent = {run.config.pretrain.epochs for run in plan.pretrainings.values()}
    steps = {run.config.pretrain.batch * run.config.tokens.segment for run in plan.pretrainings.values()}
    assert spent == {base.pretrain.epochs} and steps == {base.pretrain.batch * base.tokens.segment}
    found = {}
    for entry in plan.trials.values():
        pretrained = flatten(plan.pretrainings[entry.encoder].config).items() - flatten(base).items()
        found.setdefault(entry.trial.variant, set()).add(frozenset(pretrained))
        assert not entry.config.augment.at("finetune"), "what is compared is what pre-training saw"
    assert all(len(kinds) == 1 for kinds in found.values()), "one encoder for all tasks and seeds"
    noise = {("pretrain.objective", "noise"), ("mask.fraction", 0.3)}
    roll = noise | {("pretrain.roll", 0.0057)}
    assert {variant: set(*kinds) for variant, kinds in found.items()} == {
        "pretrained": set(),
        "mask-30": {("mask.fraction", 0.3)},
        "noise": noise,
        "noise-roll": roll,
        "noise-roll-transpose": roll | {("augment.transpose", 6), ("augment.stage", "pretrain")},
        "segment-1024": {("tokens.segment", 1024), ("pretrain.batch", 6)},
        "constant-rate": set(),
        "layer-decay": set(),
        "average-3": set(),
    }
    tuned = {
        entry.trial.variant: flatten(entry.config).items() - flatten(base).items() for entry in plan.trials.values()
    }
    assert ("finetune.average", 3) in tuned["average-3"] and ("finetune.layer_decay", 0.8) in tuned["layer-decay"]
    assert base.finetune.warmup > 0 and ("finetune.warmup", 0.0) in tuned["constant-rate"]


def test_the_weights_that_ship_are_made_from_two_corpora_that_may_be_passed_on() -> None:
    plan = make(replace(preset("small"), STUDIES["weights"]), locate)
    ((key, run),) = plan.pretrainings.items()
    ((trial, spec),) = plan.trials.items()
    both = ("/root/tokens/pop909-clean-pitch", "/root/tokens/lieder-clean-pitch")
    assert spec.tests == (*both, "/root/tokens/solo-clean-pitch")
    assert run.stores == spec.stores == both and spec.encoder == key and spec.task is TASKS["line"]
    assert trial.startswith("line-pretrained-clean-seed2021-"), "as the card's command has it"
    assert all(corpus(name).redistribute for name in run.config.corpora.names)
    assert run.config.pretrain.splits == "train", "test songs are heard by no stage"
    assert sum(parameter_counts(run.config).values()) * 2 <= 8 * 2**20


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
