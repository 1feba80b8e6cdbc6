"""Numbers and tags: metrics by hand and beside scikit-learn, and small trials on real music."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk

from midibert_ray.data.store import TokenStore
from midibert_ray.model.heads import MidiBertForNotes, MidiBertForSequences
from midibert_ray.model.midibert import MidiBertModel
from midibert_ray.music.tasks import TASKS, Task
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.training import metrics
from midibert_ray.training.build import encoder_config
from midibert_ray.training.finetune import Finetuning, finetune, new_model
from midibert_ray.training.predictions import NumberPredictions, TagPredictions
from midibert_ray.training.probe import probe
from midibert_ray.training.task_data import TaskData
from tests.stores import Piece, beginnings, write_store

CPU = torch.device("cpu")
HEIGHT = Task(name="height", level="sequence", kind="number", classes=(), corpus="made", metric="r2")
MOOD = Task(
    name="mood",
    level="sequence",
    kind="tags",
    classes=("high", "busy", "odd"),
    corpus="made",
    metric="average_precision",
)
BUSY = Task(name="busy", level="sequence", classes=("no", "yes"), corpus="made")


def labelled(pieces: list[Piece], task: Task, folder: Path) -> TokenStore:
    """Pieces with their mean pitch, and what is told from it and from their density, as labels."""
    made = []
    for number, (piece, split, _, tokens) in enumerate(pieces):
        pitch, notes_a_beat = tokens.tokens[:, 2].mean() + 22, 4 * len(tokens) / tokens.onset[-1]
        busy = bool(notes_a_beat > 3.2)
        tags = {"high": pitch > 62, "busy": busy, "odd": number % 2 == 1}
        label = {"height": f"{pitch:.2f}", "mood": ";".join(tag for tag, holds in tags.items() if holds)}
        made.append((piece, split, label.get(task.name, "yes" if busy else "no"), tokens))
    return TokenStore.open(write_store(folder / task.name, made), str(folder / "cache"))


@pytest.fixture
def scratch(tiny: Config) -> Config:
    changes = {"finetune.init": "scratch", "finetune.epochs": 3, "finetune.lr": 3e-3, "model.layers": 2}
    return replace(tiny, changes | {"tokens.segment": 128})


# ------------------------------------------------------------------------------------ metrics


def test_numbers_by_hand() -> None:
    truth, said = np.array([1.0, 2.0, 3.0, 6.0]), np.array([2.0, 1.0, 3.0, 5.0])
    assert metrics.r_squared(truth, said) == pytest.approx(1 - 3 / 14)  # mean 3; 4 + 1 + 0 + 9
    assert metrics.r_squared(truth, said) == pytest.approx(sk.r2_score(truth, said))
    assert metrics.spearman(truth, said) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert metrics.spearman(truth, said) == pytest.approx(stats.spearmanr(truth, said).statistic)
    assert metrics.r_squared(np.ones(3), said[:3]) == metrics.spearman(np.ones(3), said[:3]) == 0


def test_average_precision_by_hand() -> None:
    truth = np.array([[1, 0, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0]])
    scores = np.array([[0.9, 0.1, 0.5], [0.8, 0.1, 0.5], [0.7, 0.1, 0.2], [0.6, 0.1, 0.5]])
    # The first tag: right at ranks 1 and 3. The second does not occur. The third: 1 of 3 that are equal, then 2 of 4.
    first, third = (1 + 2 / 3) / 2, (1 / 3 + 2 / 4) / 2
    assert metrics.mean_average_precision(truth, scores)[0] == pytest.approx((first + third) / 2)
    assert metrics.mean_average_precision(np.zeros((4, 3)), scores)[0] == 0


def test_average_precision_of_weighted_pieces() -> None:
    random = np.random.default_rng(0)
    truth = (random.random((60, 4)) < 0.3).astype(float)
    scores = random.random((60, 4)).round(1)  # with ties
    weights = random.integers(0, 3, (5, 60)).astype(float)
    for drawn, value in zip(weights, metrics.mean_average_precision(truth, scores, weights), strict=True):
        each = [sk.average_precision_score(truth[:, tag], scores[:, tag], sample_weight=drawn) for tag in range(4)]
        assert value == pytest.approx(np.mean(each))


def test_f1_of_tags() -> None:
    random = np.random.default_rng(1)
    truth, said = random.random((2, 50, 4)) < 0.4
    truth[:, 3] = said[:, 3] = False  # a tag that nobody has or is given does not count
    assert metrics.macro_tag_f1(truth, said) == pytest.approx(sk.f1_score(truth[:, :3], said[:, :3], average="macro"))


def test_a_number_of_a_piece_is_the_mean_of_its_segments() -> None:
    found = NumberPredictions(
        piece=np.array([4, 4, 7]),
        segment=np.arange(3),
        note=np.full(3, -1),
        label=np.array([10.0, 10.0, 20.0], np.float32),
        logits=np.array([[8.0], [14.0], [18.0]], np.float32),
    )
    assert found.by_piece(str) == {"4": [10.0, 11.0], "7": [20.0, 18.0]}
    scores = found.metrics("test")
    assert scores["test/mae"] == 1.5
    assert scores["test/loss"] == 2.5
    assert scores["test/r2"] == pytest.approx(1 - 5 / 50)
    assert scores["test/spearman"] == pytest.approx(1)


def test_tags_of_a_piece_are_those_of_the_mean_of_its_logits() -> None:
    found = TagPredictions(
        piece=np.array([0, 0, 1]),
        segment=np.arange(3),
        note=np.full(3, -1),
        label=np.array([[1, 0], [1, 0], [0, 1]], np.float32),
        logits=np.array([[3, -1], [-1, -1], [-2, -3]], np.float32),
    )
    share = [1 / (1 + np.exp(-value)) for value in (1, -1, -2, -3)]
    assert found.by_piece(str)["0"] == pytest.approx([1, 0, share[0], share[1]])
    assert found.by_piece(str)["1"] == pytest.approx([0, 1, share[2], share[3]])
    scores = found.metrics("test")
    assert scores["test/accuracy"] == 0.75
    assert scores["test/f1"] == pytest.approx((1 + 0) / 2)
    assert scores["test/average_precision"] == pytest.approx((1 + 1 / 2) / 2)
    right = [share[0], 1 - share[1], 1 - share[2], share[3]]
    assert scores["test/loss"] == pytest.approx(-np.log(right).mean())


# ------------------------------------------------------------------------------------ trials


def test_a_number_is_learned_in_its_own_units(scratch: Config, sample_pieces: list[Piece], tmp_path: Path) -> None:
    data = TaskData(scratch, labelled(beginnings(sample_pieces[::3], 600), HEIGHT, tmp_path), HEIGHT)
    job = Finetuning(scratch, data, new_model(scratch, data, ""), CPU)
    learned = data.learned_labels()
    assert (job.objective.mean, job.objective.scale) == pytest.approx((learned.mean(), learned.std()), rel=1e-5)
    before = job.evaluate("train").metrics("train")
    reports: list[dict[str, float]] = []
    predictions = finetune(job, lambda metrics, write: reports.append(metrics))
    assert job.evaluate("train").metrics("train")["train/loss"] < before["train/loss"]
    best = max(each["valid/r2"] for each in reports)
    assert job.progress.accuracy == pytest.approx(best) == reports[-1]["valid/best"]
    assert 40 < predictions.logits.mean() < 90, "MIDI numbers, not standard scores"
    truth = {data.splits["test"].piece_id(piece): float(data.splits["test"].label(piece) or "") for piece in range(2)}
    told = predictions.by_piece(data.splits["test"].piece_id)
    assert {name: told[name][0] for name in truth} == pytest.approx(truth, rel=1e-5)
    job.save_pretrained(tmp_path / "model")
    batch, _ = data.batch("test", np.arange(2), CPU)
    opened = MidiBertForSequences.from_pretrained(tmp_path / "model").eval()
    said = opened(batch.tokens, batch.mask).logits.detach().numpy()
    np.testing.assert_allclose(said, predictions.logits[:2], rtol=1e-3)


def test_the_loss_of_numbers_and_tags(scratch: Config, sample_pieces: list[Piece], tmp_path: Path) -> None:
    data = TaskData(scratch, labelled(beginnings(sample_pieces[::3], 600), HEIGHT, tmp_path), HEIGHT)
    objective = Finetuning(scratch, data, new_model(scratch, data, ""), CPU).objective
    objective.mean, objective.scale = 60.0, 5.0
    loss, count = objective.loss(torch.tensor([[1.0], [0.0]]), torch.tensor([60.0, 70.0]))
    assert (float(loss), float(count)) == (1 + 4, 2)
    config = replace(scratch, {"finetune.class_balance": True})
    data = TaskData(config, labelled(beginnings(sample_pieces[::3], 600), MOOD, tmp_path), MOOD)
    objective = Finetuning(config, data, new_model(config, data, ""), CPU).objective
    targets, logits = torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.0, 2.0]])
    share = data.learned_labels().mean(axis=0)
    weight = (1 - share) / share
    loss, count = objective.loss(logits, targets)
    expected = weight[0] * np.log(2) + np.log(2) + weight[2] * np.log1p(np.exp(-2))
    assert (float(loss), float(count)) == (pytest.approx(expected, rel=1e-5), 3)
    right, scored = objective.hits(logits, targets)
    assert (int(right), int(scored)) == (2, 3)


def test_tags_are_learned(scratch: Config, sample_pieces: list[Piece], tmp_path: Path) -> None:
    data = TaskData(scratch, labelled(beginnings(sample_pieces[::3], 600), MOOD, tmp_path), MOOD)
    assert (data.outputs, data.classes) == (3, MOOD.classes)
    job = Finetuning(scratch, data, new_model(scratch, data, ""), CPU)
    before = job.evaluate("train").metrics("train")["train/loss"]
    reports: list[dict[str, float]] = []
    predictions = finetune(job, lambda metrics, write: reports.append(metrics))
    assert job.evaluate("train").metrics("train")["train/loss"] < before
    assert job.progress.accuracy == pytest.approx(max(each["valid/average_precision"] for each in reports))
    assert predictions.label.shape == predictions.logits.shape == (len(data.splits["test"]), 3)
    assert all(0 < each["train/accuracy"] <= 1 for each in reports)


# ------------------------------------------------------------------------------------ linear probes


@pytest.mark.parametrize("task", [HEIGHT, MOOD, BUSY, TASKS["melody"]], ids=lambda task: task.name)
def test_a_probe_is_a_model_like_any_other(
    scratch: Config, sample_pieces: list[Piece], task: Task, tmp_path: Path
) -> None:
    """Its head, on the encoder up to the chosen layer, gives what the probe has found; and the encoder is as it was."""
    encoder = tmp_path / "encoder"
    torch.manual_seed(0)
    MidiBertModel(encoder_config(scratch)).save_pretrained(encoder)
    changes = {"finetune.init": "pretrained", "finetune.freeze": "backbone", "finetune.model": "probe"}
    config = replace(scratch, changes)
    data = TaskData(config, labelled(beginnings(sample_pieces[::3], 600), task, tmp_path), task)
    found = []
    for number in range(2):
        job = Finetuning(config, data, new_model(config, data, str(encoder)), CPU)
        predictions = probe(job)
        found.append(predictions.logits)
        layer = int(job.metrics["probe/layer"])
        assert 1 <= layer <= 2
        assert len(job.model.midibert.layers) == layer
        assert job.progress.accuracy == job.evaluate("valid").metrics("valid")[f"valid/{task.metric}"]
        job.save_pretrained(tmp_path / f"model-{number}")
    assert np.array_equal(*found), "the same seed, the same probe"
    kind = MidiBertForNotes if task.level == "note" else MidiBertForSequences
    opened, first = kind.from_pretrained(tmp_path / "model-0").eval(), MidiBertModel.from_pretrained(encoder)
    assert opened.config.num_hidden_layers == layer
    assert torch.equal(opened.midibert.layers[0].feed_forward.weight, first.layers[0].feed_forward.weight)
    batch, _ = data.batch("test", np.arange(3), CPU)
    said = opened(batch.tokens, batch.mask).logits.detach().numpy()
    if task.level == "note":
        said = said[batch.targets.numpy() >= 0]
    np.testing.assert_allclose(said, found[0][: len(said)], rtol=1e-2, atol=1e-3)


def test_a_probe_finds_what_a_linear_head_can(scratch: Config, sample_pieces: list[Piece], tmp_path: Path) -> None:
    """Even a random encoder tells the mean pitch of a segment, most of which is that of its piece."""
    torch.manual_seed(0)
    MidiBertModel(encoder_config(scratch)).save_pretrained(tmp_path / "encoder")
    changes = {"finetune.init": "pretrained", "finetune.freeze": "backbone", "finetune.model": "probe"}
    config = replace(scratch, changes)
    data = TaskData(config, labelled(beginnings(sample_pieces, 600), HEIGHT, tmp_path), HEIGHT)
    job = Finetuning(config, data, new_model(config, data, str(tmp_path / "encoder")), CPU)
    probe(job)
    assert job.evaluate("train").metrics("train")["train/r2"] > 0.5
