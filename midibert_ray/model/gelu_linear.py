"""The second half of a feed-forward layer, with less memory on a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GeluLinear(nn.Linear):
    """linear(gelu(x)); in fp32 on the CPU the wide gelu(x) is computed again in the backward pass instead of kept.

    In bf16 the wide tensors are half as large, and gelu takes longer there than the memory is worth.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: float [..., in_features] -> float [..., out_features]."""
        if x.device.type == "cpu" and x.dtype == torch.float32 and torch.is_grad_enabled():
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
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grads[0].reshape(-1, weight.shape[0])
        wide, grad_weight = F.gelu(x), None
        if needs_weight:
            grad_weight = rows.T @ wide.view(-1, weight.shape[1])
        if needs_x:  # in the place of gelu(x), so that there is one such tensor at a time
            torch.mm(rows, weight, out=wide.view(-1, weight.shape[1]))
            torch.ops.aten.gelu_backward.grad_input(wide, x, grad_input=wide)
        return wide if needs_x else None, grad_weight, rows.sum(0) if needs_bias else None
