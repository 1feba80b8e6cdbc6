"""The step up to its loss: the same numbers in any layout, nothing that waits for a device, nothing compiled twice."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from midibert_ray.data.hashing import row_keys
from midibert_ray.data.store import TokenStore
from midibert_ray.model.midibert import MidiBertForMaskedLM
from midibert_ray.settings.config import Config, ConfigError
from midibert_ray.settings.overrides import replace
from midibert_ray.training import engine as engines
from midibert_ray.training import pretrain
from midibert_ray.training.build import new_model
from midibert_ray.training.pretrain import PretrainData, PretrainLoop
from midibert_ray.training.step import MaskedStep, StepBatch

META = torch.device("meta")
LENGTHS = np.array([64, 64, 40, 7, 64, 1, 20, 64])
KINDS = [
    {"model.attention": "rope"},
    {"model.attention": "relative_key_query"},
    {"model.attention": "rope", "model.representation": "remi"},
    {"model.attention": "rope", "tokens.protocol": "paper"},
    {"model.attention": "relative_key_query", "tokens.protocol": "paper", "model.representation": "remi"},
    {
        "model.attention": "rope",
        "pretrain.objective": "noise",
        "augment.transpose": 6,
        "augment.shift": 15,
        "augment.scale": True,
        "augment.thin": 0.2,
    },
]
kinds = pytest.mark.parametrize("changes", KINDS, ids=lambda changes: "-".join(map(str, changes.values())))


def batch(step: MaskedStep, number: int = 0) -> StepBatch:
    """Random segments of `LENGTHS`, with other ids and other masks for each number."""
    vocabulary = new_model(step.config).config.vocabulary
    generator = np.random.default_rng(number)
    columns = [generator.integers(0, pad, (len(LENGTHS), 64)) for pad in vocabulary.pad]
    tokens = np.stack(columns, axis=-1).astype(np.uint8)
    tokens[np.arange(64) >= LENGTHS[:, None]] = vocabulary.pad
    tokens = tokens if len(columns) > 1 else tokens[..., 0]
    keys = row_keys(1, 2, number, torch.arange(len(LENGTHS)))
    return step.batch(tokens, LENGTHS, keys, notes=int(LENGTHS.sum()), augmented=True)


def run(config: Config, number: int = 0) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Sums and gradients of one step, nothing compiled."""
    step, model = MaskedStep(config), new_model(config)
    sums = step(model, batch(step, number), augmented=True)
    sums["loss"].backward()
    return sums, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@kinds
