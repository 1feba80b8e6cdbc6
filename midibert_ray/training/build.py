"""From a configuration to the parts of a run: its batch, the shape of its encoder, its model, its packing."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from midibert_ray.data.order import keyed_hash
from midibert_ray.data.roll import COLUMNS, ROWS
from midibert_ray.model.midibert import MidiBertConfig, MidiBertForMaskedLM
from midibert_ray.model.packing import Packing, plan
from midibert_ray.settings.config import Config, require
from midibert_ray.settings.text import counted

EMBEDDING = MidiBertConfig().embedding_size
"""Numbers that a token is embedded in, of all models that are trained here."""


@dataclass(frozen=True)
class BatchPlan:
    """The parts of one optimizer step; `str()` gives the line printed at the start of a run."""

    batch: int
    """Segments a step, all workers together."""
    workers: int
    micro_batch: int
    """Segments that a worker holds at once."""
    accumulation: int
    """Micro-batches a worker adds up before it steps."""

    def __str__(self) -> str:
        factors = f"{self.micro_batch} micro × {self.accumulation} accumulated × {counted(self.workers, 'workers')}"
        return f"{self.batch} segments a step = {factors}"


def plan_batch(config: Config) -> BatchPlan:
    """The batch arithmetic, here alone: batch = micro × accumulation × workers; ConfigError where it is not even."""
    batch, workers = config.pretrain.batch, config.compute.workers
    require(batch % workers == 0, "compute.workers", workers, f"a divisor of pretrain.batch={batch}")
    share = batch // workers
    micro = config.compute.micro_batch or share
    allowed = f"a divisor of {share} (pretrain.batch={batch} over {workers} workers)"
    require(share % micro == 0, "compute.micro_batch", micro, allowed)
    return BatchPlan(batch, workers, micro, share // micro)


def encoder_config(config: Config) -> MidiBertConfig:
    """The shape of the encoder that a configuration describes."""
    model = config.model
    return MidiBertConfig(
        representation=model.representation,
        attention=model.attention,
        hidden_size=model.hidden,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        intermediate_size=model.feed_forward,
        hidden_dropout_prob=model.dropout,
        attention_probs_dropout_prob=model.dropout if model.attention_dropout < 0 else model.attention_dropout,
        max_length=config.tokens.segment,
        protocol=config.protocol_in_force.to_dict(),
    )


def new_model(config: Config) -> MidiBertForMaskedLM:
    """An encoder with its heads for pre-training, the same random weights on every worker."""
    torch.manual_seed(keyed_hash(config.seed, "weights") % 2**63)
    model = MidiBertForMaskedLM(encoder_config(config))
    if config.pretrain.roll:
        model.roll = nn.Linear(config.model.hidden, ROWS * COLUMNS)
    model.midibert.trusted = True
    return model


def parameter_counts(config: Config) -> dict[str, int]:
    """Parameters of the encoder and of the MLM heads, without making them."""
    with torch.device("meta"):
        model = new_model(config)
    encoder = sum(parameter.numel() for parameter in model.midibert.parameters())
    return {"encoder": encoder, "MLM heads": sum(parameter.numel() for parameter in model.parameters()) - encoder}


def packing(
    config: Config, lengths: NDArray[np.int64], length: int, device: torch.device, *, allowed: bool
) -> Packing | None:
    """A layout in which short segments share rows, see `packing.plan`; None where each has its own.

    `allowed` is said by the protocol: `packs_pretraining` or `packs_task`.
    """
    if not allowed or not config.compute.packing:
        return None
    return plan(lengths, length=length, hidden_size=config.model.hidden, device=device)
