"""Hashes of torch tensors: random decisions that are the same on a CPU and a GPU, for any layout and after a resume."""

import torch
from torch import Tensor

from midibert_ray.music import splitmix64

# The constants as signed numbers; torch's int64 arithmetic wraps around.
STEP = splitmix64.STEP - 2**64
_MULTIPLIERS = tuple(multiplier - 2**64 for multiplier in splitmix64.MULTIPLIERS)


def row_keys(seed: int, epoch: int, step: int, rows: Tensor) -> Tensor:
    """Keys int64 [b] of the random decisions about rows of a global batch (int64 [b], their indices in it)."""
    key = torch.full_like(rows, STEP)
    for value in (seed, epoch, step, rows):
        key = mix(key + value)
    return key


def mix(x: Tensor) -> Tensor:
    """`splitmix64.mix` for signed numbers of torch: int64, any shape."""
    x = (x ^ _shift_right(x, 30)) * _MULTIPLIERS[0]
    x = (x ^ _shift_right(x, 27)) * _MULTIPLIERS[1]
    return x ^ _shift_right(x, 31)


def row_bits(keys: Tensor, purpose: int) -> Tensor:
    """64 random bits a row, int64 [b]: where the stream of (key, purpose) starts."""
    return mix(keys + (purpose + 1) * 2**32)


def position_bits(keys: Tensor, segment: int, purpose: int) -> Tensor:
    """64 random bits a position, int64 [b, segment]: the splitmix64 streams that start at (key, purpose)."""
    positions = torch.arange(1, segment + 1, device=keys.device)
    return mix(row_bits(keys, purpose)[:, None] + positions * STEP)


def below(bits: Tensor, n: int | Tensor) -> Tensor:
    """Uniform integers 0..n-1 (n below 2 ** 31) out of the upper 31 of 64 random bits."""
    return (_shift_right(bits, 33) * n) >> 31


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's own one copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
