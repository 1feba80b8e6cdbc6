"""The authors' checkpoints in, Hugging Face folders out."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification

from midibert_ray.model.checkpoint import (
    CheckpointError,
    OutputError,
    load_checkpoint,
    load_reference,
    save_export,
)
from midibert_ray.model.heads import MidiBertForNotes, MidiBertForSequences
from midibert_ray.model.midibert import MidiBertConfig, MidiBertForMaskedLM, MidiBertModel
from midibert_ray.music.vocabulary import CP, REMI, Vocabulary
from tests.reference import FF, HEADS, HIDDEN, LAYERS, LENGTH, reference_weights, write


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("representation", ["cp", "remi"])
@pytest.mark.parametrize(
    ("kind", "model_class", "classes"),
    [
        ("encoder", MidiBertModel, None),
        ("notes", MidiBertForNotes, 7),
        ("sequences", MidiBertForSequences, 8),
    ],
)
def test_every_kind_loads_and_sizes_come_from_shapes(
    prefix: str, representation: str, kind: str, model_class: type, classes: int | None, tmp_path: Path
) -> None:
    weights = reference_weights(representation, kind, prefix)
    model, info = load_reference(write(tmp_path / "x.ckpt", weights, valid_acc=[0.9, 0.4]))
    assert type(model) is model_class and not model.training
    config = model.config
    assert (config.representation, config.num_classes, config.max_length) == (representation, classes, LENGTH)
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (HIDDEN, LAYERS, FF)
    assert (config.num_attention_heads, config.embedding_size) == (HEADS, 8)
    assert (info.kind, info.scores) == (kind, {"epoch": 3, "valid_acc": [0.9, 0.4]})
    assert len(info.dropped) == 5 and sum(p.numel() for p in model.parameters()) == sum(
        w.numel() for name, w in weights.items() if not any(d in name for d in info.dropped)
    )


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code_is_refused_and_not_run(legacy: bool, tmp_path: Path) -> None:
    target, path = tmp_path / "created", tmp_path / "bomb.ckpt"
    document = {"state_dict": reference_weights(), "epoch": Bomb(target)}
    if legacy:
        path.write_bytes(pickle.dumps(document))
    else:
        torch.save(document, path)
    with pytest.raises(CheckpointError, match=r"bomb\.ckpt: refused"):
        load_reference(path)
    assert not target.exists()


def test_files_that_are_not_checkpoints_are_named(tmp_path: Path) -> None:
    (tmp_path / "noise.ckpt").write_bytes(b"MThd" + bytes(100))
    (tmp_path / "empty.ckpt").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.ckpt")
    write(tmp_path / "numbers.ckpt", {"a": 1})
    for name in ("noise", "empty", "list", "numbers"):
        with pytest.raises(CheckpointError, match=rf"{name}\.ckpt: "):
            load_reference(tmp_path / f"{name}.ckpt")
    with pytest.raises(FileNotFoundError):
        load_reference(tmp_path / "absent.ckpt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damage_is_said_in_one_line(zipped: bool, tmp_path: Path) -> None:
    path, draw = tmp_path / "x.ckpt", np.random.default_rng(0)
    torch.save({"state_dict": reference_weights()}, path, _use_new_zipfile_serialization=zipped)
    whole, refused = path.read_bytes(), 0
    for _ in range(100):
        damaged = bytearray(whole)
        for place in draw.integers(0, 4000, 4):
            damaged[place] = draw.integers(256)
        path.write_bytes(damaged)
        try:
            load_reference(path)  # damage within a tensor cannot be told from other weights
        except CheckpointError as error:
            refused += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert refused > 50


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.ckpt", reference_weights())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"cut\.ckpt: "):
        load_reference(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bert.something.weight": torch.zeros(1)}, "unknown tensor 'bert.something.weight'"),
        ({"bert.encoder.layer.1.output.dense.bias": None}, "do not make a complete model"),
        ({"bert.encoder.layer.0.attention.self.distance_embedding.weight": None}, "distance_embedding"),
        ({"word_emb.2.lut.weight": torch.zeros(90, 8)}, r"\(4, 18, 90, 66\) ids"),
        ({"in_linear.bias": torch.zeros(3)}, "do not make a complete model"),
    ],
)
def test_weights_of_another_model_are_refused(
    change: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    weights = {name: w for name, w in (reference_weights() | change).items() if w is not None}
    with pytest.raises(CheckpointError, match=message):
        load_reference(write(tmp_path / "x.ckpt", weights))


@pytest.mark.corpora
class TestParity:
    """What the authors' code computed on transformers 4.40 from these very files."""

    @pytest.fixture(scope="class")
    def folder(self, corpora_root: Path) -> Path:
        folder = corpora_root / "golden" / "reference_checkpoint"
        if not folder.is_dir():
            pytest.skip(f"no golden checkpoints in {folder}")
        return folder

    @pytest.mark.parametrize(
        ("file", "kind", "key"),
        [
            ("pretrain_model", "encoder", "last_hidden_state"),
            ("melody_model_best", "notes", "melody_logits"),
            ("composer_model_best", "sequences", "composer_logits_all_ones_mask"),
        ],
    )
    def test_outputs_equal_the_authors(self, folder: Path, file: str, kind: str, key: str) -> None:
        with np.load(folder / "expected.npz") as arrays:
            tokens = torch.from_numpy(arrays["tokens"].astype(np.int64))
            mask, expected = torch.from_numpy(arrays["attention_mask"]), torch.from_numpy(arrays[key])
        model, info = load_reference(folder / f"{file}.ckpt")
        assert info.kind == kind
        with torch.no_grad():
            actual = model(tokens, torch.ones_like(mask) if kind == "sequences" else mask)
        if kind == "encoder":
            actual = actual.last_hidden_state
        if kind != "sequences":
            actual, expected = actual[mask.bool()], expected[mask.bool()]
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def tiny(**other: Any) -> MidiBertConfig:
    return MidiBertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_length=16,
        **other,
    )


