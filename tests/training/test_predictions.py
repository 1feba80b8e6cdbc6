"""Predictions put together by piece, against plain loops."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from midibert_ray.data.store import TokenStore
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.training.finetune import Finetuning, TaskData, new_model
from midibert_ray.training.predictions import Predictions


def predictions(note: bool) -> Predictions:
    """500 scored positions or segments of the pieces 2, 3, 4, 6, 8."""
    random = np.random.default_rng(0)
    piece = np.sort(random.choice([2, 3, 4, 6, 8], 500))
    return Predictions(
        piece=piece,
        segment=np.arange(500),
        note=np.arange(500) if note else np.full(500, -1),
        label=random.integers(0, 4, 500) if note else piece % 4,
        logits=random.normal(size=(500, 4)).astype(np.float32) + np.eye(4, dtype=np.float32)[piece % 4] * 0.1,
    )


@pytest.mark.parametrize("note", [True, False])
def test_by_piece(note: bool) -> None:
    found = predictions(note)
    rows = defaultdict(list)
    for row, piece in enumerate(found.piece):
        rows[f"piece {piece}"].append(row)
    expected = {}
    for piece, mine in rows.items():
        hits = [int(found.logits[row].argmax() == found.label[row]) for row in mine]
        right = int(found.logits[mine].mean(axis=0).argmax() == found.label[mine[0]])
        expected[piece] = [sum(hits), len(mine), 0 if note else right]
    assert found.by_piece(lambda number: f"piece {number}") == expected
    metrics = found.metrics("test")
    if note:
        assert "test/piece_accuracy" not in metrics
    else:
        right = [row[2] for row in expected.values()]
        assert 0 < metrics["test/piece_accuracy"] == sum(right) / len(right)


@pytest.mark.parametrize("task", ["melody", "emotion"])
def test_every_test_piece_is_there(tiny: Config, short_store: TokenStore, task: str) -> None:
    config = replace(tiny, {"finetune.init": "scratch", "finetune.task": task, "tokens.segment": 32})
    data = TaskData(config, short_store)
    job = Finetuning(config, data, new_model(config, data, ""), torch.device("cpu"))
    found = job.evaluate("test")
    pieces = found.by_piece(data.splits["test"].piece_id)
    tested = {short_store.piece_id(int(i)) for i in short_store.select({"test"})}
    assert pieces.keys() == tested
    assert {scored for _, scored, _ in pieces.values()} == ({40} if task == "melody" else {2})
    total = sum(correct for correct, *_ in pieces.values()) / sum(scored for _, scored, _ in pieces.values())
    assert found.metrics("test")["test/accuracy"] == pytest.approx(total)
