"""Inputs that do not fit a model: torch would take many of them for something else."""

import torch
from torch import Tensor

from midibert_ray.music.vocabulary import Vocabulary

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
"""Types of ids and masks; torch computes with no others."""


def require_inputs(tokens: Tensor, vocabulary: Vocabulary, **masks: Tensor | None) -> None:
    """Make sure that tokens are ids of their columns, and that masks have one value a time step.

    It costs a few passes over the tokens, and once waits for a GPU. Raises ValueError naming the column or mask, what
    it holds, and what it may hold.
    """
    for name, given in {"tokens": tokens, **masks}.items():
        if not isinstance(given, Tensor) and (given is not None or name == "tokens"):
            raise ValueError(f"{name} of type {type(given).__name__} does not fit this model; it takes a tensor")
    families, shape = vocabulary.families, list(tokens.shape)
    columns = [len(families)] if len(families) > 1 else []
    if len(shape) != 2 + len(columns) or shape[2:] != columns or not shape[1]:
        expected = ", ".join(map(str, ["batch", "time", *columns]))
        raise ValueError(f"tokens of shape {shape} do not fit this model; it takes [{expected}] ({vocabulary.name})")
    if tokens.dtype not in _INTEGERS:
        raise ValueError(f"tokens of dtype {tokens.dtype} are no ids; the model takes int64")
    for name, mask in masks.items():
        if mask is None:
            continue
        if list(mask.shape) != shape[:2]:
            raise ValueError(
                f"{name} of shape {list(mask.shape)} does not fit tokens of shape {shape}; {shape[:2]} does"
            )
        known = mask.dtype in _INTEGERS or mask.is_floating_point()
        if mask.dtype != torch.bool and not (known and ((mask == 0) | (mask == 1)).all()):
            raise ValueError(f"{name} of {mask.dtype} holds more than 0 and 1; it takes bool or these, 1 = attend")
    if not tokens.numel():
        return
    flat = tokens.reshape(-1, len(families))
    ranges = torch.stack((flat.amin(0), flat.amax(0)), dim=1).tolist()
    for (name, ids), (low, high) in zip(families.items(), ranges, strict=True):
        if low < 0 or high >= len(ids):
            raise ValueError(
                f"tokens hold {low if low < 0 else high} in the column {name}, whose ids go from 0 to {len(ids) - 1}; "
                f"columns are {', '.join(families)}, with the ids of vocabulary.json and not those of MIDI"
            )
