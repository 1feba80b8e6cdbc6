"""Dropout that costs little on a CPU, where torch draws one random number a value and spends more on it than
on a softmax.
"""

from typing import Any

import torch
from torch import Tensor, nn


def keep_mask(shape: torch.Size, dropout: float) -> Tensor:
    """Random bool mask on the CPU, false with probability `dropout` (to 2**-16): four draws out of every 64
    random bits.
    """
    words = torch.empty((shape.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[: shape.numel()].view(shape) >= round(dropout * 2**16) - 2**15


class Dropout(nn.Dropout):
    """torch's dropout, with the cheap mask on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Zero elements of x with probability p and scale the others by 1 / (1 - p), while training."""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        return _CpuDropout.apply(x, self.p)


class _CpuDropout(torch.autograd.Function):
    """Keeps one byte a value for the backward pass, where a product would keep the factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        keep = keep_mask(x.shape, p)
        ctx.save_for_backward(keep)
        ctx.p = p
        return x.mul(keep).div_(1 - p)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return grads[0].mul(keep).div_(1 - ctx.p), None
