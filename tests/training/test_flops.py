"""The count of arithmetic against torch's own, and the peak that it is compared with."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from midibert_ray.model.chosen import Chosen
from midibert_ray.model.midibert import MidiBertConfig, MidiBertForMaskedLM
from midibert_ray.training.flops import peak_flops, step_flops


def product_flops(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    """Of a product by oneDNN, which torch does not count."""
    return 2 * x.numel() * weight[0]


PRODUCTS = {torch.ops.mkldnn._linear_pointwise: product_flops}


@pytest.mark.parametrize("representation", ["cp", "remi"])
def test_the_count_is_that_of_the_products_in_a_forward_pass(representation: str) -> None:
    config = MidiBertConfig(
        representation=representation,
        attention="rope",
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        max_length=128,
        attention_probs_dropout_prob=0.0,
    )
    model = MidiBertForMaskedLM(config).eval()
    hidden = torch.zeros(2, 128, 64)
    where = Chosen.of(torch.arange(128).expand(2, 128) < 20)
    with (
        FlopCounterMode(display=False, custom_mapping=PRODUCTS) as counter,
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
    ):
        for number, layer in enumerate(model.midibert.layers):
            hidden = layer(hidden, None, where if number == 2 else None)
        for head in model.heads:
            head(hidden)
    embedded = 2 * 256 * config.embedding_size * len(config.vocabulary.sizes) * 64
    assert 3 * (counter.get_total_flops() + embedded) == pytest.approx(step_flops(config, np.array([128, 128]), 40))


def test_a_head_at_every_note_needs_the_whole_last_layer() -> None:
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    config, length = MidiBertConfig(attention="rope", **shape), np.array([512])
    more = 462 * (2 * 64**2 + 2 * 64 * 96) + 512 * 64 * 1666
    pairs = (1 - 50 / 512) * 4 * 64 * 512**2
    added = step_flops(config, length, 50, rolled=1666) - step_flops(config, length, 50)
    assert added == pytest.approx(3 * (2 * more + pairs))


def test_padding_does_not_count_and_relative_terms_do() -> None:
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    rope = MidiBertConfig(attention="rope", **shape)
    relative = MidiBertConfig(attention="relative_key_query", **shape)
    assert step_flops(rope, np.array([256, 256]), 50) < step_flops(rope, np.array([512]), 50)
    pairs = 3 * (1 + 64 / 512) * 64 * 4 * 512**2  # three passes, two layers, four operations a pair and coordinate
    assert step_flops(relative, np.array([512]), 64) - step_flops(rope, np.array([512]), 64) == pairs
    # The paper's model, by hand: weights of 12 layers, the embeddings, and what only 77 of 512 positions need.
    layer = 12 * 768**2
    weights = 512 * (1024 * 768 + 11 * layer + 2 * 768**2) + 77 * (10 * 768**2 + 176 * 768)
    products = (11 + 77 / 512) * 8 * 768 * 512**2
    assert step_flops(MidiBertConfig(), np.array([512]), 77) == pytest.approx(3 * (2 * weights + products))


def test_the_peak_of_a_cpu_is_measured() -> None:
    assert 1e9 < peak_flops(torch.device("cpu"), "fp32") < 1e14
