"""Self-attention of the encoder, with the paper's relative positions or with rotary positions.

`relative_key_query` is the paper's (see `relative`). `rope` (Su et al., "RoFormer", 2021) rotates queries and
keys by their position, which leaves the fused kernels of torch free to do the rest.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midibert_ray.model.cpu_attention import CpuAttention
from midibert_ray.model.relative import distance_windows, relative_bias

ATTENTIONS = ("relative_key_query", "rope")
ROPE_BASE = 10_000.0


def padding_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Additive form [b, 1, 1, t] of a mask [b, t] (true or 1 = attend).

    The penalty is finite, so a row that may attend to nothing gets equal weights and not NaN.
    """
    if mask is None:
        return None
    return (~mask.bool()).to(dtype)[:, None, None, :] * (torch.finfo(dtype).min / 2)


def rotate(x: Tensor) -> Tensor:
    """Turn the vectors x [..., t, head_dim] by the angles of their position; coordinate i pairs with i +
    head_dim / 2.
    """
    t, head_dim = x.shape[-2:]
    frequencies = ROPE_BASE ** (-torch.arange(0, head_dim, 2, device=x.device, dtype=torch.float32) / head_dim)
    angles = torch.arange(t, device=x.device, dtype=torch.float32)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    table: Tensor | None = None,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of q, k, v [b, heads, t, d] -> [b, heads, t, d].

    table: [2t - 1, d], row r is the vector of query position - key position = r - (t - 1); None leaves both
    relative terms out. mask: [b, t], true or 1 = attend. dropout: probability to drop an attention weight.
    """
    scale = q.shape[-1] ** -0.5
    q, padding = q * scale, padding_bias(mask, q.dtype)
    windows = None if table is None else distance_windows(table, scale)
    if q.device.type == "cpu" and (windows is not None or dropout > 0):
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
    b, heads, t, _ = q.shape
    if padding is not None:
        padding = padding.expand(b, heads, 1, t).flatten(0, 1)
    flat = (x.flatten(0, 1) for x in (q, k, v))
    return CpuAttention.apply(*flat, windows, padding, dropout).view(q.shape)


class SelfAttention(nn.Module):
    """Multi-head self-attention without its output projection."""

    def __init__(self, *, hidden_size: int, heads: int, attention: str, max_length: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.max_length, self.dropout = heads, max_length, dropout
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.distance_embedding = (
            nn.Embedding(2 * max_length - 1, hidden_size // heads) if attention == "relative_key_query" else None
        )

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """hidden: float [b, t, hidden_size]; mask: [b, t] or None -> float [b, t, hidden_size]."""
        q, k, v = (
            f(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        table = None
        if self.distance_embedding is None:
            q, k = rotate(q), rotate(k)
        else:
            t, middle = hidden.shape[1], self.max_length - 1
            # Through the module, not its weight: a sharded optimizer gathers weights when modules run.
            table = self.distance_embedding(torch.arange(middle - t + 1, middle + t, device=hidden.device)).to(q.dtype)
        dropout = self.dropout if self.training else 0.0
        return attend(q, k, v, table=table, mask=mask, dropout=dropout).transpose(1, 2).flatten(2)
