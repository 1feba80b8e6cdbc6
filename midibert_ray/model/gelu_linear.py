"""The second half of a feed-forward layer, with less memory on a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GeluLinear(nn.Linear):
    """linear(gelu(x)); on the CPU the wide gelu(x) is computed again in the backward pass instead of kept."""

    def forward(self, x: Tensor) -> Tensor:
        """x: float [..., in_features] -> float [..., out_features]."""
        if x.device.type == "cpu" and torch.is_grad_enabled():
            return _GeluLinear.apply(x, self.weight, self.bias)
        return super().forward(F.gelu(x))


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grads[0]
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = grad_weight = None
        rows = grad.reshape(-1, grad.shape[-1])
        if needs_weight:
            grad_weight = rows.T @ F.gelu(x).to(grad.dtype).reshape(-1, x.shape[-1])
        if needs_x:
            # Under autocast the weight is fp32 while everything else here is bf16.
            grad_x = (grad @ weight.to(grad.dtype)).to(x.dtype)
            torch.ops.aten.gelu_backward.grad_input(grad_x, x, grad_input=grad_x)
        return grad_x, grad_weight, rows.sum(0) if needs_bias else None