@pytest.mark.parametrize(("representation", "vocabulary"), [("cp", CP), ("remi", REMI)])
def test_an_export_opens_again(representation: str, vocabulary: Vocabulary, tmp_path: Path) -> None:
    model = MidiBertForNotes(tiny(num_classes=4, representation=representation)).eval()
    folder = save_export(model, tmp_path / "deep" / "model")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "vocabulary.json"]
    assert Vocabulary.from_json((folder / "vocabulary.json").read_text()) == vocabulary
    tokens = torch.randint(0, 3, (2, 16, 4) if representation == "cp" else (2, 16))
    again = AutoModelForTokenClassification.from_pretrained(folder)
    assert torch.equal(again(tokens), model(tokens))
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["model"]


def test_an_export_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: MidiBertModel, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(MidiBertModel, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_export(MidiBertModel(tiny()), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_an_export_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    folder = save_export(MidiBertModel(tiny()), tmp_path / "model", {"README.md": "a card"})
    assert (folder / "README.md").read_text() == "a card"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for taken in (folder, folder / "README.md"):
        with pytest.raises(OutputError, match="there already"):
            save_export(MidiBertModel(tiny()), taken)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_that_others_may_read_is_written(tmp_path: Path) -> None:
    folder = save_export(MidiBertModel(tiny()), tmp_path / "model")
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


@pytest.mark.parametrize("kind", [MidiBertModel, MidiBertForMaskedLM, MidiBertForNotes, MidiBertForSequences])
def test_a_checkpoint_opens_as_the_model_that_wrote_it(kind: type, tmp_path: Path) -> None:
    model = kind(tiny(num_classes=4))
    model.save_pretrained(tmp_path)
    again = load_checkpoint(tmp_path)
    assert type(again) is kind and not again.training
    weights = model.state_dict()
    assert weights.keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.state_dict().items())


def test_a_checkpoint_that_is_not_whole_is_named(tmp_path: Path) -> None:
    model = MidiBertModel(tiny())
    with pytest.raises(FileNotFoundError, match=r"config\.json and model\.safetensors not found"):
        load_checkpoint(tmp_path)
    model.save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    whole, written = weights.read_bytes(), config.read_text()
    damages: dict[str, tuple[bytes, str]] = {
        "damaged": (whole[:-100], written),
        "not a model": (whole, "[]"),
        "supported: MidiBert": (whole, written.replace('"MidiBertModel"', '"BertModel"')),
        "do not make a complete model": (whole, written.replace('"num_hidden_layers": 1', '"num_hidden_layers": 2')),
        "complete model|damaged": (whole, written.replace('"hidden_size": 16', '"hidden_size": 32')),
    }
    for message, (content, text) in damages.items():
        weights.write_bytes(content)
        config.write_text(text)
        with pytest.raises(CheckpointError, match="damaged" if message == "not a model" else message) as error:
            load_checkpoint(tmp_path)
        assert "\n" not in str(error.value)
