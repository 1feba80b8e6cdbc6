"""A device without Ray and DeepSpeed: an engine in plain torch that the library's own pre-training loop drives."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from midibert_ray.settings.config import Config
from midibert_ray.training.build import plan_batch
from midibert_ray.training.optimizer import adamw, rate_factor


class PlainEngine:
    """A model, AdamW with a schedule, and clipping, as `training.engine` has them from DeepSpeed.

    With bf16 the model computes in it; gradients are added up, clipped and applied in fp32, on a copy of the weights.
    """

    skipped_steps = 0

    def __init__(self, model: Any, config: Config, *, steps: int, device: torch.device) -> None:
        self.module, self.clip = model.to(device), config.optimizer.clip
        self.accumulation, self.passes = plan_batch(config).accumulation, 0
        self.weights = [p.detach().float().clone() for p in self.module.parameters()]
        if config.compute.precision == "bf16":
            self.module.bfloat16()
        settings = config.optimizer
        rates = {"lr": settings.lr, "eps": settings.eps, "weight_decay": settings.weight_decay}
        masters = [nn.Parameter(weight) for weight in self.weights]
        self.optimizer = adamw(masters, config.protocol_in_force, decay=settings.decay, **rates)
        self.masters, self.parameters = masters, list(self.module.parameters())
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate_factor(settings, steps))
        self.norm = torch.zeros((), device=device)

    def __call__(self, *inputs: Any, **more: Any) -> Any:
        return self.module(*inputs, **more)

    def train(self) -> None:
        """Dropout on."""
        self.module.train()

    def eval(self) -> None:
        """Dropout off."""
        self.module.eval()

    def get_lr(self) -> list[float]:
        """The learning rate of the next step."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def get_global_grad_norm(self) -> Tensor:
        """Norm of the last gradient, before clipping."""
        return self.norm

    def zero_optimization(self) -> bool:
        """True: it knows the norm itself, as ZeRO does."""
        return True

    def backward(self, loss: Tensor) -> None:
        """Backward pass of a micro-batch; gradients are added up in fp32."""
        (loss / self.accumulation).backward()
        self.passes += 1
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            gradient = parameter.grad
            if gradient is not None:
                master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)
                parameter.grad = None

    def step(self) -> None:
        """Clip, step and copy the weights back, if a batch is complete."""
        if self.passes < self.accumulation:
            return
        self.passes = 0
        if self.clip:
            self.norm = nn.utils.clip_grad_norm_(self.masters, self.clip, foreach=True)
        else:
            self.norm = nn.utils.get_total_norm([m.grad for m in self.masters if m.grad is not None])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.masters)

    def save(self, path: Path, **more: Any) -> None:
        """Write the whole state to a file, whole or not at all."""
        state = {"weights": self.masters, "optimizer": self.optimizer.state_dict()}
        state |= {"schedule": self.schedule.state_dict()} | more
        scratch = path.with_name(f"{path.name}.new")
        torch.save(state, scratch)
        scratch.replace(path)

    def load(self, path: Path) -> dict[str, Any]:
        """Go on from what `save` wrote; returns it."""
        state: dict[str, Any] = torch.load(path, map_location=self.masters[0].device, weights_only=True)
        with torch.no_grad():
            torch._foreach_copy_(self.masters, state["weights"])
            torch._foreach_copy_(self.parameters, self.masters)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        return state

    def weights_by_name(self) -> dict[str, Tensor]:
        """The fp32 weights on the CPU."""
        names = [name for name, _ in self.module.named_parameters()]
        return {name: master.detach().cpu() for name, master in zip(names, self.masters, strict=True)}
