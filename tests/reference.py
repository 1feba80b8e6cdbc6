"""Files as the authors' code writes them, with random weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from midibert_ray.music.vocabulary import CP

HIDDEN, HEADS, FF, LAYERS, LENGTH = 24, 3, 40, 2, 16


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a model to make a file of."""

    hidden: int = HIDDEN
    heads: int = HEADS
    feed_forward: int = FF
    layers: int = LAYERS
    length: int = LENGTH
    embedding: int = 8


def reference_weights(
    representation: str = "cp", kind: str = "encoder", prefix: str = "", sizes: Sizes = Sizes()
) -> dict[str, Tensor]:
    """Random tensors under the names that the authors' code gives them."""
    hidden = sizes.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "bert.embeddings.position_ids": (1, sizes.length),
        "bert.embeddings.word_embeddings.weight": (10, hidden),
        "bert.embeddings.position_embeddings.weight": (sizes.length, hidden),
        "bert.embeddings.token_type_embeddings.weight": (2, hidden),
        "bert.embeddings.LayerNorm.weight": (hidden,),
        "bert.embeddings.LayerNorm.bias": (hidden,),
        "bert.pooler.dense.weight": (hidden, hidden),
        "bert.pooler.dense.bias": (hidden,),
        "in_linear.weight": (hidden, sizes.embedding * (4 if representation == "cp" else 1)),
        "in_linear.bias": (hidden,),
    }
    if representation == "cp":
        shapes |= {f"word_emb.{i}.lut.weight": (n, sizes.embedding) for i, n in enumerate(CP.sizes)}
    else:
        shapes["word_emb.lut.weight"] = (169, sizes.embedding)
    for i in range(sizes.layers):
        shapes |= _layer(f"bert.encoder.layer.{i}.", sizes)
    if kind != "encoder":
        shapes = {"midibert." + name: shape for name, shape in shapes.items()}
    if kind == "notes":
        shapes |= {"classifier.1.weight": (256, hidden), "classifier.1.bias": (256,)}
        shapes |= {"classifier.3.weight": (7, 256), "classifier.3.bias": (7,)}
    if kind == "sequences":
        shapes |= {"attention.ws1.weight": (128, hidden), "attention.ws2.weight": (4, 128)}
        shapes |= {"classifier.0.weight": (256, 4 * hidden), "classifier.0.bias": (256,)}
        shapes |= {"classifier.2.weight": (8, 256), "classifier.2.bias": (8,)}
    return {prefix + name: torch.randn(shape) for name, shape in shapes.items()}


def _layer(start: str, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    hidden = sizes.hidden
    linear = {f"attention.self.{x}": (hidden, hidden) for x in ("query", "key", "value")}
    linear |= {"attention.output.dense": (hidden, hidden)}
    linear |= {"intermediate.dense": (sizes.feed_forward, hidden), "output.dense": (hidden, sizes.feed_forward)}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in linear.items():
        shapes |= {f"{start}{name}.weight": shape, f"{start}{name}.bias": shape[:1]}
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
        shapes |= {f"{start}{name}.weight": (hidden,), f"{start}{name}.bias": (hidden,)}
    distances = (2 * sizes.length - 1, hidden // sizes.heads)
    return shapes | {f"{start}attention.self.distance_embedding.weight": distances}


def tempered(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights at sizes at which every term matters and none drowns the others, as in a trained model."""
    return {name: _tempered(name, tensor) for name, tensor in weights.items()}


def _tempered(name: str, tensor: Tensor) -> Tensor:
    if name.endswith("LayerNorm.weight"):
        return 1 + 0.2 * tensor
    if tensor.dim() < 2:
        return 0.2 * tensor
    looked_up = any(part in name for part in (".lut.", "distance_embedding", "token_type"))
    return tensor if looked_up else tensor / tensor.shape[1] ** 0.5


def write(path: Path, weights: Any, **other: Any) -> Path:
    torch.save({"epoch": 3, "state_dict": weights, "optimizer": {}} | other, path)
    return path
