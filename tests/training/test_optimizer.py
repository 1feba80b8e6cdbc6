"""Optimizers and schedules, against their formulas."""

import math

import pytest
import torch
from torch import nn

from midibert_ray.music.protocol import CLEAN, PAPER
from midibert_ray.settings.config import OptimizerConfig
from midibert_ray.training.optimizer import adamw, rate_factor


def test_warm_up_and_courses() -> None:
    def course(**settings: object) -> list[float]:
        factor = rate_factor(OptimizerConfig(**settings), steps=10)
        return [round(factor(step), 3) for step in range(11)]

    assert course() == [1.0] * 11
    assert course(warmup_steps=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert course(schedule="linear", warmup_steps=2) == [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0]
    cosine = course(schedule="cosine")
    assert (cosine[0], cosine[5], cosine[10]) == (1, 0.5, 0)


def test_decay_groups() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    rates = {"lr": 1e-3, "eps": 1e-6, "weight_decay": 0.01}
    everything = adamw(model.parameters(), CLEAN, **rates)
    assert [group["weight_decay"] for group in everything.param_groups] == [0.01]
    spared = adamw(model.parameters(), CLEAN, decay="matrices", **rates)
    sizes = {group["weight_decay"]: [list(p.shape) for p in group["params"]] for group in spared.param_groups}
    assert sizes == {0.01: [[3, 3]], 0.0: [[3], [3], [3]]}


@pytest.mark.parametrize("size", [1.0, 1e-5, 1e-7])
def test_the_authors_adamw_step_by_step(size: float) -> None:
    """transformers 4: bias-corrected, eps 1e-6 before the correction, decay 0.01 of everything after the step."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(5, 3, generator=generator, dtype=torch.float64))
    optimizer = adamw([weight], PAPER, lr=2e-2, eps=1e-6, weight_decay=0.01)
    expected, first, second = weight.detach().clone(), 0.0, 0.0
    for step in range(1, 8):
        gradient = size * torch.randn(5, 3, generator=generator, dtype=torch.float64)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        rate = 2e-2 * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        expected = expected - rate * first / (second.sqrt() + 1e-6)
        expected = expected - 2e-2 * 0.01 * expected
        weight.grad = gradient
        optimizer.step()
        torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-12)


def test_the_clean_protocol_takes_torch_s_own() -> None:
    assert type(adamw([nn.Parameter(torch.ones(2))], CLEAN, lr=1, eps=1e-6, weight_decay=0)) is torch.optim.AdamW
