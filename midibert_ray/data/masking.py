"""Masking for pre-training, on the device.

Nothing is drawn from a generator: every decision is a hash of (seed, epoch, step, row of the global batch,
position, purpose). The same rows are therefore masked alike on a CPU and a GPU, by one worker or by
sixty-four, and after a resume.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from midibert_ray.music import splitmix64
from midibert_ray.music.protocol import Protocol
from midibert_ray.music.vocabulary import CP, REMI

MASKED, RANDOM = 0.8, 0.1
"""Shares of the chosen positions that become the MASK row and random ids; the rest stays (paper §V-A)."""

# The constants as signed numbers; torch's int64 arithmetic wraps around.
_STEP = splitmix64.STEP - 2**64
_MULTIPLIERS = tuple(multiplier - 2**64 for multiplier in splitmix64.MULTIPLIERS)
_CHOOSE, _KIND, _IDS = 0, 1, 2
_UNIT = 2**31


@dataclass(frozen=True, kw_only=True)
class MaskedBatch:
    """A batch for `MidiBertForMaskedLM`. Token shapes: [b, t, 4] (CP) or [b, t] (REMI), int64."""

    inputs: Tensor
    """The tokens that the model sees."""
    targets: Tensor
    """The original tokens; only those at `where` are scored."""
    where: Tensor
    """bool [b, t]: the chosen positions."""
    attention_mask: Tensor
    """bool [b, t]: the positions that may be attended."""


def row_keys(seed: int, epoch: int, step: int, rows: Tensor) -> Tensor:
    """Keys int64 [b] of the random decisions about rows of a global batch (int64 [b], their indices in it)."""
    key = torch.full_like(rows, _STEP)
    for value in (seed, epoch, step, rows):
        key = _mix(key + value)
    return key


def masked_count(length: Tensor, *, protocol: Protocol, segment: int, fraction: float = 0.15) -> Tensor:
    """The number of chosen positions of each row: int64 [b], from the row's number of real tokens alone.

    With `masks_padding` round(segment * fraction) whatever the row holds (reference behaviour: 77 of 512), else
    round(length * fraction), at least 1 in a row with notes.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"mask fraction {fraction!r} is not possible; allowed: above 0 and below 1")
    eligible = torch.full_like(length, segment) if protocol.masks_padding else length
    return _share(eligible, fraction).clamp_min(1).minimum(eligible)


def mask_batch(
    tokens: Tensor, length: Tensor, *, protocol: Protocol, keys: Tensor, fraction: float = 0.15
) -> MaskedBatch:
    """Choose positions, corrupt them, and tell where the model may attend.

    tokens: int64 [b, t, 4] (CP) or [b, t] (REMI), padded on the right; length: int64 [b], real tokens of
    each row; keys: int64 [b] from `row_keys`; all on one device. The protocol's fields of `mask` are used.

    Under PAPER (reference behaviour) of 512 positions, PAD included, 77 are chosen: 62 MASK, 8 random over all ids of
    each token type, PAD and MASK among them, 7 unchanged. Under CLEAN 15 % of the real tokens: 80 / 10 / 10 decided
    position by position, random over real ids.
    """
    segment = tokens.shape[1]
    count = masked_count(length, protocol=protocol, segment=segment, fraction=fraction)[:, None]
    real = torch.arange(segment, device=tokens.device) < length[:, None]
    rank = _ranks(_hash(keys, segment, _CHOOSE), None if protocol.masks_padding else real)
    where = rank < count
    if protocol.mask_shares == "exact":
        masked = _share(count, MASKED)
        replace_by_mask, keep = rank < masked, rank >= masked + _share(count, RANDOM)
    else:
        kind = _below(_hash(keys, segment, _KIND), _UNIT)
        replace_by_mask, keep = kind < MASKED * _UNIT, kind >= (MASKED + RANDOM) * _UNIT
    inputs = _corrupt(tokens, where & replace_by_mask, where & ~replace_by_mask & ~keep, keys, protocol.random_ids)
    compound = tokens.dim() == 3
    attended = inputs[..., 0] != CP.pad[0] if protocol.attends_masked_padding and compound else real
    return MaskedBatch(inputs=inputs, targets=tokens, where=where, attention_mask=attended)


def _share(count: Tensor, fraction: float) -> Tensor:
    return (count.double() * fraction).round().long()


def _corrupt(tokens: Tensor, to_mask: Tensor, to_random: Tensor, keys: Tensor, random_ids: str) -> Tensor:
    """MASK ids where `to_mask`, random ids where `to_random` (bool [b, t]), in all token types together."""
    compound = tokens.dim() == 3
    vocabulary = CP if compound else REMI
    # PAD and MASK are the last two ids of every token type: real ids are those below PAD.
    ids = vocabulary.sizes if random_ids == "all" else vocabulary.pad
    drawn = [_below(_hash(keys, tokens.shape[1], _IDS + i), n) for i, n in enumerate(ids)]
    random = torch.stack(drawn, dim=-1)
    corrupted = torch.where(to_random[..., None], random, tokens if compound else tokens[..., None])
    corrupted = torch.where(to_mask[..., None], tokens.new_tensor(vocabulary.mask), corrupted)
    return corrupted if compound else corrupted[..., 0]


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's own one copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """`splitmix64.mix` for signed numbers of torch: int64, any shape."""
    x = (x ^ _shift_right(x, 30)) * _MULTIPLIERS[0]
    x = (x ^ _shift_right(x, 27)) * _MULTIPLIERS[1]
    return x ^ _shift_right(x, 31)


def _hash(keys: Tensor, segment: int, purpose: int) -> Tensor:
    """64 random bits a position, int64 [b, segment]: the splitmix64 streams that start at (key, purpose)."""
    positions = torch.arange(1, segment + 1, device=keys.device)
    return _mix(_mix(keys + (purpose + 1) * 2**32)[:, None] + positions * _STEP)


def _below(bits: Tensor, n: int) -> Tensor:
    """Uniform integers 0..n-1 out of the upper 31 of 64 random bits."""
    return (_shift_right(bits, 33) * n) >> 31


def _ranks(bits: Tensor, eligible: Tensor | None) -> Tensor:
    """Place of each position in its row's random order; those not `eligible` (bool [b, t]) come last."""
    if eligible is not None:
        bits = bits.masked_fill(~eligible, torch.iinfo(torch.int64).max)
    order = bits.argsort(dim=1, stable=True)
    return torch.zeros_like(order).scatter_(1, order, torch.arange(bits.shape[1], device=bits.device).expand_as(order))
