"""Dropout that costs little on a CPU, where torch draws one random number a value and spends more on it than
on a softmax.
"""

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
        return x * (keep_mask(x.shape, self.p).to(x.dtype) / (1 - self.p))
