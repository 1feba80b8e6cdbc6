"""The engine with real DeepSpeed, one process."""

import copy
import importlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow.fs import LocalFileSystem
from torch import Tensor, nn

from midibert_ray.model.midibert import MidiBertForMaskedLM
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.training import engine as engines
from midibert_ray.training.build import new_model, plan_batch
from midibert_ray.training.checkpoints import CheckpointError, verify, write_digests
from midibert_ray.training.engine import Progress

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def test_progress_counts_validations_without_improvement() -> None:
    progress = Progress()
    for score in (-3.0, -2.0, -2.0, -2.5):
        progress.judge(score)
    assert (progress.best, progress.bad) == (-2.0, 2)


def test_deepspeed_settings_come_from_the_batch_plan(tiny: Config) -> None:
    config = replace(tiny, {"compute.micro_batch": 4, "compute.zero_stage": 2, "optimizer.clip": 0.5})
    settings = engines.deepspeed_config(config, plan_batch(config))
    assert settings["train_batch_size"] == 12
    assert settings["train_micro_batch_size_per_gpu"] == 4
    assert settings["gradient_accumulation_steps"] == 3
    assert settings["zero_optimization"] == {"stage": 2}
    assert settings["gradient_clipping"] == 0.5


def built(config: Config) -> Any:
    return engines.build(new_model(config), config, steps=20, device=CPU)


def test_gpus_send_gradients_while_the_backward_pass_goes_on(tiny: Config) -> None:
    two = {"compute.gpu": True, "compute.workers": 2, "compute.zero_stage": 1}
    config = replace(tiny, two)
    zero = engines.deepspeed_config(config, plan_batch(config))["zero_optimization"]
    assert zero["overlap_comm"] and zero["contiguous_gradients"]
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] < 87e6 / 4
    config = replace(config, {"compute.workers": 1})
    assert not engines.deepspeed_config(config, plan_batch(config))["zero_optimization"]["overlap_comm"]


@pytest.mark.parametrize(("stage", "kept"), [(2, True), (3, True), (1, False)])
def test_micro_batches_in_bf16_are_added_up_in_fp32(process_group: None, tiny: Config, stage: int, kept: bool) -> None:
    """A gradient of 1 and eleven of 2 ** -9: bf16, whose next number after 1 is 1 + 2 ** -7, would lose them."""
    built(tiny)  # which keeps DeepSpeed from compiling a collective of its own
    import deepspeed

    changes = {"compute.zero_stage": stage, "compute.precision": "bf16", "compute.micro_batch": 1}
    config = replace(tiny, changes | {"optimizer.clip": 0})
    model = nn.Linear(1, 1, bias=False)
    settings = engines.deepspeed_config(config, plan_batch(config)) | {"zero_allow_untested_optimizer": True}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    before = engines.full_weights(engine)["weight"].item()
    for number in range(12):
        x = torch.full((1, 1), 2.0**-9 if number else 1.0, dtype=torch.bfloat16)
        engine.backward(engine(x).float().sum() * 12)  # it divides by the twelve
        engine.step()
    moved = before - engines.full_weights(engine)["weight"].item()
    assert (moved == pytest.approx(1 + 11 * 2.0**-9, abs=1e-3)) == kept


every_stage = pytest.mark.parametrize("stage", [0, 1, 2, 3])
every_precision = pytest.mark.parametrize("precision", ["fp32", "bf16"])


def step(engine: Any) -> float:
    tokens = torch.zeros(12, 64, 4, dtype=torch.int64)
    where = torch.ones(12, 64, dtype=torch.bool)
    loss = torch.stack([logits.float().square().mean() for logits in engine(tokens, where, where).logits]).sum()
    engine.backward(loss)
    engine.step()
    return float(loss.detach())


@pytest.mark.parametrize("protocol", ["paper", "clean"])
@every_stage
@every_precision
def test_a_checkpoint_brings_everything_back(
    process_group: None, tiny: Config, tmp_path: Path, stage: int, precision: str, protocol: str
) -> None:
    changes = {"compute.zero_stage": stage, "compute.precision": precision, "optimizer.warmup_steps": 5}
    config = replace(tiny, changes | {"tokens.protocol": protocol})
    engine = built(config)
    losses = [step(engine) for _ in range(3)]
    assert losses[-1] < losses[0]
    engines.save(engine, Progress(epoch=1, step=3, best=-2.0, bad=1), tmp_path)
    undisturbed = [step(engine) for _ in range(3)]

    again = built(replace(config, {"seed": 1}))
    assert engines.load(again, tmp_path) == Progress(epoch=1, step=3, best=-2.0, bad=1)
    assert [step(again) for _ in range(3)] == undisturbed


def live_weights(engine: Any) -> dict[str, Tensor]:
    """What the forward pass uses, taken from the model itself."""
    import deepspeed

    parameters = dict(engine.module.named_parameters())
    gathered = deepspeed.zero.GatheredParameters(
        list(parameters.values()), enabled=engine.zero_optimization_stage() == 3
    )
    with gathered:
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}


