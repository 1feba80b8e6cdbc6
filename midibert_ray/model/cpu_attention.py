"""Attention on the CPU with dropout and relative terms, a few heads at a time.

torch's fused CPU kernel knows neither dropout on the weights nor a bias that learns, and its fallback passes
tensors of batch * heads * t * t numbers through main memory about twenty times. This one keeps a few heads'
scores in the cache and stores a single such tensor for the backward pass.
"""

from typing import Any

import torch
from torch import Tensor

from midibert_ray.model.dropout import keep_mask
from midibert_ray.model.relative import relative_scores, relative_scores_backward

SCORES_AT_ONCE = 2**20
"""Scores of one chunk: 4 MB in float32, four heads of 512 positions."""


class CpuAttention(torch.autograd.Function):
    """softmax(q k^T + relative terms + padding), dropout, times v."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        windows: Tensor | None,
        padding: Tensor | None,
        dropout: float,
    ) -> Tensor:
        """q: [n, queries, d], already scaled; k, v: [n, t, d]; windows: from `distance_windows`, or None; padding:
        additive [n / heads, 1 or queries, t], or None. Returns [n, queries, d].
        """
        learning = any(ctx.needs_input_grad)
        out, kept = torch.empty_like(q), []
        for rows in _chunks(q, k):
            weights = _weights(q[rows], k[rows], windows, _padding_of(rows, padding, len(q)))
            if dropout > 0:
                # The sign says whether dropout removed a weight: the backward pass needs one tensor, not two.
                weights = torch.where(keep_mask(weights.shape, dropout), weights, -weights)
            torch.bmm(weights.clamp_min(0) if dropout > 0 else weights, v[rows], out=out[rows])
            if learning:
                kept.append(weights)
        out /= 1 - dropout
        ctx.save_for_backward(q, k, v, windows, *kept)
        ctx.dropout = dropout
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v and the windows."""
        q, k, v, windows, *kept = ctx.saved_tensors
        grad_out = grads[0]
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        grad_windows = None
        if windows is not None:
            # Summed over all rows of a batch: too many for the few digits of bfloat16.
            grad_windows = torch.zeros_like(windows, dtype=torch.promote_types(windows.dtype, torch.float32))
        for rows, weights in zip(_chunks(q, k), kept, strict=True):
            used = weights.clamp_min(0) if ctx.dropout > 0 else weights
            grad = grad_out[rows] / (1 - ctx.dropout)
            torch.bmm(used.transpose(1, 2), grad, out=grad_v[rows])
            scores = torch.bmm(grad, v[rows].transpose(1, 2)).mul_(used)
            mean = scores.sum(-1, keepdim=True)
            scores.addcmul_(weights.abs() if ctx.dropout > 0 else weights, mean, value=-1)
            torch.bmm(scores, k[rows], out=grad_q[rows])
            torch.bmm(scores.transpose(1, 2), q[rows], out=grad_k[rows])
            if grad_windows is not None:
                for i, view in enumerate(_in_blocks(scores, windows)):
                    own, own_grad = ((q, grad_q), (k, grad_k))[i]
                    from_relative, of_windows = relative_scores_backward(view, own[rows], windows[i])
                    own_grad[rows] += from_relative
                    grad_windows[i] += of_windows
        return grad_q, grad_k, grad_v, None if grad_windows is None else grad_windows.to(q.dtype), None, None


def _chunks(q: Tensor, k: Tensor) -> list[slice]:
    size = max(1, SCORES_AT_ONCE // (q.shape[1] * k.shape[1]))
    return [slice(i, min(i + size, len(q))) for i in range(0, len(q), size)]


def _padding_of(rows: slice, padding: Tensor | None, n: int) -> Tensor | None:
    """What belongs to some of n rows; the heads of a segment share its padding."""
    return None if padding is None else padding[torch.arange(rows.start, rows.stop) // (n // len(padding))]


def _in_blocks(scores: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Views of scores [n, query, key]: [n, blocks, block, key], blocks of queries; the same of keys."""
    blocks = (windows.shape[1], -1)
    return scores.unflatten(1, blocks), scores.transpose(1, 2).unflatten(1, blocks)


def _weights(q: Tensor, k: Tensor, windows: Tensor | None, padding: Tensor | None) -> Tensor:
    """Attention weights [n, t, t] before dropout."""
    scores = torch.bmm(q, k.transpose(1, 2))
    if windows is not None:
        for x, of_x, view in zip((q, k), windows, _in_blocks(scores, windows), strict=True):
            view.add_(relative_scores(x, of_x))
    if padding is not None:
        scores.add_(padding)
    return torch.softmax(scores, dim=-1)
