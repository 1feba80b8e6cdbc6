"""What a recipe decides: rates, what is better, when it is over; and both kinds of model learn by theirs."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from midibert_ray.data.store import TokenStore
from midibert_ray.music.tasks import note_labels
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.training.finetune import Finetuning, TaskData, finetune, new_model
from midibert_ray.training.recipes import AdamwRecipe, SgdRecipe, TrialProgress
from midibert_ray.training.task_data import IGNORE

CPU = torch.device("cpu")


def trial(config: Config, store: TokenStore) -> Finetuning:
    data = TaskData(config, store)
    return Finetuning(config, data, new_model(config, data, ""), CPU)


@pytest.fixture
def scratch(tiny: Config) -> Config:
    return replace(tiny, {"finetune.init": "scratch", "finetune.epochs": 3, "finetune.lr": 3e-3, "model.layers": 2})


@pytest.fixture
def rnn(tiny: Config) -> Config:
    """An epoch of the emotion task takes a tenth of a second."""
    changes = {
        "finetune.model": "rnn",
        "finetune.task": "emotion",
        "tokens.segment": 16,
        "rnn.epochs": 3,
        "rnn.lr": 0.05,
    }
    return replace(tiny, changes)


def test_the_authors_settings(tiny: Config) -> None:
    rates = {"melody": 1e-3, "velocity": 1e-3, "composer": 1e-2, "emotion": 5e-2}
    for task, rate in rates.items():
        recipe = SgdRecipe(replace(tiny, {"finetune.task": task}))
        (group,) = recipe.optimizer(nn.Linear(2, 2)).param_groups
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (rate, 0.9, 0)
        assert (recipe.batch, recipe.epochs) == (16, 500)
    own = SgdRecipe(replace(tiny, {"rnn.lr": 0.5, "rnn.batch": 3}))
    assert (own.rate, own.batch) == (0.5, 3)


@pytest.mark.parametrize("protocol", ["paper", "clean"])
def test_the_rate_falls_after_a_bad_stretch(tiny: Config, protocol: str) -> None:
    changes = {"tokens.protocol": protocol, "rnn.patience": 2, "rnn.stops": 2, "rnn.factor": 0.5}
    recipe, progress, model = SgdRecipe(replace(tiny, changes)), TrialProgress(), nn.Linear(1, 1, bias=False)
    optimizer = recipe.optimizer(model)
    best: dict[str, torch.Tensor] = {}
    factors, weights = [], []
    for weight, loss in enumerate([5.0, 4.0, 4.0, 6.0, 3.0, 3.5, math.nan]):
        nn.init.constant_(model.weight, weight)
        optimizer.state[model.weight] = {"momentum_buffer": torch.ones(1, 1)}
        assert not recipe.over(progress)
        progress.judge(recipe.score({"valid/loss": loss, "valid/accuracy": loss}))
        if progress.bad == 0:
            best = {"weight": model.weight.detach().clone()}
        recipe.after_validation(progress, model, optimizer, best)
        factors.append(recipe.factor(progress, 100))
        weights.append(model.weight.item())
        assert bool(optimizer.state) == (weight not in (3, 6)), "a new start has no momentum"
    assert factors == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    # The authors' code goes on from where it stands.
    assert weights == ([0, 1, 2, 1, 4, 5, 4] if protocol == "clean" else [0, 1, 2, 3, 4, 5, 6])
    assert recipe.over(progress)
    assert recipe.over(TrialProgress(epoch=500))


def test_warm_up_and_fall(scratch: Config, sample_store: TokenStore) -> None:
    recipe = AdamwRecipe(replace(scratch, {"finetune.warmup": 0.2}))
    factors = [recipe.factor(TrialProgress(step=step), 10) for step in range(11)]
    assert factors == pytest.approx([0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0])
    assert AdamwRecipe(scratch).factor(TrialProgress(step=9), 10) == 1
    job = trial(replace(scratch, {"finetune.warmup": 0.5, "finetune.epochs": 2}), sample_store)
    steps = job.order.batches_per_epoch
    job.train_epoch()
    assert job.optimizer.param_groups[0]["lr"] == 3e-3  # the top is reached after half of the steps
    job.train_epoch()
    assert job.optimizer.param_groups[0]["lr"] == pytest.approx(3e-3 / steps)


@pytest.mark.parametrize("protocol", ["paper", "clean"])
def test_lower_layers_learn_more_slowly(scratch: Config, sample_store: TokenStore, protocol: str) -> None:
    changes = {"finetune.layer_decay": 0.5, "finetune.lr": 1.0, "tokens.protocol": protocol}
    job = trial(replace(scratch, changes), sample_store)
    names = {parameter: name for name, parameter in job.model.named_parameters()}
    rates = {names[p]: group["lr"] for group in job.optimizer.param_groups for p in group["params"]}
    assert rates.keys() == set(names.values())
    expected = {"head.": 1, "midibert.layers.1.": 0.5, "midibert.layers.0.": 0.25}
    for name, rate in rates.items():
        # Embeddings, token type and the norm behind them stand below all layers.
        assert rate == next((value for start, value in expected.items() if name.startswith(start)), 0.125), name


def test_one_rate_for_all_is_one_group(scratch: Config, sample_store: TokenStore) -> None:
    (group,) = trial(scratch, sample_store).optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (3e-3, 0.01)


@pytest.mark.parametrize("protocol", ["paper", "clean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_balanced_classes_are_torch_s_weighted_mean(
    scratch: Config, sample_store: TokenStore, protocol: str, smoothing: float
) -> None:
    changes = {
        "tokens.protocol": protocol,
        "finetune.task": "velocity",
        "finetune.class_balance": True,
        "finetune.label_smoothing": smoothing,
    }
    job = trial(replace(scratch, changes), sample_store)
    pieces = sample_store.select({"train"})
    notes = np.concatenate([np.arange(*sample_store.offsets[[piece, piece + 1]]) for piece in pieces])
    labels = note_labels(job.data.task, sample_store)[notes].astype(int)
    labels -= protocol == "clean"
    counts = np.bincount(labels, minlength=job.data.outputs)
    weights = np.array([1 / count if count else 0 for count in counts])
    weights /= weights[labels].mean()
    assert job.objective.weights is not None
    assert job.objective.weights.tolist() == pytest.approx(weights.tolist())
    if protocol == "paper":
        assert job.objective.weights[0] == 0, "nothing is labelled padding"
    batch, _ = job.data.batch("train", np.arange(5), CPU)
    logits = torch.randn(*batch.targets.shape, job.data.outputs, generator=torch.Generator().manual_seed(0))
    loss, weight = job.objective.loss(logits.flatten(0, 1), batch.targets.flatten())
    scored = batch.targets != IGNORE
    expected = F.cross_entropy(
        logits[scored], batch.targets[scored], torch.tensor(weights, dtype=torch.float32), label_smoothing=smoothing
    )
    torch.testing.assert_close(loss / weight, expected)


def test_smoothing_changes_training_and_not_validation(scratch: Config, sample_store: TokenStore) -> None:
    plain, smooth = (trial(replace(scratch, {"finetune.label_smoothing": s}), sample_store) for s in (0.0, 0.5))
    assert np.array_equal(plain.evaluate("valid").logits, smooth.evaluate("valid").logits)
    assert plain.evaluate("valid").metrics("valid") == smooth.evaluate("valid").metrics("valid")
    batch, _ = plain.data.batch("train", np.arange(2), CPU)
    logits = torch.zeros(2, 64, 3)
    logits[..., 0] = 2
    targets = batch.targets.flatten()
    log = logits.log_softmax(-1).flatten(0, 1)
    scored = targets != IGNORE
    expected = -(0.5 * log[scored, targets[scored]] + 0.5 * log[scored].mean(-1)).mean()
    loss, weight = smooth.objective.loss(logits.flatten(0, 1), targets)
    torch.testing.assert_close(loss / weight, expected)


@pytest.mark.parametrize("protocol", ["paper", "clean"])
@pytest.mark.parametrize(("task", "representation"), [("melody", "cp"), ("emotion", "cp"), ("emotion", "remi")])
def test_recurrent_models_learn(
    rnn: Config, short_store: TokenStore, protocol: str, task: str, representation: str
) -> None:
    changes = {"tokens.protocol": protocol, "finetune.task": task, "model.representation": representation}
    job = trial(replace(rnn, changes), short_store)
    batch, raw = job.data.batch("train", np.arange(3), CPU)
    assert batch.packing is None
    if protocol == "paper":
        assert batch.mask is None, "the authors' code reads padding like music"
    else:
        assert batch.mask is not None
        assert batch.mask.sum(1).tolist() == raw.length.tolist()
    reports: list[dict[str, Any]] = []
    predictions = finetune(job, lambda metrics, save: reports.append(metrics))
    assert reports[-1]["train/loss"] < reports[0]["train/loss"]
    best = min(reports, key=lambda metrics: metrics["valid/loss"])
    assert job.progress.best == -best["valid/loss"]
    assert reports[-1]["valid/best"] == best["valid/accuracy"]
    assert job.evaluate("valid").metrics("valid")["valid/loss"] == best["valid/loss"]
    assert predictions.logits.shape[1] == job.data.outputs


@pytest.mark.parametrize("kind", ["rnn, paper", "rnn, clean", "midibert"])
def test_a_resumed_trial_goes_on_bit_for_bit(
    rnn: Config, scratch: Config, sample_store: TokenStore, short_store: TokenStore, tmp_path: Path, kind: str
) -> None:
    """Saved where the recurrent one's rate has fallen once, and the other's is on its way down."""
    options = {"model.dropout": 0.1, "finetune.warmup": 0.2, "finetune.layer_decay": 0.8, "finetune.patience": 0}
    config, store = replace(scratch, options), sample_store
    if kind != "midibert":
        falling = {"rnn.patience": 1, "rnn.lr": 2.0, "rnn.epochs": 5, "tokens.protocol": kind.split()[-1]}
        config, store = replace(rnn, falling), short_store
    seen: list[dict[str, Any]] = []

    def report(metrics: dict[str, Any], save: Any) -> None:
        seen.append(metrics)
        if not (tmp_path / "trial.pt").exists() and (kind == "midibert" or undisturbed.progress.falls == 1):
            save(tmp_path)
            seen[:-1] = []

    undisturbed = trial(config, store)
    expected = finetune(undisturbed, report)
    resumed = trial(config, store)
    resumed.load(tmp_path)
    assert resumed.progress.seconds == torch.load(tmp_path / "trial.pt", weights_only=True)["progress"]["seconds"] > 0
    again: list[dict[str, Any]] = []
    predictions = finetune(resumed, lambda metrics, save: again.append(metrics))
    assert len(again) > 1
    assert again == seen
    assert np.array_equal(predictions.logits, expected.logits)
    assert resumed.progress.falls == undisturbed.progress.falls
    assert resumed.progress.seconds > 0


def test_a_recurrent_model_that_diverges_names_its_own_rate(rnn: Config, short_store: TokenStore) -> None:
    job = trial(replace(rnn, {"rnn.lr": 1e30}), short_store)
    with pytest.raises(FloatingPointError, match=r"not finite at step \d in epoch 1; lower rnn\.lr \(it was 1e\+30\)"):
        job.train_epoch()
