"""Fine-tuning in one process, on the sample music."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from midibert_ray.config import Config
from midibert_ray.data.store import TokenStore
from midibert_ray.overrides import replace
from midibert_ray.training.finetune import IGNORE, Finetuning, TaskData, finetune, new_model
from midibert_ray.training.metrics import confusion, macro_f1

CPU = torch.device("cpu")


def trial(config: Config, store: TokenStore, encoder: str = "") -> Finetuning:
    data = TaskData(config, store)
    return Finetuning(config, data, new_model(config, data, encoder), CPU)


@pytest.fixture
def scratch(tiny: Config) -> Config:
    return replace(tiny, {"finetune.init": "scratch", "finetune.epochs": 3, "finetune.lr": 3e-3})


@pytest.fixture
def encoder(tiny: Config, tmp_path: Path) -> str:
    from midibert_ray.training.pretrain import new_model as new_encoder

    new_encoder(tiny).save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


@pytest.mark.parametrize("task", ["melody", "velocity"])
@pytest.mark.parametrize("representation", ["cp", "remi"])
@pytest.mark.parametrize("protocol", ["paper", "clean"])
def test_labels_and_masks(
    sample_store: TokenStore, scratch: Config, task: str, representation: str, protocol: str
) -> None:
    changes = {"finetune.task": task, "model.representation": representation, "tokens.protocol": protocol}
    data = TaskData(replace(scratch, changes), sample_store)
    batch, raw = data.batch("train", np.arange(4), CPU)
    scored = batch.targets != IGNORE
    is_note = torch.from_numpy(raw.note >= 0)
    assert torch.equal(scored, is_note)
    first = 1 if protocol == "paper" else 0
    expected = raw.part[raw.note >= 0].astype(int) - 1 + first
    if task == "melody":
        assert batch.targets[scored].tolist() == expected.tolist()
    assert int(batch.targets[scored].min()) >= first
    assert int(batch.targets[scored].max()) < data.outputs
    real = torch.arange(64)[None] < torch.from_numpy(raw.length)[:, None]
    # Reference behaviour: in REMI the note-level models attend to nothing but Pitch tokens.
    assert torch.equal(batch.mask, is_note if protocol == "paper" else real)


def test_a_corpus_without_splits_is_refused(scratch: Config, sample_store: TokenStore) -> None:
    class WithoutTest:
        splits = frozenset({"pretrain"})
        corpus = "asap"

    with pytest.raises(ValueError, match=r"asap has no test, train, valid; give finetune\.corpus"):
        TaskData(scratch, WithoutTest())  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", ["none", "backbone", "attention"])
def test_freezing_and_learning(sample_store: TokenStore, tiny: Config, encoder: str, variant: str) -> None:
    config = replace(tiny, {"finetune.freeze": variant, "finetune.lr": 3e-3})
    job = trial(config, sample_store, encoder)
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    figures = [job.train_epoch() for _ in range(2)]
    changed = {name for name, value in job.model.state_dict().items() if not torch.equal(value, before[name])}
    assert figures[1]["train/loss"] < figures[0]["train/loss"]
    assert changed == {name for name, parameter in job.model.named_parameters() if parameter.requires_grad}
    assert len(job.optimizer.state) == len(changed)
    assert any("layers" in name for name in changed) == (variant == "none")


def test_a_resumed_trial_goes_on_bit_for_bit(sample_store: TokenStore, scratch: Config, tmp_path: Path) -> None:
    config = replace(scratch, {"model.dropout": 0.1})
    seen: list[dict[str, Any]] = []

    def report(figures: dict[str, Any], save: Any) -> None:
        seen.append(figures)
        if len(seen) == 1:
            save(tmp_path)

    undisturbed = finetune(trial(config, sample_store), report)
    resumed = trial(config, sample_store)
    resumed.load(tmp_path)
    again: list[dict[str, Any]] = []
    predictions = finetune(resumed, lambda figures, save: again.append(figures))
    assert again == seen, "it says again what was reported with the checkpoint, and goes on"
    assert np.array_equal(predictions.logits, undisturbed.logits)


def test_test_predictions_cover_every_test_note_once(sample_store: TokenStore, scratch: Config) -> None:
    job = trial(replace(scratch, {"finetune.epochs": 1}), sample_store)
    predictions = finetune(job, lambda figures, save: None)
    chosen = sample_store.select({"test"})
    notes = [np.arange(sample_store.offsets[i], sample_store.offsets[i + 1]) for i in chosen]
    assert sorted(predictions.note.tolist()) == np.concatenate(notes).tolist()
    assert np.array_equal(predictions.label, sample_store.part[predictions.note] - 1)
    figures = predictions.figures("test")
    assert figures["test/accuracy"] == pytest.approx(float((predictions.prediction == predictions.label).mean()))


def test_the_best_epoch_is_the_one_that_is_tested(sample_store: TokenStore, scratch: Config) -> None:
    job = trial(scratch, sample_store)
    accuracies: list[float] = []
    finetune(job, lambda figures, save: accuracies.append(figures["valid/accuracy"]))
    assert job.evaluate("valid").figures("valid")["valid/accuracy"] == max(accuracies)


def test_confusion_and_f1() -> None:
    labels, predictions = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0])
    matrix = confusion(labels, predictions, 4)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert macro_f1(matrix) == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
