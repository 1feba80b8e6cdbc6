"""Training steps of the benchmarks; needs torch alone, so that other environments can use it."""

import time
from collections.abc import Callable, Iterable
from itertools import accumulate

import torch
from torch import Tensor, nn

SIZES = (4, 18, 88, 66)
"""Ids of Bar, Position, Pitch and Duration; the last two of each are PAD and MASK."""

CLIP = 3.0


def random_batch(batch: int, length: int) -> Tensor:
    """The same CP tokens for everyone: int64 [batch, length, 4], without PAD and MASK."""
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(0, size - 2, (batch, length), generator=generator) for size in SIZES]
    return torch.stack(columns, dim=-1)


def timed(step: Callable[[int], object], *, warmup: int, steps: int) -> list[float]:
    """Seconds of each of `steps` steps, after some that do not count."""
    seconds = []
    for number in range(warmup + steps):
        start = time.perf_counter()
        step(number)
        seconds.append(time.perf_counter() - start)
    return seconds[warmup:]


def largest_live(step: Callable[[int], object]) -> float:
    """GiB that the tensors made within one step hold at most, at one time, by the profiler's record of each."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        step(0)
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(held) / 2**30


class Updater:
    """Clipping and AdamW with the authors' settings; for a bf16 model on an fp32 copy of its weights."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, fused: bool = False) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.copied = self.parameters[0].dtype is not torch.float32
        self.weights = [p.detach().float().clone() for p in self.parameters] if self.copied else self.parameters
        self.adamw = torch.optim.AdamW(self.weights, lr=2e-5, eps=1e-6, weight_decay=0.01, fused=fused)

    def state_gib(self) -> float:
        """GiB of the moments, which AdamW makes in the first step and keeps."""
        return sum(value.nbytes for state in self.adamw.state.values() for value in state.values()) / 2**30

    def step(self) -> None:
        """Take the gradients of the parameters, clip them, and step."""
        if self.copied:
            for weight, parameter in zip(self.weights, self.parameters, strict=True):
                weight.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
        nn.utils.clip_grad_norm_(self.weights, CLIP)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        if self.copied:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self.weights)
