"""Weights to start from: what is taken of them, what they must fit, and how they count in names."""

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from midibert_ray import storage
from midibert_ray.corpora.catalogue import corpus
from midibert_ray.corpora.labels import list_pieces
from midibert_ray.data.store import TokenStore
from midibert_ray.model.folder import save_export
from midibert_ray.model.heads import MidiBertForNotes
from midibert_ray.model.midibert import MidiBertConfig, MidiBertModel
from midibert_ray.music.protocol import CLEAN
from midibert_ray.settings import shipped
from midibert_ray.settings.config import Config, ConfigError
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.presets import preset
from midibert_ray.studies.plan import StudyPlan, make
from midibert_ray.training import start
from midibert_ray.training.build import encoder_config, new_model
from midibert_ray.training.finetune import new_model as new_classifier
from midibert_ray.training.runs import run_key
from midibert_ray.training.task_data import TaskData
from tests.reference import Sizes, reference_weights, write
from tests.s3 import S3

STAGES = [{"stage": "pre-training `a`", "corpora": ["pop909"]}]


@pytest.fixture
def export(tiny: Config, tmp_path: Path) -> Path:
    """A pre-trained model of another seed."""
    model = new_model(replace(tiny, {"seed": 5}))
    model.config.lineage = STAGES
    return save_export(model, tmp_path / "export")


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    tensors = right.state_dict()
    return all(torch.equal(tensor, tensors[name]) for name, tensor in left.state_dict().items())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_pre_training_begins_with_an_export(tiny: Config, export: Path) -> None:
    fresh, theirs = new_model(tiny), new_model(replace(tiny, {"seed": 5}))
    assert start.begin(fresh, tiny) is fresh and not same(fresh, theirs)
    config = replace(tiny, {"pretrain.start": str(export), "model.dropout": 0.3})
    found = start.begin(new_model(config), config)
    assert same(found, theirs) and found.midibert.trusted
    assert found.midibert.layers[0].dropout.p == 0.3, "settings that are no weights are those of the run"
    assert found.config.lineage == [STAGES[0] | {"sha256": sha256(export / "model.safetensors")}]


def test_of_other_heads_the_encoder_is_taken(tiny: Config, tmp_path: Path) -> None:
    shape = encoder_config(tiny)
    shape.num_classes = 3
    model = MidiBertForNotes(shape)
    config = replace(tiny, {"pretrain.start": str(save_export(model, tmp_path / "melody"))})
    found, fresh = start.begin(new_model(config), config), new_model(config)
    assert same(found.midibert, model.midibert) and same(found.heads, fresh.heads)
    assert [stage["stage"] for stage in found.config.lineage or []] == [start.UNKNOWN]


def test_fine_tuning_begins_with_a_file_of_the_authors(tiny: Config, tmp_path: Path, sample_store: TokenStore) -> None:
    sizes = Sizes(hidden=32, heads=2, feed_forward=64, layers=1, length=64, embedding=256)
    path = write(tmp_path / "x.ckpt", reference_weights(sizes=sizes))
    config = replace(tiny, {"finetune.start": str(path)})
    start.require_fit(start.FINETUNE, str(path), config)
    theirs = start.open_start(start.FINETUNE, str(path))
    model = new_classifier(config, TaskData(config, sample_store), theirs)
    assert isinstance(theirs, MidiBertModel) and isinstance(model, MidiBertForNotes) and same(model.midibert, theirs)
    assert [(stage["stage"], stage["sha256"]) for stage in model.config.lineage or []] == [
        (start.AUTHORS, sha256(path))
    ]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model.hidden": 64}, r"model\.hidden=64 is not allowed; use 32, as the weights of pretrain\.start="),
        ({"model.layers": 2}, r"model\.layers=2 is not allowed; use 1"),
        ({"model.feed_forward": 32}, r"model\.feed_forward=32 is not allowed; use 64"),
        ({"model.representation": "remi"}, r"model\.representation='remi' is not allowed; use 'cp'"),
        ({"model.attention": "rope"}, r"model\.attention='rope' is not allowed; use 'relative_key_query'"),
        ({"tokens.segment": 32}, r"tokens\.segment=32 is not allowed; use 64"),
    ],
)
def test_weights_of_another_shape_are_refused(
    tiny: Config, export: Path, settings: dict[str, object], told: str
) -> None:
    start.require_fit(start.PRETRAIN, str(export), tiny)
    with pytest.raises(ConfigError, match=told):
        start.require_fit(start.PRETRAIN, str(export), replace(tiny, settings))


def test_rotary_positions_have_no_table_for_a_length(tiny: Config, tmp_path: Path) -> None:
    rope = replace(tiny, {"model.attention": "rope"})
    folder = str(save_export(new_model(rope), tmp_path / "rope"))
    start.require_fit(start.PRETRAIN, folder, replace(rope, {"tokens.segment": 32}))


