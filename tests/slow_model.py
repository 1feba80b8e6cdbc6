"""The paper's model as the authors' code computes it, once more: numpy in float64, straight from a file's tensors.

Nothing here is shared with the package: every formula is written out, and a distance vector is gathered for every
pair of positions. Tensors go by the authors' names.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, Array]

FAMILIES = {"Bar": 4, "Position": 18, "Pitch": 88, "Duration": 66}
"""Token types of CP and their ids, PAD and MASK included; of 176."""


def weights_of(tensors: dict[str, torch.Tensor]) -> Weights:
    """A state dict as arrays, the encoder's names without `midibert.`."""
    return {name.removeprefix("midibert."): tensor.double().numpy() for name, tensor in tensors.items()}


def dense(w: Weights, name: str, x: Array) -> Array:
    return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)


def layer_norm(w: Weights, name: str, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    return normed * w[name + ".weight"] + w[name + ".bias"]


def gelu(x: Array) -> Array:
    return x * 0.5 * (1.0 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2.0)))


def softmax(x: Array, axis: int = -1) -> Array:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def embed(w: Weights, tokens: NDArray[np.int64]) -> Array:
    """tokens: [b, t, 4] (CP) or [b, t] (REMI) -> [b, t, hidden]."""
    if tokens.ndim == 3:
        looked_up = [w[f"word_emb.{i}.lut.weight"][tokens[..., i]] for i in range(4)]
    else:
        looked_up = [w["word_emb.lut.weight"][tokens]]
    scaled = [vectors * math.sqrt(vectors.shape[-1]) for vectors in looked_up]  # 16 where they have 256 numbers
    x = dense(w, "in_linear", np.concatenate(scaled, axis=-1))
    x = x + w["bert.embeddings.token_type_embeddings.weight"][0]
    return layer_norm(w, "bert.embeddings.LayerNorm", x)


def attend(w: Weights, layer: str, x: Array, attended: NDArray[np.bool_]) -> Array:
    """Self-attention with the relative positions that BERT calls relative_key_query."""
    b, t, hidden = x.shape
    table = w[layer + "attention.self.distance_embedding.weight"]
    d, longest = table.shape[1], (len(table) + 1) // 2
    q, k, v = (
        dense(w, f"{layer}attention.self.{name}", x).reshape(b, t, hidden // d, d).transpose(0, 2, 1, 3)
        for name in ("query", "key", "value")
    )
    vectors = table[np.arange(t)[:, None] - np.arange(t)[None, :] + longest - 1]  # [query, key, d]
    scores = np.einsum("bhid,bhjd->bhij", q, k, optimize=True)
    scores += np.einsum("bhid,ijd->bhij", q, vectors, optimize=True)
    scores += np.einsum("bhjd,ijd->bhij", k, vectors, optimize=True)
    scores = np.where(attended[:, None, None, :], scores / math.sqrt(d), -np.inf)
    mixed = np.einsum("bhij,bhjd->bhid", softmax(scores), v, optimize=True)
    return mixed.transpose(0, 2, 1, 3).reshape(b, t, hidden)


def encode(w: Weights, tokens: NDArray[np.int64], attended: NDArray[np.bool_]) -> Array:
    """The last hidden state [b, t, hidden] without dropout; attended: [b, t]."""
    x, number = embed(w, tokens), 0
    while (layer := f"bert.encoder.layer.{number}.") + "output.dense.weight" in w:
        mixed = dense(w, layer + "attention.output.dense", attend(w, layer, x, attended))
        x = layer_norm(w, layer + "attention.output.LayerNorm", x + mixed)
        expanded = dense(w, layer + "output.dense", gelu(dense(w, layer + "intermediate.dense", x)))
        x = layer_norm(w, layer + "output.LayerNorm", x + expanded)
        number += 1
    return x


def note_logits(w: Weights, hidden: Array) -> Array:
    """[b, t, classes]."""
    return dense(w, "classifier.3", np.maximum(dense(w, "classifier.1", hidden), 0.0))


def sequence_logits(w: Weights, hidden: Array) -> Array:
    """[b, classes]; padding enters the averages over time like everything else."""
    shares = softmax(dense(w, "attention.ws2", np.tanh(dense(w, "attention.ws1", hidden))), axis=1)
    averages = np.einsum("btr,bth->brh", shares, hidden).reshape(len(hidden), -1)
    return dense(w, "classifier.2", np.maximum(dense(w, "classifier.0", averages), 0.0))


def cross_entropy(logits: Array, targets: NDArray[np.int64]) -> float:
    """Mean over m rows: logits [m, n], targets [m]."""
    return float(-np.log(softmax(logits)[np.arange(len(targets)), targets]).mean())
