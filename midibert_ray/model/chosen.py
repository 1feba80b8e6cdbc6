"""The time steps that a model is asked for, in tensors whose shapes are known before any device has chosen them.

How many positions of a row are masked follows from the row's length, which the host knows; which ones they are, the
device finds out. So nothing waits for it between two reports, and with `few` slots for every row all batches have the
same shape.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from midibert_ray.model.packing import Packing


@dataclass(frozen=True)
class Slots:
    """Room for the chosen positions of each row, made from their number alone."""

    rows: Tensor
    """int64 [m], ascending: the row of a slot."""
    slots: Tensor
    """int64 [m]: which of its row's chosen positions it holds, 0 for the first."""
    few: int
    """Slots of the fullest row, at least 1."""

    @classmethod
    def of(cls, counts: NDArray[np.int64], few: int = 0) -> "Slots":
        """Slots on the CPU for so many chosen positions a row, int64 [b]; with `few`, so many for every row."""
        room = np.full_like(counts, few) if few else counts
        most = max(1, int(room.max(initial=0)))
        rows, slots = (torch.from_numpy(axis) for axis in np.nonzero(np.arange(most) < room[:, None]))
        return cls(rows, slots, most)

    def positions(self, where: Tensor) -> Tensor:
        """The position of each slot, int64 [m], where `where` (bool [b, t]) is true, ascending within a row.

        Slots that a row has too many hold positions that were not chosen, each another one.
        """
        return (~where).to(torch.uint8).argsort(dim=1, stable=True)[self.rows, self.slots]


@dataclass(frozen=True)
class Chosen:
    """The m time steps that a model is asked for, as its last layer takes them."""

    rows: Tensor
    """int64 [m], ascending: row of the tensors that the layers see."""
    positions: Tensor
    """int64 [m]: position in that row."""
    slots: Slots
    """The same, by its number within the row."""
    order: Tensor | None = None
    """int64 [m]: puts results into the order of the batch, where rows are shared; None: they are in it."""

    @classmethod
    def of(cls, where: Tensor, packing: Packing | None = None) -> "Chosen":
        """The positions that `where` (bool [b, t]) asks for; waits for the device, which has to count them."""
        own = Slots.of(where.sum(1).cpu().numpy())
        own = Slots(own.rows.to(where.device), own.slots.to(where.device), own.few)
        if packing is None:
            return cls(own.rows, own.positions(where), own)
        counts = (packing.pack(where) & (packing.segment > 0)).sum(1).cpu().numpy()
        shared = Slots.of(counts)
        shared = Slots(shared.rows.to(where.device), shared.slots.to(where.device), shared.few)
        return cls.packed(where, own.rows, own.positions(where), packing, shared)

    @classmethod
    def packed(cls, where: Tensor, rows: Tensor, positions: Tensor, packing: Packing, shared: Slots) -> "Chosen":
        """The chosen positions (rows and positions of the batch, int64 [m] each) in the rows of a packing.

        shared: from the counts of the packing's rows.
        """
        there = packing.pack(where) & (packing.segment > 0)
        # Layers give results row by row of the packing; a position's number there is how many stand before it.
        numbers = there.flatten().cumsum(0) - 1
        order = numbers[packing.place[rows, positions]]
        return cls(shared.rows, shared.positions(there), shared, order)