def test_what_is_no_model_is_refused(tiny: Config, export: Path, tmp_path: Path) -> None:
    for given in (str(tmp_path / "nowhere"), str(tmp_path), str(tmp_path / "x.ckpt")):
        with pytest.raises(ConfigError, match=r"pretrain\.start='.*' is not allowed; use the folder of an export"):
            start.require_fit(start.PRETRAIN, given, tiny)
    odd = save_export(
        MidiBertModel(MidiBertConfig(**{**encoder_config(tiny).to_dict(), "embedding_size": 8})), tmp_path / "odd"
    )
    with pytest.raises(ConfigError, match="weights whose tokens are embedded in 256 numbers, not in 8"):
        start.require_fit(start.PRETRAIN, str(odd), tiny)
    with pytest.raises(ConfigError, match="have changed since the job began; start it again"):
        start.open_start(start.PRETRAIN, str(export), "0" * 64)
    weights = export / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(ConfigError, match=r"pretrain\.start=.* cannot be used: .*damaged"):
        start.require_fit(start.PRETRAIN, str(export), tiny)


def test_the_demo_begins_with_weights_that_have_not_seen_what_it_is_tested_on() -> None:
    demo, folder = preset("demo"), shipped.FOLDER / "melody"
    start.require_fit(start.PRETRAIN, demo.pretrain.start, demo)
    assert start.inputs(demo, start.PRETRAIN) == {start.PRETRAIN: sha256(folder / "model.safetensors")}
    *_, last = start.begin(new_model(demo), demo).config.lineage
    assert last["corpora"] == ["pop909", "lieder"]
    assert "pretrain.splits=train" in (folder / "README.md").read_text(encoding="utf-8")
    sample, whole = (
        {piece.piece: piece.split for piece in list_pieces(corpus(name), {}, CLEAN)} for name in ("sample", "pop909")
    )
    assert list(sample.values()).count("test") == 5
    assert sample == {piece: whole[piece] for piece in sample}, "held out there as here"


def test_weights_count_wherever_they_lie(tiny: Config, export: Path, tmp_path: Path) -> None:
    def key(folder: Path | str) -> str:
        return run_key(replace(tiny, {"pretrain.start": str(folder)}), ["/root/tokens/a"])

    moved = shutil.copytree(export, tmp_path / "moved")
    assert key(moved) == key(export) != key("") == run_key(tiny, ["/root/tokens/a"])
    assert run_key(replace(tiny, {"finetune.start": str(export)}), ["/root/tokens/a"]) == key("")
    shutil.rmtree(moved)
    save_export(new_model(replace(tiny, {"seed": 6})), tmp_path / "moved")
    assert key(moved) != key(export)


def test_a_study_that_starts_from_weights_pre_trains_nothing(tiny: Config, export: Path, tmp_path: Path) -> None:
    def plan(**settings: object) -> StudyPlan:
        rows = {"study.tasks": ("melody",), "study.variants": ("pretrained", "freeze-backbone", "scratch", "rnn")}
        return make(replace(tiny, rows | {key.replace("__", "."): value for key, value in settings.items()}), locate)

    def locate(config: Config, names: Iterable[str]) -> dict[str, str]:
        return {name: f"/root/tokens/{name}" for name in names}

    usual, started = plan(), plan(finetune__start=str(export))
    assert len(usual.pretrainings) == 1 and not started.pretrainings and usual.key != started.key
    assert {entry.trial.variant for entry in started.trials.values() if entry.start} == {
        "pretrained",
        "freeze-backbone",
    }
    shared = {usual.trials[key].trial.variant for key in usual.trials.keys() & started.trials.keys()}
    assert shared == {"scratch", "rnn"}, "they read no encoder"
    moved = shutil.copytree(export, tmp_path / "moved")
    assert plan(finetune__start=str(moved)).trials.keys() == started.trials.keys()
    with pytest.raises(ConfigError, match="'train-splits' is not allowed; use a row that is not about pre-training"):
        plan(finetune__start=str(export), study__variants=("train-splits",))
    with pytest.raises(ConfigError, match=r"model\.representation='remi'.*as the weights of finetune\.start="):
        plan(finetune__start=str(export), study__variants=("remi",))
    (first,) = plan(pretrain__start=str(export)).pretrainings
    assert first not in usual.pretrainings


@pytest.mark.slow
def test_an_export_in_a_bucket(tiny: Config, export: Path, s3: S3) -> None:
    there = s3.address(f"{s3.bucket()}/exports/mine")
    storage.upload(export, there, sorted(path.name for path in export.iterdir()))
    config = replace(tiny, {"pretrain.start": there})
    start.require_fit(start.PRETRAIN, there, config)
    assert same(start.begin(new_model(config), config), new_model(replace(tiny, {"seed": 5})))
    assert run_key(config, []) == run_key(replace(tiny, {"pretrain.start": str(export)}), [])
