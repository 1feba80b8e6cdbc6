from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest

from midibert_ray.cli.arguments import field_docs
from midibert_ray.settings.config import Config, ConfigError
from midibert_ray.settings.overrides import flatten, from_flat, identity, refuse_secrets, replace, runtime_keys
from midibert_ray.settings.presets import PRESETS, preset
from midibert_ray.training.batch import BatchPlan, plan_batch

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
    for change in ({"seed": 1}, {"optimizer.lr": 1e-3}, {"compute.precision": "bf16"}, {"model.attention": "rope"}):
        assert identity(replace(base, change), SECTIONS) != before
    assert identity(base, SECTIONS, stores=["a"]) != before
    assert {"corpora.root", "storage.root", "compute.workers"} <= runtime_keys()


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
            "tracking.uri=http://host:5000/mlflow/a@b",
            "tracking.uri=postgresql+psycopg2://user@host/db",
            "tracking.uri=sqlite:////shared/a:b@c/mlflow.db",
            "storage.root=s3://bucket/out?region=eu-central-1&endpoint_override=127.0.0.1:9000&scheme=http",
            "storage.root=abfs://container@account.dfs.core.windows.net/out",
            "corpora.names=folder:/music/a:b@c,folder:s3://bucket,folder:s3://other/y@z",
            "storage.root=/shared/secret=x/password@home",
            "study.name=key",
        ]
    )
