"""Our models under Hugging Face's Trainer: their names for labels, losses and numbers of labels are its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
)

from midibert_ray.model.folder import save_export
from midibert_ray.model.heads import MidiBertForNotes, MidiBertForSequences
from midibert_ray.model.midibert import IGNORE, MidiBertConfig, MidiBertForMaskedLM, MidiBertModel, mlm_loss

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "max_length": 8}
CLASSES = 3


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """An export without heads, to start from."""
    torch.manual_seed(0)
    return save_export(MidiBertModel(MidiBertConfig(**SIZES, hidden_dropout_prob=0.0)), tmp_path / "encoder")


def music(auto: Any) -> list[dict[str, Tensor]]:
    """Segments whose labels follow from their pitches; the last two time steps are padding."""
    random = torch.Generator().manual_seed(1)
    segments = []
    for _ in range(32):
        tokens = torch.randint(0, 3, (8, 4), generator=random)
        real = torch.arange(8) < 6
        if auto is AutoModelForTokenClassification:
            labels = torch.where(real, tokens[:, 2], IGNORE)
        elif auto is AutoModelForSequenceClassification:
            tokens[:, 2] = tokens[0, 2]
            labels = tokens[0, 2]
        else:
            labels = torch.where((torch.arange(8) == 1)[:, None], tokens[:, 2:3].expand(8, 4), IGNORE)
        segments.append({"tokens": tokens, "attention_mask": real, "labels": labels})
    return segments


@pytest.mark.parametrize(
    "auto", [AutoModelForTokenClassification, AutoModelForSequenceClassification, AutoModelForMaskedLM]
)
def test_the_trainer_trains_an_export(auto: Any, encoder: Path, tmp_path: Path) -> None:
    model = auto.from_pretrained(encoder, **({} if auto is AutoModelForMaskedLM else {"num_labels": CLASSES}))
    assert torch.equal(
        model.midibert.layers[0].attention.query.weight, opened(encoder).layers[0].attention.query.weight
    )
    settings = TrainingArguments(
        output_dir=str(tmp_path / "trained"),
        num_train_epochs=6,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=settings, train_dataset=music(auto), eval_dataset=music(auto))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.5 * before
    trainer.save_model()
    again = auto.from_pretrained(tmp_path / "trained").eval()
    assert again.config.num_labels == (None if auto is AutoModelForMaskedLM else CLASSES)
    batch = {name: torch.stack([row[name] for row in music(auto)]) for name in ("tokens", "attention_mask", "labels")}
    with torch.no_grad():
        loss = again(**batch).loss
    assert float(loss) == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-3)


def opened(encoder: Path) -> MidiBertModel:
    return MidiBertModel.from_pretrained(encoder)


def test_the_number_of_labels_has_both_names() -> None:
    config = MidiBertConfig(**SIZES, num_labels=5)
    assert config.num_classes == config.num_labels == 5
    assert MidiBertConfig(**SIZES, num_classes=4).num_labels == 4
    assert MidiBertConfig(**SIZES).num_labels is None
    named = MidiBertConfig(**SIZES, num_labels=2, id2label={0: "left", 1: "right"})
    assert named.id2label == {0: "left", 1: "right"}
    assert MidiBertConfig.from_dict(named.to_dict(), num_labels=3).id2label is None, "they are another head's"
    again = MidiBertConfig.from_dict(config.to_dict())
    assert again.num_classes == 5 and again.to_dict() == config.to_dict()


def test_losses_by_hand() -> None:
    tokens = torch.randint(0, 3, (2, 8, 4))
    notes, tags, number = (
        MidiBertForNotes(MidiBertConfig(**SIZES, num_labels=3)).eval(),
        MidiBertForSequences(MidiBertConfig(**SIZES, num_labels=2)).eval(),
        MidiBertForSequences(MidiBertConfig(**SIZES, num_labels=1)).eval(),
    )
    labels = torch.full((2, 8), IGNORE)
    assert notes(tokens, labels=labels).loss == 0 and notes(tokens).loss is None
    labels[0, 3], labels[1, 5] = 1, 2
    log = notes(tokens).logits.log_softmax(-1)
    expected = -(log[0, 3, 1] + log[1, 5, 2]) / 2
    assert notes(tokens, labels=labels).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    share = tags(tokens).logits.sigmoid()
    expected = -(share[0, 0].log() + (1 - share[0, 1]).log() + (1 - share[1, 0]).log() + share[1, 1].log()) / 4
    assert tags(tokens, labels=torch.eye(2)).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    expected = (number(tokens).logits[:, 0] - torch.tensor([2.0, 5.0])).square().mean()
    assert number(tokens, labels=torch.tensor([2.0, 5.0])).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_masked_positions_are_those_with_labels() -> None:
    model = MidiBertForMaskedLM(MidiBertConfig(**SIZES)).eval()
    tokens, where = torch.randint(0, 3, (2, 8, 4)), torch.rand(2, 8) < 0.4
    labels = torch.where(where[..., None], tokens, IGNORE)
    output, plain = model(tokens, labels=labels), model(tokens, where=where)
    assert all(torch.equal(a, b) for a, b in zip(output.logits, plain.logits, strict=True)) and plain.loss is None
    assert torch.equal(output.loss, mlm_loss(plain.logits, tokens[where])["loss"])
    assert [x.shape[:2] for x in model(tokens).logits] == [(2, 8)] * 4
