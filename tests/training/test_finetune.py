"""Fine-tuning in one process, on the sample music."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from midibert_ray.data.augment import augment
from midibert_ray.data.hashing import row_keys
from midibert_ray.data.store import TokenStore
from midibert_ray.settings.config import Config, ConfigError
from midibert_ray.settings.overrides import replace
from midibert_ray.training.finetune import Finetuning, TaskData, finetune, new_model
from midibert_ray.training.metrics import confusion, macro_f1
from midibert_ray.training.task_data import IGNORE, Batch

CPU = torch.device("cpu")


def trial(config: Config, store: TokenStore, encoder: str = "") -> Finetuning:
    data = TaskData(config, store)
    return Finetuning(config, data, new_model(config, data, encoder), CPU)


@pytest.fixture
def scratch(tiny: Config) -> Config:
    return replace(tiny, {"finetune.init": "scratch", "finetune.epochs": 3, "finetune.lr": 3e-3})


@pytest.fixture
def tiny(tiny: Config) -> Config:
    return replace(tiny, {"model.layers": 2})


@pytest.fixture
def encoder(tiny: Config, tmp_path: Path) -> str:
    from midibert_ray.training.build import new_model as new_encoder

    new_encoder(tiny).save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


def test_each_repair_of_fine_tuning_changes_its_own_part(sample_store: TokenStore, scratch: Config) -> None:
    def seen(**switches: object) -> tuple[TaskData, Batch]:
        changes = {f"protocol.{name}": value for name, value in switches.items()}
        config = replace(scratch, {"tokens.protocol": "paper", "model.representation": "remi"} | changes)
        data = TaskData(config, sample_store)
        return data, data.batch("train", np.arange(4), CPU)[0]

    data, paper = seen()
    scored = paper.targets != IGNORE
    assert (data.outputs, paper.packing) == (4, None)
    assert paper.mask is not None and torch.equal(paper.mask, scored)

    data, without = seen(padding_class="false")
    assert data.outputs == 3
    assert torch.equal(without.targets[scored], paper.targets[scored] - 1)
    assert without.mask is not None and torch.equal(without.mask, paper.mask)

    data, attended = seen(attends_labelled="false")
    assert data.outputs == 4
    assert torch.equal(attended.targets, paper.targets)
    assert attended.mask is not None and int(attended.mask.sum()) > int(scored.sum())
    assert data.protocol.packs_task("note") and not data.protocol.packs_task("sequence")


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


LEARNING = {
    "none": ("head.", "midibert."),
    "backbone": ("head.",),
    "attention": ("head.", "midibert.embeddings."),
    "lowest layer": ("head.", "midibert.layers.1."),
    "all layers": ("head.",),
}
"""What is frozen -> starts of the names of what learns."""


@pytest.mark.parametrize("protocol", [pytest.param("paper", marks=pytest.mark.slow), "clean"])
@pytest.mark.parametrize("frozen", LEARNING)
def test_freezing_and_learning(
    sample_store: TokenStore, tiny: Config, encoder: str, frozen: str, protocol: str
) -> None:
    layers = {"lowest layer": 1, "all layers": 2}.get(frozen, 0)
    freeze = {"finetune.freeze_layers": layers} if layers else {"finetune.freeze": frozen}
    config = replace(tiny, freeze | {"finetune.lr": 3e-3, "tokens.protocol": protocol})
    job = trial(config, sample_store, encoder)
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    metrics = [job.train_epoch() for _ in range(2)]
    changed = {name for name, value in job.model.state_dict().items() if not torch.equal(value, before[name])}
    assert metrics[1]["train/loss"] < metrics[0]["train/loss"]
    assert changed == {name for name in before if name.startswith(LEARNING[frozen])}
    names = {parameter: name for name, parameter in job.model.named_parameters()}
    assert {names[parameter] for group in job.optimizer.param_groups for parameter in group["params"]} == changed
    assert {names[parameter] for parameter in job.optimizer.state} == changed
    assert {name for name, parameter in job.model.named_parameters() if parameter.grad is not None} == changed


def test_more_frozen_layers_than_there_are_are_refused(sample_store: TokenStore, tiny: Config, encoder: str) -> None:
    config = replace(tiny, {"finetune.freeze_layers": 3})
    with pytest.raises(ConfigError, match=r"finetune\.freeze_layers=3 is not allowed; use 0 to model\.layers=2"):
        trial(config, sample_store, encoder)


def test_a_batch_in_which_nothing_is_scored_does_no_harm(short_store: TokenStore, scratch: Config) -> None:
    changes = {"model.representation": "remi", "tokens.segment": 11, "finetune.batch": 1, "model.layers": 1}
    job = trial(replace(scratch, changes), short_store)
    _, raw = job.data.batch("train", np.arange(len(job.data.splits["train"])), CPU)
    assert (raw.note < 0).all(axis=1).any(), "a segment that is the Duration of a piece's last note"
    assert np.isfinite(job.train_epoch()["train/loss"])


@pytest.mark.parametrize("task", ["melody", "emotion"])
def test_linear_heads_learn(short_store: TokenStore, scratch: Config, task: str) -> None:
    job = trial(replace(scratch, {"finetune.head": "linear", "finetune.task": task}), short_store)
    assert [name for name, _ in job.model.named_parameters() if name.startswith("head.")] == [
        "head.output.weight",
        "head.output.bias",
    ]
    metrics = [job.train_epoch() for _ in range(3)]
    assert metrics[2]["train/loss"] < metrics[0]["train/loss"]


def test_what_was_reported_with_a_checkpoint_is_said_again(
    sample_store: TokenStore, scratch: Config, tmp_path: Path
) -> None:
    config = replace(scratch, {"finetune.epochs": 1})
    seen: list[dict[str, Any]] = []

    def report(metrics: dict[str, Any], save: Any) -> None:
        seen.append(metrics)
        save(tmp_path)

    finetune(trial(config, sample_store), report)
    resumed = trial(config, sample_store)
    resumed.load(tmp_path)
    again: list[dict[str, Any]] = []
    finetune(resumed, lambda metrics, save: again.append(metrics))
    assert again == seen


def test_test_predictions_cover_every_test_note_once(sample_store: TokenStore, scratch: Config) -> None:
    job = trial(replace(scratch, {"finetune.epochs": 1}), sample_store)
    predictions = finetune(job, lambda metrics, save: None)
    chosen = sample_store.select({"test"})
    notes = [np.arange(sample_store.offsets[i], sample_store.offsets[i + 1]) for i in chosen]
    assert sorted(predictions.note.tolist()) == np.concatenate(notes).tolist()
    assert np.array_equal(predictions.label, sample_store.part[predictions.note] - 1)
    metrics = predictions.metrics("test")
    assert metrics["test/accuracy"] == pytest.approx(float((predictions.prediction == predictions.label).mean()))


def test_the_best_epoch_is_the_one_that_is_tested(sample_store: TokenStore, scratch: Config) -> None:
    """It is the one that is saved; no other is, as long as a trial takes no time."""
    job = trial(replace(scratch, {"finetune.epochs": 6, "finetune.lr": 1e-2, "finetune.patience": 0}), sample_store)
    accuracies: list[float] = []
    saved: list[bool] = []

    def report(metrics: dict[str, Any], save: Any) -> None:
        accuracies.append(metrics["valid/accuracy"])
        saved.append(save is not None)

    finetune(job, report)
    again = job.evaluate("valid")
    assert again.metrics("valid")["valid/accuracy"] == max(accuracies)
    assert job.valid is not None and np.array_equal(job.valid.logits, again.logits)
    best = [max(accuracies[:epoch], default=0.0) for epoch in range(6)]
    assert saved == [accuracy > before for accuracy, before in zip(accuracies, best, strict=True)]
    assert not all(saved)


def test_a_validation_of_some_segments_asks_the_same_ones_of_every_seed_and_a_test_all(
    sample_store: TokenStore, scratch: Config
) -> None:
    config = replace(scratch, {"finetune.valid_segments": 3, "finetune.train_segments": 5})
    job, other = (trial(replace(config, {"seed": seed}), sample_store) for seed in (1, 2))
    finetune(job, lambda metrics, save: None)
    assert job.valid is not None
    asked = np.unique(job.valid.segment)
    assert len(asked) == 3 < len(job.data.splits["valid"])
    assert np.array_equal(asked, job.data.validated) and np.array_equal(asked, other.data.validated)
    assert np.array_equal(np.unique(job.evaluate("train").segment), job.data.learned)
    assert len(np.unique(job.evaluate("test").segment)) == len(job.data.splits["test"])
    with pytest.raises(ConfigError, match=r"finetune\.valid_segments=-1"):
        replace(config, {"finetune.valid_segments": -1})


def test_a_trial_goes_on_from_its_best_epoch_to_the_same_figures(
    sample_store: TokenStore, scratch: Config, tmp_path: Path
) -> None:
    config = replace(scratch, {"finetune.epochs": 6, "finetune.lr": 1e-2, "finetune.patience": 0})
    seen: list[dict[str, Any]] = []

    def report(metrics: dict[str, Any], save: Any) -> None:
        seen.append(metrics)
        if save:
            save(tmp_path)

    said = finetune(trial(config, sample_store), report)
    resumed, again = trial(config, sample_store), list[dict[str, Any]]()
    resumed.load(tmp_path)
    assert resumed.progress.epoch < 6
    after = finetune(resumed, lambda metrics, save: again.append(metrics))
    assert again == seen[resumed.progress.epoch - len(again) :]
    assert np.array_equal(after.logits, said.logits)


def test_the_mean_of_the_last_epochs_is_validated_and_kept(
    sample_store: TokenStore, scratch: Config, tmp_path: Path
) -> None:
    config = replace(scratch, {"finetune.average": 2, "finetune.patience": 0})
    plain, job = trial(replace(config, {"finetune.average": 1}), sample_store), trial(config, sample_store)
    trained, own = zip(*((plain.train_epoch(), weights(plain)) for _ in range(3)), strict=True)
    seen: list[dict[str, Any]] = []

    def report(metrics: dict[str, Any], save: Any) -> None:
        seen.append(metrics)
        if len(seen) == 2:
            job.save(tmp_path)  # be it the best so far or not

    finetune(job, report)
    assert [metrics["train/loss"] for metrics in seen] == [metrics["train/loss"] for metrics in trained]
    best = int(np.argmax([metrics["valid/accuracy"] for metrics in seen]))
    for name, value in job.best.items():
        mean = (own[max(0, best - 1)][name] + own[best][name]) / 2
        assert torch.allclose(value, mean, atol=1e-7), name
    again = trial(config, sample_store)
    again.load(tmp_path)
    resumed: list[dict[str, Any]] = []
    finetune(again, lambda metrics, save: resumed.append(metrics))
    assert resumed == seen[1:]


def weights(job: Finetuning) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in job.model.state_dict().items()}


def test_confusion_and_f1() -> None:
    labels, predictions = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0])
    matrix = confusion(labels, predictions, 4)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert macro_f1(matrix) == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)


def test_augmented_notes_keep_their_labels(sample_store: TokenStore, scratch: Config) -> None:
    config = replace(scratch, {"augment.transpose": 6, "augment.thin": 0.4, "finetune.task": "melody"})
    data, rows = TaskData(config, sample_store), np.arange(4)
    keys = row_keys(1, 2, 3, torch.arange(4))
    plain, _ = data.batch("train", rows, CPU)
    changed, raw = data.batch("train", rows, CPU, keys)
    after = augment(
        plain.tokens, torch.from_numpy(data.splits["train"].gather(rows).length), keys, transpose=6, thin=0.4
    )
    assert torch.equal(changed.tokens, after.tokens)
    assert raw.length.tolist() == after.length.tolist()
    for row, count in enumerate(raw.length):
        assert torch.equal(changed.targets[row, :count], plain.targets[row, after.source[row, :count]])
        assert (changed.targets[row, count:] == IGNORE).all()
    assert torch.equal(data.batch("valid", rows, CPU)[0].tokens, data.batch("valid", rows, CPU, None)[0].tokens)


def test_only_the_melody_moves_an_octave(sample_store: TokenStore, scratch: Config) -> None:
    config = replace(scratch, {"finetune.octave": 1.0, "finetune.task": "melody"})
    data, rows = TaskData(config, sample_store), np.arange(4)
    plain, before = data.batch("train", rows, CPU)
    changed, _ = data.batch("train", rows, CPU, row_keys(1, 2, 3, torch.arange(4)))
    melody = data.classes.index("melody")
    moved = set()
    for row, count in enumerate(before.length):
        notes = [
            sorted(zip(batch.tokens[row, :count, 2].tolist(), batch.targets[row, :count].tolist(), strict=True))
            for batch in (plain, changed)
        ]
        rest = [[note for note in some if note[1] != melody] for some in notes]
        assert rest[0] == rest[1]
        own = [np.array([pitch for pitch, label in some if label == melody]) for some in notes]
        moved |= set((own[1] - own[0]).tolist())
    assert moved <= {-12, 0, 12}
    assert len(moved) > 1
    velocity = replace(config, {"finetune.task": "velocity"})
    same, _ = TaskData(velocity, sample_store).batch("train", rows, CPU, row_keys(1, 2, 3, torch.arange(4)))
    assert torch.equal(same.tokens, plain.tokens)


def test_a_trial_learns_from_augmented_segments_and_resumes_the_same(
    sample_store: TokenStore, scratch: Config, tmp_path: Path
) -> None:
    config = replace(scratch, {"augment.transpose": 6, "augment.shift": 7, "finetune.epochs": 2})
    whole, plain = trial(config, sample_store), trial(replace(config, {"augment.stage": "pretrain"}), sample_store)
    first = whole.train_epoch()
    assert first != plain.train_epoch()
    whole.save(tmp_path)
    again = trial(config, sample_store)
    again.load(tmp_path)
    assert again.train_epoch() == pytest.approx(whole.train_epoch(), rel=1e-6)
