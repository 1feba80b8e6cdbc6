"""Attention: exact against a slow reference, on the CPU path and on the path that GPUs take."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from midibert_ray.model import attention, cpu
from midibert_ray.model.attention import attend, padding_bias, rotate
from midibert_ray.model.cpu import Dropout, keep_mask
from midibert_ray.model.relative import distance_windows, relative_bias

SHAPES = [(1, 4), (5, 6), (37, 8), (64, 8), (128, 16), (192, 4)]


def slow_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, mask: Tensor) -> Tensor:
    """The formula as written, a distance vector gathered for every pair."""
    t, d = q.shape[-2:]
    distance = torch.arange(t)[:, None] - torch.arange(t)[None, :]
    vectors = table[distance + t - 1]
    scores = q @ k.transpose(-1, -2)
    scores = scores + torch.einsum("bhld,lrd->bhlr", q, vectors) + torch.einsum("bhrd,lrd->bhlr", k, vectors)
    scores = (scores / math.sqrt(d)).masked_fill(~mask[:, None, None, :], -1e30)
    return scores.softmax(-1) @ v


def inputs(t: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(t)
    shapes = [(3, 2, t, d)] * 3 + [(2 * t - 1, d)]
    tensors = [torch.randn(s, dtype=dtype, generator=generator).requires_grad_() for s in shapes]
    mask = torch.rand(3, t, generator=generator) < 0.7
    mask[:, 0] = True
    return tensors, mask


def on_gpu_path(q: Tensor, k: Tensor, v: Tensor, *, table: Tensor, mask: Tensor) -> Tensor:
    """What `attend` does off the CPU."""
    scale = q.shape[-1] ** -0.5
    bias = relative_bias((q * scale).flatten(0, 1), k.flatten(0, 1), distance_windows(table, scale))
    bias = bias.unflatten(0, q.shape[:2]) + padding_bias(mask, q.dtype)
    return torch.nn.functional.scaled_dot_product_attention(q * scale, k, v, attn_mask=bias, scale=1.0)


@pytest.mark.parametrize("fast", [attend, on_gpu_path])
@pytest.mark.parametrize(("t", "d"), SHAPES)
def test_relative_attention_and_its_gradients_are_exact(fast: Callable[..., Tensor], t: int, d: int) -> None:
    tensors, mask = inputs(t, d)
    expected, actual = slow_attention(*tensors, mask), fast(*tensors[:3], table=tensors[3], mask=mask)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, tensors, direction)
    got = torch.autograd.grad(actual, tensors, direction)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)


def test_the_cpu_path_gives_the_same_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    (q, k, v, table), mask = inputs(64, 8)
    whole = attend(q, k, v, table=table, mask=mask)
    monkeypatch.setattr(cpu, "SCORES_AT_ONCE", 1)
    torch.testing.assert_close(attend(q, k, v, table=table, mask=mask), whole, rtol=0, atol=1e-14)


def test_gradients_under_dropout_are_those_of_the_masked_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the mask held fixed, compare to plain softmax, multiply, matmul."""
    tensors, mask = inputs(37, 8)
    q, k, v, table = tensors
    monkeypatch.setattr(cpu, "SCORES_AT_ONCE", 2**30)
    kept = keep_mask(torch.Size((6, 37, 37)), 0.3)
    monkeypatch.setattr(cpu, "keep_mask", lambda shape, p: kept)
    eye = torch.eye(37, dtype=torch.float64).expand(3, 2, 37, 37)
    weights = slow_attention(q, k, eye, table, mask)
    expected = (weights * kept.view(3, 2, 37, 37) / 0.7) @ v
    actual = attend(q, k, v, table=table, mask=mask, dropout=0.3)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, tensors, direction)
    torch.testing.assert_close(torch.autograd.grad(actual, tensors, direction), wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", [(1000, 1001), (7,), (3, 5, 11)])
def test_dropout_keeps_the_expected_share(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    mask = keep_mask(torch.Size(shape), 0.1)
    assert mask.shape == shape and mask.dtype == torch.bool
    if mask.numel() > 1e5:
        assert mask.float().mean().item() == pytest.approx(0.9, abs=2e-3)
        x = Dropout(0.1)(torch.ones(shape))
        assert x.unique().tolist() == pytest.approx([0.0, 1 / 0.9])
        assert x.mean().item() == pytest.approx(1.0, abs=2e-3)
    assert torch.equal(Dropout(0.1).eval()(torch.ones(shape)), torch.ones(shape))


def test_dropout_follows_the_seed() -> None:
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(keep_mask(torch.Size((100,)), 0.5))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_rope_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 16, dtype=torch.float64)
    scores = rotate(q.expand(40, 16)) @ rotate(k.expand(40, 16)).T
    for offset in (-39, -7, 0, 1, 20):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)
    assert scores[0, 0].item() == pytest.approx((q @ k).item())
    assert abs(scores[0, 5] - scores[5, 0]) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_fully_masked_row_is_not_nan(dtype: torch.dtype, relative: bool, dropout: float) -> None:
    (q, k, v, table), mask = inputs(64, 8, dtype)
    mask[1] = False
    out = attend(q, k, v, table=table if relative else None, mask=mask, dropout=dropout)
    out.sum().backward()
    assert out.dtype == dtype
    for tensor in (out, q.grad, k.grad, v.grad):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("kind", attention.ATTENTIONS)
def test_bfloat16_is_near_float32(kind: str) -> None:
    torch.manual_seed(0)
    layer = attention.SelfAttention(hidden_size=32, heads=4, attention=kind, max_length=64, dropout=0.0)
    x = torch.randn(2, 64, 32)
    expected = layer(x, None)
    with torch.no_grad():  # on a CPU by another kernel
        alone = _autocast(layer, x)
    for actual in (alone, layer.bfloat16()(x.bfloat16(), None), _autocast(layer.float(), x)):
        assert actual.dtype == torch.bfloat16
        assert (actual.float() - expected).abs().max() < 0.03
    actual.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def _autocast(layer: torch.nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return layer(x, None)