def test_slots_for_every_row_change_no_number(tiny: Config, changes: dict[str, Any]) -> None:
    config = replace(tiny, changes)
    sums, gradients = run(config)
    padded, others = run(replace(config, {"compute.compile": "layers"}))
    torch.testing.assert_close(padded, sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(others, gradients, rtol=1e-4, atol=1e-5)
    step = MaskedStep(config)
    assert sums["count"] == padded["count"] == batch(step).masked
    one, other = (MaskedStep(replace(config, {"compute.compile": how})) for how in ("layers", "off"))
    assert len(batch(one).slots.rows) == len(LENGTHS) * batch(one).slots.few >= len(batch(other).slots.rows)


class Waits(TorchFunctionMode):
    """Fails where values would be copied from the host within a step, for which a GPU is waited for."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        result = function(*args, **kwargs)
        if isinstance(result, Tensor) and result.device == META:
            sources = [x for x in args if isinstance(x, Tensor) and x.device != META and x.dim()]
            assert not sources and name not in ("tensor", "as_tensor", "new_tensor"), f"{name} copies from the host"
        return result


@kinds
@pytest.mark.parametrize("how", ["off", "layers"])
def test_no_shape_depends_on_what_the_device_draws(tiny: Config, changes: dict[str, Any], how: str) -> None:
    """On torch's device without values: what needs one of them to go on cannot be computed there."""
    config = replace(tiny, changes | {"compute.compile": how, "model.dropout": 0.1, "model.layers": 2})
    step = MaskedStep(config)
    model, there = new_model(config).to("meta").train(), batch(step).to(META)
    with Waits():
        loss = step(model, there, augmented=True)["loss"]
        loss.backward()
    assert loss.device == META and loss.shape == ()


def test_that_test_can_fail(tiny: Config) -> None:
    step = MaskedStep(tiny)
    laid_out = batch(step)
    there = laid_out.to(META)
    where = there.tokens[..., 0] > 3
    for wrong in (
        lambda: there.tokens[where],
        lambda: where.nonzero(),
        lambda: there.length.sum().item(),
        lambda: int(there.length.sum()),
        lambda: there.length.cpu().numpy(),
    ):
        with pytest.raises((NotImplementedError, RuntimeError)):
            wrong()
    for copy in (
        lambda: torch.tensor([1, 2], device=META),
        lambda: there.keys.new_tensor([1, 2]),
        lambda: laid_out.keys.to(META),
    ):
        with Waits(), pytest.raises(AssertionError, match="copies from the host"):
            copy()


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "attention", "backend"),
    [
        ("layers", "rope", "inductor"),
        ("layers", "relative_key_query", "aot_eager"),
        ("step", "rope", "aot_eager"),
        ("step", "relative_key_query", "aot_eager"),
    ],
)
def test_compiled_steps_give_the_same_numbers_and_are_compiled_once(
    compiler: None, tiny: Config, how: str, attention: str, backend: str
) -> None:
    config = replace(tiny, {"model.attention": attention, "model.layers": 2})
    plain, compiled = MaskedStep(config), MaskedStep(replace(config, {"compute.compile": how}), backend)
    model, fast = new_model(config), new_model(config)
    compiled.prepare(fast)
    for number in range(4):
        with torch._dynamo.config.patch(error_on_recompile=number > 1):
            found = compiled(fast, batch(compiled, number), augmented=True)
            found["loss"].backward()
        expected = plain(model, batch(plain, number), augmented=True)
        expected["loss"].backward()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    pairs = zip(model.parameters(), fast.parameters(), strict=True)
    assert all(torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-4) for one, other in pairs)
    assert model.state_dict().keys() == fast.state_dict().keys()


@pytest.mark.slow
def test_a_compiled_run_compiles_nothing_after_its_first_validation(
    process_group: None, compiler: None, sample_store: TokenStore, tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With DeepSpeed around it; training and validation each have their own graphs."""
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    config = replace(tiny, {"compute.compile": "step", "model.attention": "rope"})
    monkeypatch.setattr(pretrain, "MaskedStep", partial(MaskedStep, backend="aot_eager"))
    data = PretrainData(config, [sample_store])
    engine = engines.build(new_model(config), config, steps=20, device=torch.device("cpu"))
    loop = PretrainLoop(config, data, engine, rank=0, world=1, device=torch.device("cpu"))
    loop.step(0, 0, 0)
    first = graphs["unique_graphs"]
    assert first > 0
    for number in range(1, data.order.batches_per_epoch):
        loop.step(0, number, number)
    assert graphs["unique_graphs"] == first
    loop.validate(1)
    validated = graphs["unique_graphs"]
    loop.step(1, 0, data.order.batches_per_epoch)
    loop.validate(2)
    assert graphs["unique_graphs"] == validated


def test_compiling_does_not_go_with_weights_that_come_layer_by_layer(tiny: Config) -> None:
    with pytest.raises(ConfigError, match=r"compute\.compile='layers' is not allowed; use off with compute\.zero_stag"):
        replace(tiny, {"compute.compile": "layers", "compute.zero_stage": 3})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@kinds
def test_a_gpu_is_never_waited_for(tiny: Config, changes: dict[str, Any]) -> None:
    config, device = replace(tiny, changes | {"model.dropout": 0.1}), torch.device("cuda")
    step = MaskedStep(config)
    model: MidiBertForMaskedLM = new_model(config).to(device).train()  # type: ignore[arg-type]
    laid_out = batch(step).pin()
    step(model, laid_out.to(device), augmented=True)["loss"].backward()  # what is done once
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, laid_out.to(device), augmented=True)["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode(before)
