"""Demands of a pre-training step on a GPU, counted without one: arithmetic, memory traffic, kernels.

    python benchmarks/roofline.py --write          # a minute on any machine
    python benchmarks/roofline.py --micro-batch 16

The library's own step (`training.step`, 12 x 768, bf16, dropout, full segments of 512) runs forward and backward on
torch's device without values, operation by operation. `kernels` are the operations that are no views, the optimizer's
left out (a dozen, as it is fused); each is a launch, and 4 µs of the host's time at the least. `bytes` are what they
read and write, each operation by itself, as nothing is fused in eager mode; attention counts as torch's fused kernel:
it reads q, k, v and the mask or bias once in each direction. `FLOPs` are those of training/flops.py.

`bound`, in super tokens a second, is what an H100 (SXM: 3.35 TB/s, 989 TFLOP/s) reaches at the most in eager mode: the
slower of bytes / bandwidth and FLOPs / peak; `arithmetic` is the second by itself, `launches` the host's time. What
stands between the first two is what compiling (`compute.compile`) and attention without dense masks and biases
(`compute.attention=flex`) can win.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import gpu
import harness
import numpy as np
import torch
from steps import random_batch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from midibert_ray.data.hashing import row_keys
from midibert_ray.training.build import new_model
from midibert_ray.training.flops import DATASHEET
from midibert_ray.training.step import MaskedStep

BANDWIDTH, PEAK = 3.35e12, DATASHEET["bf16"]["H100"]
LAUNCH = 4e-6
META = torch.device("meta")


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--micro-batch", type=int, default=64)
    options = parser.parse_args()
    rows = [_row(attention, options) for attention in gpu.TARGETS]
    shape = f"12x768, bf16, {options.micro_batch} × 512"
    head = (shape, "MFLOP a token", "kB a token", "kernels a step", "bound", "arithmetic", "launches", "target")
    software, where = harness.versions("torch", "transformers"), "no hardware (counted)"
    harness.publish("roofline", harness.table(head, rows), options, hardware=where, software=software)


def _row(attention: str, options: argparse.Namespace) -> list[str]:
    setting = gpu.Setting(device=META)
    flops, tokens = setting.flops(attention), options.micro_batch * setting.length
    counted = count(setting, attention, options.micro_batch)
    traffic = counted.bytes / tokens
    bound, arithmetic = 1 / max(traffic / BANDWIDTH, flops / PEAK), PEAK / flops
    launches = tokens / (LAUNCH * counted.kernels)
    row = [attention, f"{flops / 1e6:,.0f}", f"{traffic / 1e3:,.0f}", f"{counted.kernels:,}"]
    return [*row, *(f"{value:,.0f}" for value in (bound, arithmetic, launches)), f"≥ {gpu.TARGETS[attention]:,}"]


def count(setting: gpu.Setting, attention: str, micro: int) -> "Counter":
    """Operations of a step's forward and backward pass."""
    config = setting.config(attention, micro)
    masking, model = MaskedStep(config), new_model(config).to(META).bfloat16().train()
    tokens = random_batch(micro, setting.length).to(torch.uint8).numpy()
    keys, lengths = row_keys(0, 0, 0, torch.arange(micro)), np.full(micro, setting.length)
    batch = masking.batch(tokens, lengths, keys, notes=0, augmented=False).to(META)
    with _fused_attention(), Counter() as counter:
        masking(model, batch, augmented=False)["loss"].backward()
    return counter


class Counter(TorchDispatchMode):
    """Counts operations that are no views, and the bytes that they read and write."""

    kernels = bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._schema.name
        if not function.is_view and name not in ("aten::_unsafe_view", "aten::detach", "aten::empty_like"):
            self.kernels += 1
            self.bytes += sum(x.nbytes for x in (*_tensors(args), *_tensors((result,))))
        return result


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


@torch.library.custom_op("roofline::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """A fused kernel's reading and writing."""
    return torch.empty_like(q)


@torch.library.custom_op("roofline::attention_backward", mutates_args=())
def attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, bias: Tensor | None) -> list[Tensor]:
    """That of its backward pass."""
    return [torch.empty_like(x) for x in (q, k, v, *([] if bias is None else [bias]))]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        out = attention(q, k, v, bias)
        ctx.save_for_backward(q, k, v, out)
        ctx.bias = bias
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        bias = ctx.bias if ctx.needs_input_grad[3] else None
        found = attention_backward(grads[0], q, k, v, out, bias)
        return (*found[:3], found[3] if bias is not None else None)


@contextmanager
def _fused_attention() -> Iterator[None]:
    def fused(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **_: object) -> Tensor:
        attended: Tensor = _Attention.apply(q, k, v, attn_mask)
        return attended

    for op, fake in ((attention, lambda q, k, v, bias: torch.empty_like(q)), (attention_backward, _grads)):
        op.register_fake(fake)
    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", fused):
        yield


def _grads(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, bias: Tensor | None) -> list[Tensor]:
    return [torch.empty_like(x) for x in (q, k, v, *([] if bias is None else [bias]))]


if __name__ == "__main__":
    main()
