"""Self-attention of the encoder, with the paper's relative positions or with rotary positions.

`relative_key_query` is the paper's (see `relative`). `rope` (Su et al., "RoFormer", 2021) rotates queries and
keys by their position, which leaves the fused kernels of torch free to do the rest.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midibert_ray.model import flex
from midibert_ray.model.chosen import Chosen
from midibert_ray.model.cpu import CpuAttention
from midibert_ray.model.onednn import Linear
from midibert_ray.model.relative import distance_windows, relative_bias

ATTENTIONS = ("relative_key_query", "rope")
ROPE_BASE = 10_000.0


def padding_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Additive form [b, 1, 1 or queries, t] of a mask [b, t] or [b, queries, t] (true or 1 = attend).

    The penalty is finite, so a row that may attend to nothing gets equal weights and not NaN.
    """
    if mask is None:
        return None
    pairs = mask[:, None, :] if mask.dim() == 2 else mask
    return (~pairs.bool()).to(dtype)[:, None] * (torch.finfo(dtype).min / 2)


def rotate(x: Tensor, positions: Tensor | None = None) -> Tensor:
    """Turn vectors x [..., t, head_dim] by the angles of their position; coordinate i pairs with i + head_dim / 2.

    positions: int, to be broadcast against x without its last dimension; None counts from 0 along t.
    """
    t, head_dim = x.shape[-2:]
    positions = torch.arange(t, device=x.device) if positions is None else positions
    frequencies = ROPE_BASE ** (-torch.arange(0, head_dim, 2, device=x.device, dtype=torch.float32) / head_dim)
    angles = positions.float()[..., None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


Mask = Tensor | flex.BlockedMask | None
"""Where attention goes: [b, t] or, where queries differ, [b, queries, t], true or 1 = attend; None: everywhere."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, table: Tensor | None = None, mask: Mask = None, dropout: float = 0.0
) -> Tensor:
    """Attention of q [b, heads, queries, d] to k, v [b, heads, t, d] -> [b, heads, queries, d].

    table: [2t - 1, d], row r is the vector of query position - key position = r - (t - 1), and there are t queries;
    None leaves both relative terms out. A `BlockedMask` has FlexAttention compute it, without dropout.
    dropout: probability to drop an attention weight.
    """
    scale = q.shape[-1] ** -0.5
    windows, q = None if table is None else distance_windows(table, scale), q * scale
    if isinstance(mask, flex.BlockedMask):
        return flex.attend(q, k, v, windows, mask)
    padding = padding_bias(mask, q.dtype)
    # torch's kernel for a CPU keeps nothing for a backward pass; without one, large products in bf16 are twice as fast.
    large = q.dtype == torch.bfloat16 and not torch.is_grad_enabled()
    if q.device.type == "cpu" and (windows is not None or dropout > 0 or large):
        return _attend_on_cpu(q, k, v, windows, padding, dropout)
    bias = padding
    if windows is not None:
        bias = relative_bias(q.flatten(0, 1), k.flatten(0, 1), windows).unflatten(0, q.shape[:2])
        bias = bias if padding is None else bias + padding
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=1.0)


@torch.compiler.disable
def _attend_on_cpu(
    q: Tensor, k: Tensor, v: Tensor, windows: Tensor | None, padding: Tensor | None, dropout: float
) -> Tensor:
    flat = (x.flatten(0, 1) for x in (q, k, v))
    return CpuAttention.apply(*flat, windows, None if padding is None else padding[:, 0], dropout).view(q.shape)


class SelfAttention(nn.Module):
    """Multi-head self-attention without its output projection."""

    def __init__(self, *, hidden_size: int, heads: int, attention: str, max_length: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.max_length, self.dropout = heads, max_length, dropout
        self.query = Linear(hidden_size, hidden_size)
        self.key = Linear(hidden_size, hidden_size)
        self.value = Linear(hidden_size, hidden_size)
        self.distance_embedding = (
            nn.Embedding(2 * max_length - 1, hidden_size // heads) if attention == "relative_key_query" else None
        )

    def forward(self, hidden: Tensor, mask: Mask, where: Chosen | None = None) -> Tensor:
        """hidden: float [b, t, hidden_size] -> float [b, t, hidden_size].

        mask: [b, t] or [b, t, t].
        where: the m results asked for -> float [m, hidden_size]; None for all.
        """
        dropout = self.dropout if self.training else 0.0
        if self.distance_embedding is None and where is not None:
            return self._attend_where(hidden, mask, where, dropout)
        q, k, v = (self._heads(f, hidden) for f in (self.query, self.key, self.value))
        table = None
        if self.distance_embedding is None:
            q, k = rotate(q), rotate(k)
        else:
            t, middle = hidden.shape[1], self.max_length - 1
            # Through the module, not its weight: a sharded optimizer gathers weights when modules run.
            table = self.distance_embedding(torch.arange(middle - t + 1, middle + t, device=hidden.device)).to(q.dtype)
        attended = attend(q, k, v, table=table, mask=mask, dropout=dropout).transpose(1, 2).flatten(2)
        return attended if where is None else attended[where.rows, where.positions]

    def _heads(self, projection: nn.Module, hidden: Tensor) -> Tensor:
        """[b, t, hidden_size] -> [b, heads, t, d]."""
        return projection(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _attend_where(self, hidden: Tensor, mask: Mask, where: Chosen, dropout: float) -> Tensor:
        """Only the queries asked for, side by side in the rows of a smaller batch.

        Masked tokens are 15 % of a batch, so the last layer of a pre-training step needs that share of its queries.
        Segments differ in how many: each gets `few` slots, as many as the fullest needs, and slots that stay empty are
        never read. A rotary query carries its own position along, so it may stand in any slot. With relative_key_query
        the keys' half needs all queries anyway, so this gains nothing there.
        """
        rows, positions, slots, few = where.rows, where.positions, where.slots.slots, where.slots.few
        q = rotate(self.query(hidden[rows, positions]).unflatten(-1, (self.heads, -1)), positions[:, None])
        queries = q.new_zeros(len(hidden), few, *q.shape[1:]).index_put((rows, slots), q).transpose(1, 2)
        if isinstance(mask, flex.BlockedMask):
            mask = mask.rows(rows, positions, slots, few)
        elif mask is not None and mask.dim() == 3:
            chosen = mask.new_zeros(len(hidden), few, mask.shape[-1])
            mask = chosen.index_put((rows, slots), mask[rows, positions])
        k, v = rotate(self._heads(self.key, hidden)), self._heads(self.value, hidden)
        return attend(queries, k, v, mask=mask, dropout=dropout)[rows, :, slots].flatten(1)
