"""The machines that a job asks for, and how its models compute on them."""

from dataclasses import dataclass
from typing import Literal

from midibert_ray.settings import validators as checks
from midibert_ray.settings.validators import optional, require, runtime


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the forward and backward pass; part of the identity, as it changes results."""
    workers: int = runtime(1)
    """Workers of the pre-training run."""
    compile: Literal["off", "layers", "step"] = optional("off")
    """Pre-training compiled by torch (it needs a C++ compiler): layer by layer, or the whole step up to its loss. Part
    of the identity, as dropout draws other masks then."""
    micro_batch: int = runtime(0)
    """Segments a worker holds at once; 0 takes the global batch divided by the workers."""
    attention: Literal["dense", "flex"] = runtime("dense")
    """How pre-training computes attention: with dense masks and biases, or on a GPU by torch's FlexAttention, which
    needs none of them and knows no dropout of attention weights."""
    packing: bool = runtime(True)
    """Let short segments share a row where nothing attends to padding: the same results without work on it."""
    zero_stage: int = runtime(1)
    """DeepSpeed ZeRO stage, 0 to 3."""
    gpu: bool = runtime(False)
    """Give every pre-training worker a GPU (NCCL) instead of CPUs (gloo)."""
    accelerator: str = runtime("")
    """Type of GPU that pre-training workers ask for, as Ray names it (`H100`, `A10G`, `L4`); empty: any."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = runtime("PACK")
    """Where the workers of a pre-training run go: on few nodes, or on many; STRICT_: on one, or each on its own."""
    cpus_per_worker: int = runtime(1)
    """CPUs of a pre-training worker, used as threads when there is no GPU."""
    cpus_per_trial: float = runtime(1)
    """CPUs of a fine-tuning trial."""
    gpus_per_trial: float = runtime(0)
    """GPUs of a fine-tuning trial; a fraction lets trials share one."""
    max_concurrent_trials: int = runtime(0)
    """Trials that run side by side; 0 lets the cluster's resources decide."""
    max_failures: int = runtime(3)
    """Times that a run or a trial starts again from its last checkpoint after a failure."""
    watchdog_s: float = runtime(300.0)
    """Seconds without a step until a worker is named, twice as many until it is killed; 50 slowest steps at least."""
    log_every: int = runtime(10)
    """Steps between two progress lines, each of which is one point of every curve."""
    keep_checkpoints: int = runtime(2)
    """Checkpoints kept on storage: the best ones, and the latest; at least 2, so that one may break."""

    def __post_init__(self) -> None:
        require(self.zero_stage in range(4), "compute.zero_stage", self.zero_stage, "0, 1, 2 or 3")
        fits = self.compile == "off" or self.zero_stage < 3
        require(
            fits, "compute.compile", self.compile, "off with compute.zero_stage=3, which gathers weights layer by layer"
        )
        require(self.keep_checkpoints >= 2, "compute.keep_checkpoints", self.keep_checkpoints, "2 or more")
        require(self.gpu or not self.accelerator, "compute.accelerator", self.accelerator, "it with compute.gpu=true")
        checks.require_positive(self, "compute.", "workers", "cpus_per_worker", "cpus_per_trial", "log_every")
        checks.require_not_negative(
            self, "compute.", "micro_batch", "gpus_per_trial", "max_concurrent_trials", "max_failures", "watchdog_s"
        )
