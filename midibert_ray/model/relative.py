"""The two relative terms of `relative_key_query` attention, without gathering a vector for every pair.

The paper's BERT (transformers' `relative_key_query`; Huang et al., "Improve Transformer Models with Better
Relative Position Embeddings", 2020) gives every layer one table E of 2 * max_length - 1 distance vectors,
shared by its heads, and

    score(i, j) = (q_i . k_j  +  q_i . E[i - j]  +  k_j . E[i - j]) / sqrt(head_dim).

Gathering E[i - j] for every pair costs t * t * head_dim numbers. Here each relative term is a matrix product
of all positions with the table, and a strided view of the product picks, row by row, the distances that the
row needs. Positions go in blocks: 64 rows need t + 63 distances, all rows in one would need 2t - 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from midibert_ray.model import onednn

BLOCK = 64


def distance_windows(table: Tensor, scale: float) -> Tensor:
    """The stretch of the distance table that each block of queries (first) and of keys (second) needs.

    table: [2t - 1, d], row r belongs to query position - key position = r - (t - 1).
    scale: 1 / sqrt(head_dim) for the keys' half; queries bring theirs along.
    Returns [2, t / block, d, t + block]. The last column is never read: it makes the width a multiple of 8.
    """
    t = (len(table) + 1) // 2
    block = BLOCK if t % BLOCK == 0 else t
    # By other - own position: query - key for a key, as in the table, and key - query for a query.
    both = torch.stack((table.flip(0), table * scale))
    return F.pad(both, (0, 0, 0, 1)).unfold(1, t + block, block).flip(1)


def _in_blocks(x: Tensor, windows: Tensor) -> Tensor:
    """[n, t, d] -> [blocks, n * block, d]."""
    n, _, d = x.shape
    return x.reshape(n, len(windows), -1, d).transpose(0, 1).reshape(len(windows), -1, d)


def _aligned(products: Tensor, n: int, t: int) -> Tensor:
    """View products [blocks, n * block, t + block] as [n, blocks, block, t]: own position by other position.

    The distances of row p begin at column block - 1 - p. Read with rows one column shorter, all rows line up.
    """
    blocks, rows, width = products.shape
    block = rows // n
    flat = products.view(blocks, n, block * width).transpose(0, 1)
    return flat[..., block - 1 : -1].unflatten(-1, (block, width - 1))[..., :t]


def relative_products(x: Tensor, windows: Tensor) -> Tensor:
    """Product of every position's vector with the distance vectors that its block needs.

    x: [n, t, d]; windows: [blocks, d, t + block]. Returns [blocks, n, block, t + block]; position p of a block finds
    that of another position j in column block - 1 - p + j.
    """
    return onednn.bmm(_in_blocks(x, windows), windows).unflatten(1, (len(x), -1))


def relative_scores(x: Tensor, windows: Tensor) -> Tensor:
    """Product of every position's vector with the distance vector of every other position.

    x: [n, t, d]; windows: [blocks, d, t + block], one half of `distance_windows`.
    Returns a view [n, blocks, block, t].
    """
    return _aligned(onednn.bmm(_in_blocks(x, windows), windows), len(x), x.shape[1])


def relative_scores_backward(grad: Tensor, x: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `relative_scores`: grad [n, blocks, block, t] -> those of x and of the windows."""
    n, t, _ = x.shape
    own = _in_blocks(x, windows)
    products = grad.new_zeros(len(windows), own.shape[1], windows.shape[2])
    _aligned(products, n, t).copy_(grad)
    grad_own = onednn.bmm(products, windows.transpose(1, 2))
    grad_x = grad_own.view(len(windows), n, -1, x.shape[2]).transpose(0, 1).reshape(x.shape)
    return grad_x, onednn.bmm(own.transpose(1, 2), products)


def relative_bias(q: Tensor, k: Tensor, windows: Tensor) -> Tensor:
    """Sum of both relative terms: q, k [n, t, d] and `distance_windows` -> [n, t, t] (query, key)."""
    n, t, _ = q.shape
    from_query, from_key = (relative_scores(x, w).reshape(n, t, t) for x, w in zip((q, k), windows, strict=True))
    return from_query + from_key.transpose(1, 2)
