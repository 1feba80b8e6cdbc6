"""The one place of batch arithmetic: how an optimizer step is divided over workers and micro-batches."""

from dataclasses import dataclass

from midibert_ray.settings.config import Config, require


@dataclass(frozen=True)
class BatchPlan:
    """How one optimizer step is put together; `str()` gives the line printed at the start of a run."""

    batch: int
    """Segments a step, all workers together."""

    workers: int
    micro_batch: int
    """Segments that a worker holds at once."""

    accumulation: int
    """Micro-batches a worker adds up before it steps."""

    def __str__(self) -> str:
        parts = f"{self.micro_batch} micro × {self.accumulation} accumulated × {self.workers} workers"
        return f"{self.batch} segments a step = {parts}"


def plan_batch(config: Config) -> BatchPlan:
    """The one place of batch arithmetic: batch = micro × accumulation × workers.

    Raises:
        ConfigError: where the global batch cannot be divided evenly.
    """
    batch, workers = config.pretrain.batch, config.compute.workers
    require(batch % workers == 0, "compute.workers", workers, f"a divisor of pretrain.batch={batch}")
    share = batch // workers
    micro = config.compute.micro_batch or share
    require(
        share % micro == 0,
        "compute.micro_batch",
        micro,
        f"a divisor of {share} (pretrain.batch={batch} over {workers} workers)",
    )
    return BatchPlan(batch, workers, micro, share // micro)
