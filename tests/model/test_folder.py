"""Models into folders, and folders into models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForTokenClassification

from midibert_ray.model.folder import ModelFileError, OutputError, load_checkpoint, save_export
from midibert_ray.model.heads import MidiBertForNotes, MidiBertForSequences
from midibert_ray.model.midibert import MidiBertConfig, MidiBertForMaskedLM, MidiBertModel
from midibert_ray.music.vocabulary import CP, REMI, Vocabulary


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
    assert (folder / "vocabulary.json").read_text() == vocabulary.to_json() + "\n"
    tokens = torch.randint(0, 3, (2, 16, 4) if representation == "cp" else (2, 16))
    again = AutoModelForTokenClassification.from_pretrained(folder)
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["model"]


def test_an_export_in_bf16_is_half_as_large_and_opens_in_fp32(tmp_path: Path) -> None:
    model = MidiBertForNotes(tiny(num_classes=4)).eval()
    whole, half = (save_export(model, tmp_path / kind, weights=kind) for kind in ("fp32", "bf16"))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (whole, half)]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.05)
    rounded = {name: tensor.bfloat16().float() for name, tensor in model.state_dict().items()}
    for again in (load_checkpoint(half), AutoModelForTokenClassification.from_pretrained(half)):
        found = again.state_dict()
        assert found.keys() == rounded.keys() and all(torch.equal(found[name], rounded[name]) for name in rounded)
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}


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
        with pytest.raises(ModelFileError, match="damaged" if message == "not a model" else message) as error:
            load_checkpoint(tmp_path)
        assert "\n" not in str(error.value)
