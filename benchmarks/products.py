"""The matrix products of a model's layers and nothing else: no implementation by the same kernels is faster."""

from collections.abc import Callable
from statistics import median
from typing import Any

import harness
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midibert_ray.model.cpu import GeluLinear
from midibert_ray.model.onednn import bmm, mm


class Int8Linear(nn.Module):
    """A layer with int8 weights, which rounds its input to int8 by the range that it finds; `gelu` comes before it."""

    def __init__(self, layer: nn.Linear, *, gelu: bool) -> None:
        super().__init__()
        self.packed, self.gelu = packed(layer.weight.detach().float(), layer.bias.detach().float()), gelu

    def forward(self, x: Tensor) -> Tensor:
        """x: float [..., inside] -> float [..., outside]."""
        x = F.gelu(x) if self.gelu else x
        return torch.ops.quantized.linear_dynamic(x.float(), self.packed).to(x.dtype)


def to_int8(encoder: Any) -> None:
    """Put `Int8Linear` in the place of every layer of an encoder's Transformer layers."""
    for parent in [module for layer in encoder.layers for module in layer.modules()]:
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child, gelu=isinstance(child, GeluLinear)))


def seconds(
    layers: int,
    hidden: int,
    heads: int,
    feed_forward: int,
    *,
    rows: int,
    length: int,
    dtype: torch.dtype,
    backward: bool = False,
    turns: int = 5,
) -> float:
    """Seconds that the products of `layers` layers take for `rows` segments of `length`: the median over turns.

    Queries, keys, values, what is attended to, the output and the feed-forward layers; no relative terms, no softmax,
    no LayerNorm, no head. With `backward` also those of the gradients of inputs and weights, twice as many.
    """
    states, wide = (
        torch.randn(rows * length, hidden, dtype=dtype),
        torch.randn(rows * length, feed_forward, dtype=dtype),
    )
    square, up, down = (
        torch.randn(shape, dtype=dtype) for shape in ((hidden, hidden), (hidden, feed_forward), (feed_forward, hidden))
    )
    queries = torch.randn(rows * heads, length, hidden // heads, dtype=dtype)
    scores = torch.randn(rows * heads, length, length, dtype=dtype)

    @torch.no_grad()
    def layer() -> None:
        for _ in range(4):
            mm(states, square)
        mm(states, up)
        mm(wide, down)
        bmm(queries, queries.transpose(1, 2))
        bmm(scores, queries)
        if backward:
            for _ in range(4):
                mm(states, square.T)
                mm(states.T, states)
            mm(wide, up.T)
            mm(states.T, wide)
            mm(states, down.T)
            mm(wide.T, states)
            for _ in range(2):
                bmm(scores, queries)
            bmm(queries, queries.transpose(1, 2))
            bmm(scores.transpose(1, 2), queries)

    return layers * _median_seconds(layer, turns)


KERNELS = ("fp32, MKL", "int8", "int8, quantized")
"""Other ways to compute them than ours, which are oneDNN's in fp32 and in bf16."""


def seconds_by(
    kernel: str, layers: int, hidden: int, heads: int, feed_forward: int, *, rows: int, length: int, turns: int = 5
) -> float:
    """Seconds of the same products of a forward pass by one of `KERNELS`, in attention head by head.

    `fp32, MKL`: torch's own. `int8`: the numbers are int8 already and their int32 sums are left as they are.
    `int8, quantized`: layers take and give fp32 (`quantized.linear_dynamic`: find the range of the input, round it,
    multiply, scale back), queries, keys and values at once; attention, for which torch has nothing such, is in bf16.
    """
    shapes = (hidden, 3 * hidden), (hidden, hidden), (hidden, feed_forward), (feed_forward, hidden)
    quantized, number = kernel == "int8, quantized", {"fp32, MKL": torch.float32}.get(kernel, torch.int8)
    multiply: Any = {"fp32, MKL": torch.matmul, "int8": torch._int_mm}.get(kernel, torch.ops.quantized.linear_dynamic)
    given: list[tuple[Tensor, Any]] = []
    for inside, outside in shapes:
        states, weight = _numbers(rows * length, inside), _numbers(outside, inside)
        given.append((states, packed(weight)) if quantized else (states.to(number), weight.to(number).T))
    queries, scores = (
        _numbers(rows * heads, length, width).to(torch.bfloat16 if quantized else number)
        for width in (hidden // heads, length)
    )

    def layer() -> None:
        for states, weight in given:
            multiply(states, weight)
        if quantized:
            queries @ queries.transpose(1, 2)
            scores @ queries
            return
        for query, score in zip(queries, scores, strict=True):
            multiply(query, query.T)
            multiply(score, query)

    return layers * _median_seconds(layer, turns)


def _numbers(*shape: int) -> Tensor:
    """Whole numbers, which every kind of number can hold."""
    return torch.randint(-127, 128, shape).float()


def packed(weight: Tensor, bias: Tensor | None = None) -> object:
    """A layer's weights [outside, inside] in int8, with a scale for each output, for `quantized.linear_dynamic`."""
    torch.backends.quantized.engine = "onednn"
    scale = weight.abs().amax(1).double().clamp_min(1e-12) / 127
    whole = torch.quantize_per_channel(weight, scale, torch.zeros(len(weight), dtype=torch.long), 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(whole, bias)


def _median_seconds(layer: Callable[[], object], turns: int) -> float:
    clock, found = harness.clock(torch.get_num_threads()), []
    layer()
    for _ in range(turns):
        start = clock()
        layer()
        found.append(clock() - start)
    return median(found)
