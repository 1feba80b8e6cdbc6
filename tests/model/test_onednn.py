"""Products by oneDNN: those of torch, with their gradients, and only where torch would multiply by MKL."""

import pytest
import torch
from torch import Tensor, nn

from midibert_ray.model import onednn

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


def both(layer: onednn.Linear, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Output, gradient of x and of the parameters: by the layer, and by torch in float64."""
    exact = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None).double()
    exact.load_state_dict(layer.state_dict())
    found = []
    for each in (layer, exact):
        own = x.detach().to(each.weight.dtype).requires_grad_()
        output = each(own)
        output.sin().sum().backward()
        found.append([output, own.grad, *(p.grad for p in each.parameters())])
    return found[0], found[1]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 37, 48), (1, 48), (5, 48)])
def test_a_layer_computes_and_learns_what_torchs_does(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = onednn.Linear(48, 20, bias=bias)
    for ours, exact in zip(*both(layer, torch.randn(shape)), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("x", [torch.randn(16, 9).T, torch.randn(9, 64)[:, 16:32], torch.randn(3, 9, 64)[..., :16]])
def test_rows_that_lie_apart_in_memory_are_multiplied_as_well(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    kernel = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *args: (given.append(args[:2]), kernel(*args))[1])
    for ours, exact in zip(*both(onednn.Linear(16, 8), x), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)
    dense = [each.is_contiguous() or each.T.is_contiguous() for pair in given for each in pair]
    assert len(dense) == 6 and all(dense), "oneDNN takes a hundred times as long for rows that lie apart"


def test_frozen_weights_get_no_gradient() -> None:
    layer = onednn.Linear(4, 3).requires_grad_(False)
    x = torch.randn(2, 4, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(2, 4))


def test_other_numbers_and_other_devices_are_torchs_own() -> None:
    x = torch.randn(2, 4)
    assert onednn.applies(x)
    assert not onednn.applies(x.bfloat16()) and not onednn.applies(x.double()) and not onednn.applies(x.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert onednn.Linear(4, 3)(x).dtype == torch.bfloat16, "a layer of torch is cast"


def test_products_that_learn_outside_of_a_function_of_ours_keep_their_gradient() -> None:
    a, b = torch.randn(2, 130, 8, requires_grad=True), torch.randn(2, 8, 130, requires_grad=True)
    onednn.bmm(a, b).sum().backward()
    assert a.grad is not None and b.grad is not None


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("size", [5, 130])
def test_batches_of_products_are_those_of_torch(size: int, turned: bool) -> None:
    torch.manual_seed(0)
    a = torch.randn(3, 7, size).transpose(1, 2) if turned else torch.randn(3, size, 7)
    b = torch.randn(3, size, 7).transpose(1, 2) if turned else torch.randn(3, 7, size)
    out = torch.full((3, size, size), torch.nan)
    with torch.no_grad():
        torch.testing.assert_close(onednn.bmm(a, b), torch.bmm(a, b), rtol=1e-5, atol=1e-5)
        onednn.bmm(a, b, out=out)
        assert torch.equal(out, onednn.bmm(a, b))
        torch.testing.assert_close(onednn.mm(a[0], b[0]), a[0] @ b[0], rtol=1e-5, atol=1e-5)
