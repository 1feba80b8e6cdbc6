"""The targets of pre-training, made on the device: masked tokens, or notes that were changed.

Nothing is drawn from a generator: every decision is a hash of (seed, epoch, step, row of the global batch,
position, purpose). The same rows are therefore corrupted alike on a CPU and a GPU, by one worker or by
sixty-four, and after a resume.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from midibert_ray.data.hashing import below, position_bits
from midibert_ray.music.protocol import Protocol
from midibert_ray.music.vocabulary import CP, REMI

MASKED, RANDOM = 0.8, 0.1
"""Shares of the chosen positions that become the MASK row and random ids; the rest stays (paper §V-A)."""

_CHOOSE, _KIND, _IDS = 0, 1, 2
_NOISE = 8
_NOISE_SPANS = (0, 4, 12, 12)
"""By token type: how far noise goes down, and one less up (M2BERT); 0: left as it is."""
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
    rank = _ranks(position_bits(keys, segment, _CHOOSE), None if protocol.masks_padding else real)
    where = rank < count
    if protocol.mask_shares == "exact":
        masked = _share(count, MASKED)
        replace_by_mask, keep = rank < masked, rank >= masked + _share(count, RANDOM)
    else:
        kind = below(position_bits(keys, segment, _KIND), _UNIT)
        replace_by_mask, keep = kind < MASKED * _UNIT, kind >= (MASKED + RANDOM) * _UNIT
    inputs = _corrupt(tokens, where & replace_by_mask, where & ~replace_by_mask & ~keep, keys, protocol.random_ids)
    compound = tokens.dim() == 3
    attended = inputs[..., 0] != CP.pad[0] if protocol.attends_masked_padding and compound else real
    return MaskedBatch(inputs=inputs, targets=tokens, where=where, attention_mask=attended)


def noise_count(length: Tensor, fraction: float) -> Tensor:
    """The number of notes of each row that `noise_batch` changes: int64 [b], given the rows' notes int64 [b]."""
    return _share(length, fraction).clamp_min(1).minimum(length)


def noise_batch(tokens: Tensor, length: Tensor, *, keys: Tensor, fraction: float = 0.3) -> MaskedBatch:
    """Choose notes, change each of them a little, and leave it to the model to find the right ones (M2BERT).

    round(length * fraction) real notes of each row are chosen, at least 1. Position moves by -4..3, pitch and duration
    by -12..11, each drawn, and clipped to the ids of notes; a note that would stay the same goes one semitone up, or
    down from the highest. Bars stay. There is no MASK.

    tokens: int64 [b, t, 4] (CP), padded on the right; length and keys: as for `mask_batch`.
    """
    segment = tokens.shape[1]
    real = torch.arange(segment, device=tokens.device) < length[:, None]
    where = _ranks(position_bits(keys, segment, _CHOOSE), real) < noise_count(length, fraction)[:, None]
    columns = []
    for family, (span, pad) in enumerate(zip(_NOISE_SPANS, CP.pad, strict=True)):
        step = below(position_bits(keys, segment, _NOISE + family), 2 * span) - span
        columns.append((tokens[..., family] + step).clamp(0, pad - 1))
    columns[0] = tokens[..., 0]
    same = torch.stack([column == tokens[..., family] for family, column in enumerate(columns)]).all(0)
    pitch, highest = columns[2], CP.pad[2] - 1
    columns[2] = torch.where(same, torch.where(pitch < highest, pitch + 1, pitch - 1), pitch)
    inputs = torch.where(where[..., None], torch.stack(columns, dim=-1), tokens)
    return MaskedBatch(inputs=inputs, targets=tokens, where=where, attention_mask=real)


def _share(count: Tensor, fraction: float) -> Tensor:
    return (count.double() * fraction).round().long()


def _corrupt(tokens: Tensor, to_mask: Tensor, to_random: Tensor, keys: Tensor, random_ids: str) -> Tensor:
    """MASK ids where `to_mask`, random ids where `to_random` (bool [b, t]), in all token types together."""
    compound = tokens.dim() == 3
    vocabulary = CP if compound else REMI
    # PAD and MASK are the last two ids of every token type: real ids are those below PAD.
    ids = vocabulary.sizes if random_ids == "all" else vocabulary.pad
    columns = []
    for i, (n, mask) in enumerate(zip(ids, vocabulary.mask, strict=True)):
        drawn = below(position_bits(keys, tokens.shape[1], _IDS + i), n)
        column = torch.where(to_random, drawn, tokens[..., i] if compound else tokens)
        columns.append(torch.where(to_mask, mask, column))
    return torch.stack(columns, dim=-1) if compound else columns[0]


def _ranks(bits: Tensor, eligible: Tensor | None) -> Tensor:
    """Place of each position in its row's random order; those not `eligible` (bool [b, t]) come last."""
    if eligible is not None:
        bits = bits.masked_fill(~eligible, torch.iinfo(torch.int64).max)
    order = bits.argsort(dim=1, stable=True)
    return torch.zeros_like(order).scatter_(1, order, torch.arange(bits.shape[1], device=bits.device).expand_as(order))
