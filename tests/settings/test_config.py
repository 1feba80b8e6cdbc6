from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest

from midibert_ray.cli.arguments import field_docs
from midibert_ray.music.protocol import CHOICES, CLEAN
from midibert_ray.settings.config import Config, ConfigError
from midibert_ray.settings.overrides import (
    digest,
    flatten,
    from_flat,
    identity,
    identity_fields,
    refuse_secrets,
    replace,
    runtime_keys,
)
from midibert_ray.settings.presets import PRESETS, preset
from midibert_ray.training.build import BatchPlan, plan_batch

SECTIONS = ("seed", "corpora", "tokens", "mask", "model", "optimizer", "pretrain", "finetune", "study", "compute")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_survive_json(name: str) -> None:
    config = preset(name)
    assert from_flat(flatten(config)) == config
    assert plan_batch(config).batch == config.pretrain.batch


def test_base_is_the_paper() -> None:
    config = preset("base")
    paper = {
        "model.layers": 12,
        "model.hidden": 768,
        "model.heads": 12,
        "model.feed_forward": 3072,
        "optimizer.lr": 2e-5,
        "optimizer.weight_decay": 0.01,
        "pretrain.batch": 12,
        "pretrain.epochs": 500,
        "pretrain.patience": 30,
        "finetune.lr": 2e-5,
        "finetune.batch": 12,
        "finetune.epochs": 10,
        "finetune.patience": 3,
    }
    assert paper.items() <= flatten(config).items()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optimizer.lrr", "1", ["optimizer.lr"]),
        ("optimzer.lr", "1", ["did you mean 'optimizer.lr'"]),
        ("seed", "x", ["seed='x'", "int"]),
        ("seed", "1.5", ["seed", "int"]),
        ("optimizer.lr", "nan", ["optimizer.lr", "float"]),
        ("optimizer.lr", "inf", ["optimizer.lr", "finite"]),
        ("optimizer.lr", "-1", ["optimizer.lr", "positive"]),
        ("model.heads", "7", ["model.heads=7", "model.hidden=768"]),
        ("tokens.protocol", "honest", ["paper, clean"]),
        ("protocol.order", "merged", ["protocol.order='merged'", "corpus, track, pitch"]),
        ("protocol.masks_padding", "perhaps", ["protocol.masks_padding='perhaps'", "true or false"]),
        ("protocol.odrer", "pitch", ["did you mean 'protocol.order'"]),
        ("protocol.one_onset", "tick", ["protocol.one_onset='tick'", "order='pitch'"]),
        ("compute.gpu", "perhaps", ["true or false"]),
        ("compute.zero_stage", "4", ["0, 1, 2 or 3"]),
        ("corpora.names", "", ["at least one corpus"]),
        ("corpora.names", "asap,asap", ["each corpus once"]),
        ("corpora.names", "folder:/x,folder:/x/", ["each corpus once"]),
        ("compute.keep_checkpoints", "1", ["2 or more"]),
        ("compute.accelerator", "H100", ["compute.gpu=true"]),
        ("compute.placement", "pack", ["PACK, SPREAD, STRICT_PACK, STRICT_SPREAD"]),
    ],
)
def test_errors_name_key_value_and_what_is_allowed(key: str, value: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        replace(Config(), {key: value})
    assert all(word in str(error.value) for word in words)


def test_identity_ignores_runtime_fields_and_nothing_else() -> None:
    base = preset("base")
    before = identity(base, SECTIONS)
    moved = replace(
        base,
        {"compute.workers": 4, "compute.zero_stage": 3, "storage.root": "/elsewhere", "tracking.uri": "x"}
        | {"compute.gpu": True, "compute.accelerator": "L4", "compute.placement": "SPREAD"},
    )
    assert identity(moved, SECTIONS) == before
    assert identity(replace(base, {"pretrain.start": "x"}), SECTIONS) == before, "it counts by its content"
    for change in ({"seed": 1}, {"optimizer.lr": 1e-3}, {"compute.precision": "bf16"}, {"model.attention": "rope"}):
        assert identity(replace(base, change), SECTIONS) != before
    assert identity(base, SECTIONS, stores=["a"]) != before
    assert {"corpora.root", "storage.root", "compute.workers"} <= runtime_keys()


def test_a_later_field_is_in_a_name_only_where_it_is_not_at_its_default() -> None:
    base = preset("base")
    assert not any(key.startswith("augment.") for key in identity_fields(base, (*SECTIONS, "augment")))
    later = {"pretrain.objective", "pretrain.roll", "finetune.average"}
    assert not later & identity_fields(base, (*SECTIONS, "finetune")).keys()
    changed = replace(base, {"augment.transpose": 6, "pretrain.objective": "noise"})
    assert identity_fields(changed, (*SECTIONS, "augment")).items() >= {
        ("augment.transpose", 6),
        ("pretrain.objective", "noise"),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment.transpose": 25}, "augment.transpose=25"),
        ({"augment.shift": 16}, "augment.shift=16"),
        ({"augment.thin": 1.0}, "augment.thin=1.0"),
        ({"finetune.octave": 1.1, "tokens.protocol": "clean"}, "finetune.octave=1.1"),
        ({"finetune.octave": 0.5, "tokens.protocol": "paper"}, "finetune.octave=0.5.*set protocol.order=pitch"),
        ({"finetune.octave": 0.5, "tokens.protocol": "clean", "model.representation": "remi"}, "finetune.octave=0.5"),
        ({"pretrain.roll": -1.0}, "pretrain.roll=-1.0.*a weight from 0"),
        ({"model.representation": "remi", "pretrain.roll": 0.1}, "pretrain.roll=0.1.*model.representation=cp"),
        ({"finetune.average": 0}, "finetune.average=0"),
        ({"model.representation": "remi", "augment.transpose": 1}, "augment.transpose=1.*model.representation=cp"),
        (
            {"model.representation": "remi", "pretrain.objective": "noise"},
            "pretrain.objective='noise'.*representation=cp",
        ),
    ],
)
def test_objectives_and_augmentation_that_cannot_be(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(Config(), changes)


FIELDS = {name: next(value for value in values if value != getattr(CLEAN, name)) for name, values in CHOICES.items()}
FIELDS["one_onset"] = "sub-beat"  # the other cannot be with notes by pitch


def test_only_what_is_switched_of_the_protocol_is_in_a_name() -> None:
    base = preset("base")
    assert base.protocol_in_force == CLEAN
    assert not [key for key in identity_fields(base, (*SECTIONS, "rnn")) if key.startswith("protocol.")]
    assert identity(base, {"protocol"}) == identity(base, ()), "which has no fields but those that are switched"
    readers = {"tokens", "mask", "pretrain", "optimizer", "finetune", "rnn"}
    for name, value in FIELDS.items():
        switched = replace(base, {f"protocol.{name}": value})
        assert getattr(switched.protocol_in_force, name) == value
        named = {section for section in readers if identity(switched, (section,)) != identity(base, (section,))}
        assert len(named) == 1, f"{name} counts with the one section that reads it"
        assert f"protocol.{name}" in identity_fields(switched, named)
        assert from_flat(flatten(switched)) == switched
        strings = {key: str(item) for key, item in flatten(switched).items() if key.startswith("protocol.")}
        assert replace(base, strings) == switched, "as MLflow has them"
        assert replace(switched, {f"protocol.{name}": ""}) == base


def test_names_are_those_from_before_the_order_was_a_field_of_the_protocol() -> None:
    """Hashes of 25 November 2026, when it was `tokens.order`."""
    base = preset("base")
    assert identity(base, ("tokens",)) == digest(
        {"fields": {"tokens.protocol": "clean", "tokens.order": "protocol", "tokens.segment": 512}, "inputs": {}}
    )
    by_pitch = replace(base, {"tokens.protocol": "paper", "protocol.order": "pitch"})
    assert identity(by_pitch, ("tokens",)) == digest(
        {"fields": {"tokens.protocol": "paper", "tokens.order": "pitch", "tokens.segment": 512}, "inputs": {}}
    )


def test_batch_arithmetic() -> None:
    config = replace(Config(), {"pretrain.batch": 24, "compute.workers": 2, "compute.micro_batch": 4})
    assert plan_batch(config) == BatchPlan(batch=24, workers=2, micro_batch=4, accumulation=3)
    with pytest.raises(ConfigError, match=r"compute\.workers=5"):
        plan_batch(replace(config, {"compute.workers": 5}))
    with pytest.raises(ConfigError, match=r"compute\.micro_batch=5"):
        plan_batch(replace(config, {"compute.micro_batch": 5}))


def test_every_setting_is_documented() -> None:
    for name, kind in get_type_hints(Config).items():
        if is_dataclass(kind):
            docs = field_docs(kind)
            assert [item.name for item in fields(kind) if not docs.get(item.name)] == [], f"section {name}"


def test_addresses_without_a_password_pass() -> None:
    refuse_secrets(
        [
            "tracking.uri=http://host:5000",
            "tracking.uri=postgresql+psycopg2://user@host/db",
            "tracking.uri=sqlite:////shared/a:b@c/mlflow.db",
            "storage.root=s3://bucket/out?region=eu-central-1&endpoint_override=127.0.0.1:9000&scheme=http",
            "storage.root=abfs://container@account.dfs.core.windows.net/out",
            "corpora.names=folder:/music/a:b@c,folder:s3://bucket,folder:s3://other/y@z",
            "storage.root=/shared/secret=x/password@home",
            "study.name=key",
        ]
    )
