"""Cheap steps on a CPU: attention, dropout and the wide layer with less memory traffic.

torch's fused CPU kernel for attention knows neither dropout on the weights nor a bias that learns, and takes more than
twice as long in bf16; its fallback passes tensors of batch * heads * t * t numbers through main memory about twenty
times. `CpuAttention` keeps a few heads' scores in the cache and stores a single such tensor for the backward pass.
`Dropout` draws four masks from one random number, where torch draws a number for each value and spends more on it than
on a softmax. `GeluLinear` computes the widest tensor of a layer twice instead of keeping it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midibert_ray.model import onednn
from midibert_ray.model.relative import relative_scores, relative_scores_backward

SCORES_AT_ONCE = 2**20
"""Scores of one chunk: 4 MB in float32, four heads of 512 positions."""


def keep_mask(shape: torch.Size, dropout: float) -> Tensor:
    """Random bool mask on the CPU, false with probability `dropout` (to 2**-16): 16 random bits a draw."""
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


class GeluLinear(onednn.Linear):
    """linear(gelu(x)); in fp32 on the CPU the wide gelu(x) is computed again in the backward pass instead of kept.

    In bf16 the wide tensors are half as large, and gelu takes longer there than the memory is worth.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: float [..., in_features] -> float [..., out_features]."""
        if onednn.applies(x) and torch.is_grad_enabled():
            return _GeluLinear.apply(x, self.weight, self.bias)
        return super().forward(F.gelu(x))


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn.linear(F.gelu(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grads[0].reshape(-1, weight.shape[0])
        grad_x = grad_weight = None
        if needs_weight:
            grad_weight = onednn.mm(rows.T, F.gelu(x).view(-1, weight.shape[1]))
        if needs_x:
            grad_x = onednn.mm(rows, weight).view(x.shape)
            torch.ops.aten.gelu_backward.grad_input(grad_x, x, grad_input=grad_x)
        return grad_x, grad_weight, rows.sum(0) if needs_bias else None


class CpuAttention(torch.autograd.Function):
    """softmax(q k^T + relative terms + padding), dropout, times v."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, windows: Tensor | None, padding: Tensor | None, dropout: float
    ) -> Tensor:
        """q: [n, queries, d], already scaled; k, v: [n, t, d]; windows: from `distance_windows`, or None; padding:
        additive [n / heads, 1 or queries, t], or None. Returns [n, queries, d].
        """
        out, kept = torch.empty_like(q), []
        for rows in _chunks(q, k):
            own = None
            if padding is not None:  # the heads of a segment share it
                own = padding[torch.arange(rows.start, rows.stop) // (len(q) // len(padding))]
            weights = _weights(q[rows], k[rows], windows, own)
            if dropout > 0:
                # The sign says whether dropout removed a weight: the backward pass needs one tensor, not two.
                weights = torch.where(keep_mask(weights.shape, dropout), weights, -weights)
            onednn.bmm(weights.clamp_min(0) if dropout > 0 else weights, v[rows], out=out[rows])
            if any(ctx.needs_input_grad):
                kept.append(weights)
        if dropout > 0:
            out /= 1 - dropout
        ctx.save_for_backward(q, k, v, windows, *kept)
        ctx.dropout = dropout
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
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
            onednn.bmm(used.transpose(1, 2), grad, out=grad_v[rows])
            scores = onednn.bmm(grad, v[rows].transpose(1, 2)).mul_(used)
            mean = scores.sum(-1, keepdim=True)
            scores.addcmul_(weights.abs() if ctx.dropout > 0 else weights, mean, value=-1)
            onednn.bmm(scores, k[rows], out=grad_q[rows])
            onednn.bmm(scores.transpose(1, 2), q[rows], out=grad_k[rows])
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


def _in_blocks(scores: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Views of scores [n, query, key]: [n, blocks, block, key], blocks of queries; the same of keys."""
    blocks = (windows.shape[1], -1)
    return scores.unflatten(1, blocks), scores.transpose(1, 2).unflatten(1, blocks)


def _weights(q: Tensor, k: Tensor, windows: Tensor | None, padding: Tensor | None) -> Tensor:
    """Attention weights [n, t, t] before dropout."""
    scores = onednn.bmm(q, k.transpose(1, 2))
    if windows is not None:
        of_queries, of_keys = (relative_scores(x, of_x) for x, of_x in zip((q, k), windows, strict=True))
        by_query, by_key = _in_blocks(scores, windows)
        by_query.add_(of_queries)
        if scores.dtype == torch.float32:
            by_key.add_(of_keys)
        else:  # torch adds numbers of two bytes five times as slowly across rows, but copies them as fast
            _in_blocks(turned := torch.empty_like(scores), windows)[1].copy_(of_keys)
            scores.add_(turned)
    if padding is not None:
        scores.add_(padding)
    return torch.softmax(scores, dim=-1)
