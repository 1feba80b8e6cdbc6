"""FlexAttention beside the dense mask and the dense bias: the same numbers.

On a CPU it has no backward pass: there the modification of the scores is differentiated by itself.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from midibert_ray.model import flex
from midibert_ray.model.attention import attend
from midibert_ray.model.midibert import MidiBertForMaskedLM
from midibert_ray.model.packing import plan
from midibert_ray.model.relative import distance_windows, relative_bias
from tests.model.test_midibert import KINDS, random_tokens, tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*flex_attention.*")

GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])
devices = pytest.mark.parametrize("device", ["cpu", GPU])
LENGTHS = np.array([128, 20, 64, 30, 1])


def inputs(t: int, device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    sizes = [(3, 2, t, 16)] * 3 + [(2 * t - 1, 16)]
    return [torch.randn(size, dtype=dtype, device=device) for size in sizes]


@devices
@pytest.mark.parametrize(
    ("t", "relative", "masked"),
    [
        *((192, relative, masked) for relative in (True, False) for masked in ("no", "padding", "shared")),
        *((40, True, masked) for masked in ("no", "padding", "shared")),
    ],
)
@torch.no_grad()
def test_attention_is_that_of_the_dense_bias(device: str, t: int, relative: bool, masked: str) -> None:
    q, k, v, table = inputs(t, device)
    mask, dense = flex.BlockedMask.of(None, shared=False), None
    if masked == "padding":
        dense = torch.arange(t, device=device) < torch.tensor([t, t // 2, 3], device=device)[:, None]
        mask = flex.BlockedMask.of(dense, shared=False)
    elif masked == "shared":
        numbers = torch.arange(t, device=device).expand(3, t) // torch.tensor([[17], [30], [64]], device=device)
        dense, mask = numbers[:, :, None] == numbers[:, None, :], flex.BlockedMask.of(numbers, shared=True)
    chosen = table if relative else None
    expected = attend(q, k, v, table=chosen, mask=dense)
    torch.testing.assert_close(attend(q, k, v, table=chosen, mask=mask), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("t", [128, 40])
def test_the_modification_and_its_gradients_are_the_dense_bias(t: int) -> None:
    q, k, _, table = (tensor.double().requires_grad_() for tensor in inputs(t, "cpu"))
    windows = distance_windows(table, 0.25)
    expected = relative_bias(q.flatten(0, 1), k.flatten(0, 1), windows).unflatten(0, (3, 2))
    terms = flex.modification(q, k, distance_windows(table, 0.25))
    grid = torch.meshgrid(*(torch.arange(n) for n in (3, 2, t, t)), indexing="ij")
    actual = terms(torch.zeros(3, 2, t, t, dtype=torch.float64), *grid)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (q, k, table), direction)
    torch.testing.assert_close(torch.autograd.grad(actual, (q, k, table), direction), wanted, rtol=0, atol=1e-11)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("relative", [True, False])
def test_gradients_on_a_gpu_are_those_of_the_dense_bias(relative: bool) -> None:
    found = []
    for blocked in (False, True):
        tensors = [tensor.requires_grad_() for tensor in inputs(128, "cuda")]
        q, k, v, table = tensors
        dense = torch.arange(128, device="cuda") < torch.tensor([128, 70, 3], device="cuda")[:, None]
        mask = flex.BlockedMask.of(dense, shared=False) if blocked else dense
        out = attend(q, k, v, table=table if relative else None, mask=mask)
        found.append(torch.autograd.grad(out.square().sum(), tensors[: 4 if relative else 3]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("representation", "attention"), KINDS)
@pytest.mark.parametrize("packed", [True, False])
@torch.no_grad()
def test_a_model_gives_the_same_logits(representation: str, attention: str, packed: bool) -> None:
    torch.manual_seed(0)
    model = MidiBertForMaskedLM(tiny(representation, attention, max_length=128)).eval()
    tokens, inside = (
        random_tokens(representation, len(LENGTHS), 128),
        torch.arange(128) < torch.tensor(LENGTHS)[:, None],
    )
    where = inside & (torch.rand(inside.shape) < 0.3)
    layout = plan(LENGTHS, length=128, hidden_size=32, device=torch.device("cpu")) if packed else None
    assert (layout is not None) == packed
    expected = model(tokens, inside, where, layout).logits
    model.midibert.kernel = "flex"
    seen: list[object] = []
    model.midibert.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    torch.testing.assert_close(model(tokens, inside, where, layout).logits, expected, rtol=1e-4, atol=1e-4)
    assert isinstance(seen[0], flex.BlockedMask)


def test_a_cpu_that_learns_takes_the_dense_way() -> None:
    model = MidiBertForMaskedLM(tiny("cp", "rope", attention_probs_dropout_prob=0.0)).train()
    model.midibert.kernel = "flex"
    model(random_tokens("cp")).logits[0].sum().backward()
