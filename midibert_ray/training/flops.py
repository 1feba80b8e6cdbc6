"""Arithmetic of a training step beside the peak of the hardware: model FLOP/s and MFU."""

import time

import numpy as np
import torch
from numpy.typing import NDArray

from midibert_ray.model.midibert import MidiBertConfig

DATASHEET = {
    "bf16": {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12},
    "fp32": {"B200": 75e12, "H200": 67e12, "H100": 67e12, "A100": 19.5e12, "L40S": 91.6e12, "L4": 30.3e12},
}
"""Dense products a second of known GPUs by their makers' data sheets (SXM where there are several; fp32 without
TF32). Longer names stand before those that they begin with."""

_MEASURED_SIZE = {"cpu": 512, "cuda": 4096}


def step_flops(config: MidiBertConfig, lengths: NDArray[np.int64], masked: int, rolled: int = 0) -> float:
    """Floating-point operations that a pre-training step needs, padding left out.

        step    = 3 * forward                                      (the backward pass is two more products for each)
        forward = 2 * notes * (e h + (layers - 1) (4 h^2 + 2 h f) + 2 h^2)     products with weights
                + 2 * masked * (2 h^2 + 2 h f + v h)          what only masked positions need: queries of the last layer
                + c h * (layers - 1 + masked / notes) * sum(length^2)              scores, values, relative terms

    with c = 4, or 8 for relative_key_query, h the width, f that of the feed-forward layers, e the concatenated
    embeddings (1024 in CP) and v all ids of all token types (176 in CP). Norms, softmax, dropout, masking and the
    optimizer take time but do not count.

    lengths: int [segments], real super tokens (REMI: tokens) of each segment of the global batch; masked: positions
    to be recovered, of all of them; rolled: outputs of a head at every note, for which all need the last layer whole.
    """
    h, f, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    sizes = config.vocabulary.sizes
    everywhere = config.embedding_size * len(sizes) * h + (layers - 1) * (4 * h**2 + 2 * h * f) + 2 * h**2
    lengths = np.asarray(lengths, dtype=np.float64)
    notes, pairs = lengths.sum(), (lengths**2).sum()
    asked = notes if rolled else masked
    heads = masked * sum(sizes) * h + notes * rolled * h
    per_pair = (8 if config.attention == "relative_key_query" else 4) * h * (layers - 1 + min(asked / notes, 1))
    return 3 * float(2 * notes * everywhere + 2 * asked * (2 * h**2 + 2 * h * f) + 2 * heads + per_pair * pairs)


def peak_flops(device: torch.device, precision: str) -> float:
    """Products a second that one worker's device could do at most, in `fp32` or `bf16`: the denominator of MFU.

    MFU (model FLOP utilisation; Chowdhery et al., "PaLM", 2022) = step_flops / (seconds a step * workers * peak).
    The peak is the data sheet's for a GPU that is known here. For others, and for a CPU with the threads that this
    process has, it is the best of a few products of two square matrices, measured now (a fraction of a second).
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for chip, peak in DATASHEET[precision].items():
            if chip in name:
                return peak
    size, dtype = _MEASURED_SIZE[device.type], torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # reading a value waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
