"""AdamW under both protocols, which parameters decay, and the course of the learning rate."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from midibert_ray.music.protocol import Protocol
from midibert_ray.settings.config import OptimizerConfig


class ReferenceAdamW(torch.optim.AdamW):
    """AdamW as the authors' library computed it (transformers 4): eps is added before the bias is corrected, and the
    decay comes after the step.

    Where gradients are as small as eps it moves weights less than torch's AdamW, above all in the first hundreds of
    steps; elsewhere the two agree.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step; no closure is called."""
        for group in self.param_groups:
            if parameters := [parameter for parameter in group["params"] if parameter.grad is not None]:
                self._step(group, parameters)

    def _step(self, group: dict[str, Any], parameters: list[Any]) -> None:
        gradients = [parameter.grad for parameter in parameters]
        states = [self._state_of(parameter) for parameter in parameters]
        first, second = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        steps = [state["step"] for state in states]
        (beta1, beta2), lr = group["betas"], float(group["lr"])
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        divisors = torch._foreach_sqrt(second)
        torch._foreach_add_(divisors, group["eps"])
        counts = [float(step) for step in steps]
        sizes = [-lr * math.sqrt(1 - beta2**count) / (1 - beta1**count) for count in counts]
        torch._foreach_addcdiv_(parameters, first, divisors, sizes)
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state


def adamw(
    parameters: Iterable[nn.Parameter],
    protocol: Protocol,
    *,
    lr: float,
    eps: float,
    weight_decay: float,
    decay: str = "all",
    factors: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW over the parameters that are not frozen: torch's, or `ReferenceAdamW` under a protocol that wants it.

    DeepSpeed's own Adam would be compiled at run time, which a machine without a compiler cannot do;
    torch's fused kernel is as fast on a GPU.

    decay: `all`, or `matrices` to spare biases and LayerNorm; factors: what the peak rate `lr` of a parameter is
    multiplied with, 1 for one that is not named.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in trainable:
        spared = decay == "matrices" and parameter.ndim < 2
        key = (factors or {}).get(parameter, 1.0), 0.0 if spared else weight_decay
        groups.setdefault(key, []).append(parameter)
    members = [
        {"params": parameters, "lr": lr * factor, "weight_decay": share}
        for (factor, share), parameters in groups.items()
    ]
    if protocol.adamw == "authors":
        return ReferenceAdamW(members, lr=lr, eps=eps)
    return torch.optim.AdamW(members, lr=lr, eps=eps, fused=trainable[0].is_cuda)


def rate_factor(settings: OptimizerConfig, steps: int) -> Callable[[int], float]:
    """Factor of the learning rate at each step of a run of `steps` steps."""

    def factor(step: int) -> float:
        if step < settings.warmup_steps:
            return (step + 1) / settings.warmup_steps
        if settings.schedule == "constant":
            return 1.0
        left = 1 - (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
        left = min(1.0, max(0.0, left))
        return left if settings.schedule == "linear" else 0.5 - 0.5 * math.cos(left * math.pi)

    return factor
