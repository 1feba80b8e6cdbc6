"""Attention by torch's FlexAttention: neither a dense mask nor a dense bias is made.

A fused kernel computes `softmax(q k^T + modification) v` block by block, and leaves out blocks that nothing attends to.
It knows no dropout of attention weights, and on a CPU no backward pass; `attention.attend` does without it there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from midibert_ray.model.relative import relative_products

Modification = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""A score, and its batch row, head, query and key -> the score that counts."""


@dataclass(frozen=True)
class BlockedMask:
    """Where attention goes, told by one value a time step."""

    values: Tensor | None
    """bool or int [b, t]: true or 1 = attend to it; or, where rows are shared, the number of a step's segment, to which
    it attends alone. None attends to everything."""
    shared: bool
    blocks: BlockMask | None
    """The same for the kernel, made once for all layers."""

    @classmethod
    def of(cls, values: Tensor | None, *, shared: bool) -> "BlockedMask":
        """The mask of `values`."""
        if values is None:
            return cls(None, shared, None)
        seen = values if shared else values.bool()

        def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return seen[b, q] == seen[b, k] if shared else seen[b, k]

        b, t = values.shape
        return cls(values, shared, create_block_mask(allowed, b, None, t, t, device=str(values.device)))

    def rows(self, rows: Tensor, positions: Tensor, slots: Tensor, few: int) -> Tensor | None:
        """Dense mask [b, few, t] or [b, t] of `few` queries a row, which stand at these rows and positions."""
        if self.values is None or not self.shared:
            return self.values
        own = self.values.new_full((len(self.values), few), -1).index_put((rows, slots), self.values[rows, positions])
        return own[:, :, None] == self.values[:, None, :]


def modification(q: Tensor, k: Tensor, windows: Tensor) -> Modification:
    """Both relative terms of a score, as `relative.relative_bias` adds them up.

    q: [b, heads, t, d], scaled; k: [b, heads, t, d]; windows: from `distance_windows`.
    """
    heads = q.shape[1]
    from_query, from_key = (relative_products(x.flatten(0, 1), w) for x, w in zip((q, k), windows, strict=True))
    block = from_query.shape[2]

    def modified(score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        n = b * heads + h
        # A row's distances begin at column block - 1 - (its place in the block), see `relative`.
        of_query = from_query[query // block, n, query % block, block - 1 - query % block + key]
        of_key = from_key[key // block, n, key % block, block - 1 - key % block + query]
        return score + of_query + of_key

    return modified


def attend(q: Tensor, k: Tensor, v: Tensor, windows: Tensor | None, mask: BlockedMask) -> Tensor:
    """Attention of q (scaled) to k, v, all [b, heads, t, d] -> [b, heads, t, d]."""
    terms = None if windows is None else modification(q, k, windows)
    kernel = flex_attention if q.device.type == "cpu" or torch.compiler.is_compiling() else _compiled()
    attended: Tensor = kernel(q, k, v, score_mod=terms, block_mask=mask.blocks, scale=1.0)
    return attended


@cache
def _compiled() -> Any:
    """The fused kernel; without the compiler FlexAttention computes all scores at once."""
    return torch.compile(flex_attention, dynamic=False)