@every_stage
@every_precision
def test_the_weights_beside_the_engine_are_its_own_in_fp32(
    process_group: None, tiny: Config, tmp_path: Path, stage: int, precision: str
) -> None:
    engine = built(replace(tiny, {"compute.zero_stage": stage, "compute.precision": precision}))
    before = live_weights(engine)
    for _ in range(3):
        step(engine)
    engines.save(engine, Progress(), tmp_path)
    opened = MidiBertForMaskedLM.from_pretrained(tmp_path).state_dict()
    live = live_weights(engine)
    assert opened.keys() == live.keys() == engine.module.state_dict().keys()
    assert {weights.dtype for weights in opened.values()} == {torch.float32}
    assert all(torch.equal(opened[name].to(weights.dtype), weights) for name, weights in live.items())
    assert any(not torch.equal(before[name], weights) for name, weights in live.items())
    rounded = all(torch.equal(weights, weights.bfloat16().float()) for weights in opened.values())
    assert not rounded, "bf16 training keeps fp32 weights, and these are the ones to export"


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_zero_stage(
    process_group: None, tiny: Config, tmp_path: Path, before: int, after: int
) -> None:
    config = replace(tiny, {"optimizer.decay": "matrices"})
    engine = built(replace(config, {"compute.zero_stage": before}))
    for _ in range(3):
        step(engine)
    engines.save(engine, Progress(step=3), tmp_path)
    undisturbed = [step(engine) for _ in range(5)]
    again = built(replace(config, {"compute.zero_stage": after, "seed": 1}))
    assert engines.load(again, tmp_path) == Progress(step=3)
    assert [step(again) for _ in range(5)] == pytest.approx(undisturbed, rel=1e-4)


@pytest.mark.parametrize(("before", "after"), [(1, 0), (0, 2), (1, 3), (3, 2)])
def test_a_zero_stage_that_cannot_be_read_is_refused(
    process_group: None, tiny: Config, tmp_path: Path, before: int, after: int
) -> None:
    engines.save(built(replace(tiny, {"compute.zero_stage": before})), Progress(), tmp_path)
    message = rf"compute\.zero_stage={after} cannot read .* set compute\.zero_stage={before} to go on"
    with pytest.raises(CheckpointError, match=message):
        engines.load(built(replace(tiny, {"compute.zero_stage": after})), tmp_path)


def test_a_folder_without_state_is_refused(process_group: None, tiny: Config, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no DeepSpeed state"):
        engines.load(built(tiny), tmp_path)


class Planted:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("shard", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_planted_pickle_is_refused_and_not_run(
    process_group: None, tiny: Config, tmp_path: Path, shard: str, zipped: bool, workers: int
) -> None:
    folder, made = tmp_path / "step_000000010", tmp_path / "made"
    folder.mkdir()
    engines.save(built(tiny), Progress(), folder)
    path = folder / engines.ENGINE_FOLDER / shard
    state = torch.load(path, weights_only=False)
    torch.save(state | {"extra": Planted(made)}, path, _use_new_zipfile_serialization=zipped)
    progress = json.loads((folder / engines.PROGRESS_FILE).read_text())
    (folder / engines.PROGRESS_FILE).write_text(json.dumps(progress | {"workers": workers}))  # 2: to be converted
    (folder / "digests-00000.json").unlink()
    write_digests(folder, 0, 1)
    verify(LocalFileSystem(), str(folder))
    with pytest.raises(CheckpointError, match=rf"{shard} is no file of tensors and plain .* remove that") as error:
        engines.load(built(tiny), folder)
    assert ("it names io.open" in str(error.value)) == zipped
    assert not made.exists()
    torch.load(path, weights_only=False)
    assert made.exists(), "it would have been run"


def one_step_of_gradient_descent(config: Config, rate: float) -> tuple[float, float]:
    """Norm of the gradient, from torch alone, and norm of the change of the weights, through the engine."""
    import deepspeed

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    alone = copy.deepcopy(model)
    alone(torch.ones(1, 4)).sum().mul(10).backward()
    settings = engines.deepspeed_config(config, plan_batch(config)) | {"zero_allow_untested_optimizer": True}
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    before = engines.full_weights(engine)
    kind = torch.bfloat16 if config.compute.precision == "bf16" else torch.float32
    engine.backward(engine(torch.ones(1, 4, dtype=kind)).float().sum() * 10)
    engine.step()
    after = engines.full_weights(engine)
    return norm(parameter.grad for parameter in alone.parameters()), norm(after[name] - before[name] for name in after)


def norm(tensors: Iterable[Any]) -> float:
    return float(torch.cat([tensor.flatten() for tensor in tensors]).norm())


@every_stage
@every_precision
def test_clipping_acts(process_group: None, tiny: Config, stage: int, precision: str) -> None:
    config = replace(tiny, {"compute.zero_stage": stage, "compute.precision": precision})
    gradient, change = one_step_of_gradient_descent(replace(config, {"optimizer.clip": 1.5}), rate=0.5)
    assert gradient > 3
    assert change == pytest.approx(0.5 * 1.5, rel=2e-2), "a gradient that is too long is shortened to the clip"
    _, change = one_step_of_gradient_descent(replace(config, {"optimizer.clip": 0}), rate=0.5)
    assert change == pytest.approx(0.5 * gradient, rel=2e-2), "0 turns clipping off"
    _, change = one_step_of_gradient_descent(replace(config, {"optimizer.clip": 2 * gradient}), rate=0.5)
    assert change == pytest.approx(0.5 * gradient, rel=2e-2), "a shorter one is left alone"


def test_a_module_that_is_hidden_is_there_again_afterwards() -> None:
    sys.modules.pop("colorsys", None)
    with engines._hidden("colorsys"), pytest.raises(ImportError):
        importlib.import_module("colorsys")
    there = importlib.import_module("colorsys")
    with engines._hidden("colorsys"):
        assert importlib.import_module("colorsys") is there, "what is there already stays"
    assert sys.modules["colorsys"] is there
