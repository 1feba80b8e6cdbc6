"""No work on padding: several short segments of a batch share a row, and attend to themselves alone.

Both kinds of relative position depend on the distance of two time steps only, so a segment gives the same hidden
states wherever in a row it stands. In EMOPIA, where half of all positions are padding, half of the rows suffice.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STEP = 64
"""Widths are multiples of it, as the relative terms are computed in blocks of so many positions."""


@dataclass(frozen=True)
class Packing:
    """A layout of the time steps of a padded batch [b, t] in fewer or shorter rows [rows, width]."""

    source: Tensor
    """int64 [rows, width]: index into the batch, flattened to b * t; 0 where nothing stands."""
    segment: Tensor
    """int64 [rows, width]: 1 + number of the segment in the batch; 0 where nothing stands."""
    place: Tensor
    """int64 [b, t]: index into the rows, flattened to rows * width; 0 for padding."""
    real: Tensor
    """bool [b, t]: false for padding."""

    def pack(self, x: Tensor) -> Tensor:
        """[b, t, ...] -> [rows, width, ...]; places where nothing stands repeat the first time step."""
        return x.flatten(0, 1)[self.source]

    def unpack(self, x: Tensor) -> Tensor:
        """[rows, width, h] -> [b, t, h], 0 for padding."""
        return x.flatten(0, 1)[self.place] * self.real[..., None]

    def pairs(self) -> Tensor:
        """True where a time step (first) may attend to another (second): bool [rows, width, width]."""
        return self.segment[:, :, None] == self.segment[:, None, :]

    def shared(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sums of numbers a segment, int64 [b], over the segments of each row, int64 [rows]; on the CPU alone."""
        row = (self.place[:, 0] // self.source.shape[1]).numpy()
        return np.bincount(row, weights=counts, minlength=len(self.source)).astype(np.int64)


def plan(lengths: NDArray[np.int64], *, length: int, hidden_size: int, device: torch.device) -> Packing | None:
    """The layout with the least arithmetic, or None where the padded batch is as good.

    The arithmetic of a row of width w is proportional to w (6 h + w), products with weights and attention. Rows are
    filled first-fit, longest segments first.

    lengths: int64 [b], real time steps of each segment, all positive; length: t, those of the padded batch.
    """
    widths = {min(length, -(-int(width) // STEP) * STEP) for width in np.arange(lengths.max(), length + STEP, STEP)}
    layouts = {width: _first_fit(lengths, width) for width in sorted(widths)}

    def cost(width: int, rows: int) -> int:
        return rows * width * (6 * hidden_size + width)

    width = min(layouts, key=lambda candidate: cost(candidate, len(layouts[candidate])))
    rows = layouts[width]
    if cost(width, len(rows)) >= cost(length, len(lengths)):
        return None
    return _packing(rows, lengths, width, length, device)


def _first_fit(lengths: NDArray[np.int64], width: int) -> list[list[int]]:
    """The segments of each row."""
    rows: list[list[int]] = []
    free: list[int] = []
    for number in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[number])
        row = next((row for row, left in enumerate(free) if left >= size), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(width)
        rows[row].append(number)
        free[row] -= size
    return rows


def _packing(
    rows: list[list[int]], lengths: NDArray[np.int64], width: int, length: int, device: torch.device
) -> Packing:
    source, segment = np.zeros((2, len(rows), width), dtype=np.int64)
    place = np.zeros((len(lengths), length), dtype=np.int64)
    for row, numbers in enumerate(rows):
        start = 0
        for number in numbers:
            size = int(lengths[number])
            source[row, start : start + size] = number * length + np.arange(size)
            segment[row, start : start + size] = number + 1
            place[number, :size] = row * width + start + np.arange(size)
            start += size
    real = np.arange(length) < lengths[:, None]
    return Packing(*(torch.from_numpy(array).to(device, non_blocking=True) for array in (source, segment, place, real)))
