"""Files as the authors' code writes them, with random weights."""

from pathlib import Path
from typing import Any

import torch

from midibert_ray.music.vocabulary import CP

HIDDEN, HEADS, FF, LAYERS, LENGTH = 24, 3, 40, 2, 16


def reference_weights(representation: str = "cp", kind: str = "encoder", prefix: str = "") -> dict[str, torch.Tensor]:
    """Random tensors under the names that the authors' code gives them."""
    shapes: dict[str, tuple[int, ...]] = {
        "bert.embeddings.position_ids": (1, LENGTH),
        "bert.embeddings.word_embeddings.weight": (10, HIDDEN),
        "bert.embeddings.position_embeddings.weight": (LENGTH, HIDDEN),
        "bert.embeddings.token_type_embeddings.weight": (2, HIDDEN),
        "bert.embeddings.LayerNorm.weight": (HIDDEN,),
        "bert.embeddings.LayerNorm.bias": (HIDDEN,),
        "bert.pooler.dense.weight": (HIDDEN, HIDDEN),
        "bert.pooler.dense.bias": (HIDDEN,),
        "in_linear.weight": (HIDDEN, 8 * (4 if representation == "cp" else 1)),
        "in_linear.bias": (HIDDEN,),
    }
    if representation == "cp":
        shapes |= {f"word_emb.{i}.lut.weight": (n, 8) for i, n in enumerate(CP.sizes)}
    else:
        shapes["word_emb.lut.weight"] = (169, 8)
    for i in range(LAYERS):
        layer = f"bert.encoder.layer.{i}."
        linear = {f"attention.self.{x}": (HIDDEN, HIDDEN) for x in ("query", "key", "value")}
        linear |= {"attention.output.dense": (HIDDEN, HIDDEN)}
        linear |= {"intermediate.dense": (FF, HIDDEN), "output.dense": (HIDDEN, FF)}
        for name, shape in linear.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}{name}.weight": (HIDDEN,), f"{layer}{name}.bias": (HIDDEN,)}
        shapes[f"{layer}attention.self.distance_embedding.weight"] = (2 * LENGTH - 1, HIDDEN // HEADS)
    if kind != "encoder":
        shapes = {"midibert." + name: shape for name, shape in shapes.items()}
    if kind == "notes":
        shapes |= {"classifier.1.weight": (256, HIDDEN), "classifier.1.bias": (256,)}
        shapes |= {"classifier.3.weight": (7, 256), "classifier.3.bias": (7,)}
    if kind == "sequences":
        shapes |= {"attention.ws1.weight": (128, HIDDEN), "attention.ws2.weight": (4, 128)}
        shapes |= {"classifier.0.weight": (256, 4 * HIDDEN), "classifier.0.bias": (256,)}
        shapes |= {"classifier.2.weight": (8, 256), "classifier.2.bias": (8,)}
    return {prefix + name: torch.randn(shape) for name, shape in shapes.items()}


def write(path: Path, weights: Any, **other: Any) -> Path:
    torch.save({"epoch": 3, "state_dict": weights, "optimizer": {}} | other, path)
    return path
