"""The step of pre-training up to its loss, the same for jobs, benchmarks and tests: corrupt, predict, score.

The host lays a micro-batch out from lengths alone (`MaskedStep.batch`); from there on nothing waits for the device,
and no shape depends on what it has drawn. With `compute.compile` all batches have one shape, so that nothing is
compiled again.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from midibert_ray.data.augment import augment, thinned_length
from midibert_ray.data.masking import MaskedBatch, mask_batch, masked_count, noise_batch, noise_count
from midibert_ray.data.roll import roll_targets
from midibert_ray.model.chosen import Chosen, Slots
from midibert_ray.model.midibert import IGNORE, MidiBertForMaskedLM, mlm_loss
from midibert_ray.model.packing import Packing
from midibert_ray.settings.config import Config
from midibert_ray.training.build import packing


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """A micro-batch of pre-training, laid out; tensors are all on one device."""

    tokens: Tensor
    """uint8 [b, t, 4] (CP) or [b, t] (REMI), padded on the right, as they lie in the store."""
    length: Tensor
    """int64 [b], real tokens of each row."""
    keys: Tensor
    """int64 [b], from `row_keys`: all random decisions about a row."""
    slots: Slots
    """Room for the masked positions."""
    scored: Tensor | None
    """bool [m]: false for slots without a masked position; None where there are none such."""
    packing: Packing | None
    shared: Slots | None
    """Room for the masked positions in the rows of the packing."""
    masked: int
    """Positions to be recovered."""
    notes: int
    """Notes, padding and REMI's other tokens left out."""

    def to(self, device: torch.device) -> "StepBatch":
        """The same on a device; pinned tensors are copied while it works on."""
        moved: StepBatch = _each_tensor(self, lambda x: x.to(device, non_blocking=True))
        return moved

    def pin(self) -> "StepBatch":
        """The same in pinned memory, for a GPU."""
        pinned: StepBatch = _each_tensor(self, lambda x: x.pin_memory())
        return pinned


def _each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{item.name: _each_tensor(getattr(value, item.name), change) for item in fields(value)})


class MaskedStep:
    """Forward pass and loss of a micro-batch under one configuration."""

    def __init__(self, config: Config, backend: str = "inductor") -> None:
        """`backend`: torch's compiler, where `compute.compile` asks for one."""
        self.config, self.protocol, self.backend = config, config.protocol_in_force, backend
        self.augmenting = config.augment.at("pretrain")
        self.rolled = config.pretrain.roll > 0
        self.static = config.compute.compile != "off"
        whole = config.compute.compile == "step"
        compiled: Any = torch.compile(dynamic=False, backend=backend) if whole else lambda function: function
        self._corrupt, self._score = compiled(self._corrupted), compiled(_score)

    def prepare(self, model: MidiBertForMaskedLM) -> None:
        """Make a model compute as `compute.attention` and `compute.compile` say; compilers start when it runs first."""
        model.midibert.kernel = self.config.compute.attention
        if self.config.compute.compile == "step":
            model.compile(dynamic=False, backend=self.backend)
        elif self.config.compute.compile == "layers":
            # One compilation serves all but the last, which picks the masked positions.
            for layer in model.midibert.layers:
                layer.compile(dynamic=False, backend=self.backend)

    def lengths(self, stored: NDArray[np.int64], keys: Tensor) -> NDArray[np.int64]:
        """Real tokens of rows in training, int64 [b]: of segments with `stored` ones, without those thinned out."""
        share = self.augmenting.get("thin", 0.0)
        return thinned_length(torch.from_numpy(stored), keys, self.config.tokens.segment, share).numpy()

    def counts(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Masked positions of rows with so many tokens: int64 [b]."""
        length, fraction, segment = torch.from_numpy(lengths), self.config.mask.fraction, self.config.tokens.segment
        if self.config.pretrain.objective == "noise":
            return noise_count(length, fraction).numpy()
        return masked_count(length, protocol=self.protocol, segment=segment, fraction=fraction).numpy()

    def batch(
        self, tokens: NDArray[np.uint8], stored: NDArray[np.int64], keys: Tensor, *, notes: int, augmented: bool
    ) -> StepBatch:
        """A micro-batch on the CPU, from segments as they lie in the store.

        tokens: uint8 [b, t, 4] or [b, t]; stored: int64 [b], real tokens of each; keys: int64 [b]; notes: of them all,
        where they are not `augmented`.
        """
        thinned = augmented and bool(self.augmenting)
        lengths = self.lengths(stored, keys) if thinned else stored
        counts, layout = self.counts(lengths), None
        # The fullest segment's number for every row: then all batches have one shape.
        few = int(self.counts(np.array([self.config.tokens.segment]))[0]) if self.static else 0
        slots = Slots.of(counts, few)
        if not self.static:
            allowed, cpu = self.protocol.packs_pretraining, torch.device("cpu")
            layout = packing(self.config, lengths, self.config.tokens.segment, cpu, allowed=allowed)
        return StepBatch(
            tokens=torch.from_numpy(tokens),
            length=torch.from_numpy(stored),
            keys=keys,
            slots=slots,
            scored=slots.slots < torch.from_numpy(counts)[slots.rows] if few else None,
            packing=layout,
            shared=Slots.of(layout.shared(counts)) if layout else None,
            masked=int(counts.sum()),
            notes=int(lengths.sum()) if thinned else notes,
        )

    def __call__(self, model: Any, batch: StepBatch, *, augmented: bool) -> dict[str, Tensor]:
        """Sums of `mlm_loss(..., reduction="sum")` over a micro-batch; `model` is one, or an engine around it.

        With `pretrain.roll` also `roll`, squared errors of as many notes as `notes` says.
        """
        masked, tokens, length = self._corrupt(batch, augmented)
        rows, positions = batch.slots.rows, batch.slots.positions(masked.where)
        chosen = Chosen(rows, positions, batch.slots)
        if batch.packing is not None and batch.shared is not None and not self.rolled:
            chosen = Chosen.packed(masked.where, rows, positions, batch.packing, batch.shared)
        real = torch.arange(tokens.shape[1], device=tokens.device) < length[:, None] if self.rolled else None
        output = model(masked.inputs, masked.attention_mask, chosen, batch.packing, real=real)
        sums: dict[str, Tensor] = self._score(output.logits, masked.targets[rows, positions], batch.scored)
        if real is not None:
            sums["roll"] = F.mse_loss(output.roll.float(), roll_targets(tokens, real).flatten(1), reduction="sum")
        counts = {"count": batch.masked, "notes": batch.notes}
        return sums | {name: torch.full((), value, device=rows.device) for name, value in counts.items()}

    def _corrupted(self, batch: StepBatch, augmented: bool) -> tuple[MaskedBatch, Tensor, Tensor]:
        """The tokens that the model sees and has to find, the true ones and their lengths."""
        tokens, length, keys, fraction = batch.tokens.long(), batch.length, batch.keys, self.config.mask.fraction
        if augmented and self.augmenting:
            changed = augment(tokens, length, keys, **self.augmenting)
            tokens, length = changed.tokens, changed.length
        if self.config.pretrain.objective == "noise":
            return noise_batch(tokens, length, keys=keys, fraction=fraction), tokens, length
        masked = mask_batch(tokens, length, protocol=self.protocol, keys=keys, fraction=fraction)
        return masked, tokens, length


def _score(logits: tuple[Tensor, ...], targets: Tensor, scored: Tensor | None) -> dict[str, Tensor]:
    if scored is not None:
        targets = torch.where(scored[:, None] if targets.dim() == 2 else scored, targets, IGNORE)
    return mlm_loss(logits, targets, reduction="sum")
