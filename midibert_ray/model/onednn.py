"""Matrix products in float32 on a CPU by oneDNN.

torch multiplies numbers of four bytes by MKL, which leaves AVX-512 unused on processors that are not Intel's. oneDNN,
which torch brings along and uses for those of two bytes, takes less than half of the time there.
"""

from typing import Any

import torch
from torch import Tensor, nn

LEAST = 128 * 128
"""Numbers of a product in a batch of products from which on oneDNN, which takes them one by one, is ahead."""


def applies(x: Tensor) -> bool:
    """True where x would be multiplied by MKL: in float32 on a CPU, and by no compiler."""
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _applies_within(x: Tensor) -> bool:
    return not torch.is_grad_enabled() and applies(x)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The layer x @ weight.T + bias, without a gradient; x: float32 [..., in], weight: [out, in] -> [..., out]."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")
    return product


def _dense(x: Tensor) -> Tensor:
    """The tensor, or a copy where its rows lie apart in memory: oneDNN takes a hundred times as long for such."""
    turned = x.dim() == 2 and x.T.is_contiguous()
    return x if turned or x.is_contiguous() else x.contiguous()


def mm(a: Tensor, b: Tensor) -> Tensor:
    """The product a @ b; float [n, m], [m, k] -> [n, k]. By oneDNN in autograd functions alone: it has no gradient."""
    return linear(a, b.T) if _applies_within(a) else a @ b


def bmm(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """torch.bmm; float [n, t, m], [n, m, k] -> [n, t, k]. By oneDNN in autograd functions alone, as `mm`."""
    if not _applies_within(a) or a.shape[1] * b.shape[2] < LEAST:
        return torch.bmm(a, b) if out is None else torch.bmm(a, b, out=out)
    out = a.new_empty(len(a), a.shape[1], b.shape[2]) if out is None else out
    for i in range(len(a)):
        out[i] = linear(a[i], b[i].T)
    return out


class Linear(nn.Linear):
    """torch's linear layer, by oneDNN where that applies."""

    def forward(self, x: Tensor) -> Tensor:
        """x: float [..., in_features] -> float [..., out_features]."""
        return _Linear.apply(x, self.weight, self.bias) if applies(x) else super().forward(x)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grads[0].reshape(-1, len(weight))
        return (
            mm(rows, weight).view(x.shape) if needs_x else None,
            mm(rows.T, x.reshape(-1, x.shape[-1])) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )
