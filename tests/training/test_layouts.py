"""The same training for any layout of workers and micro-batches, and for a run that goes on in another one."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from midibert_ray.data.store import TokenStore
from midibert_ray.model.midibert import MidiBertForMaskedLM
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from tests.training.layouts import Pair, Task, Trace, merged, train

pytestmark = pytest.mark.slow

STEPS = 30


class Layouts:
    """Runs a stretch with one worker in this process, or with two beside it."""

    def __init__(self, pair: Pair, store: TokenStore, cache: Path) -> None:
        self.pair, self.place = pair, {"store": store.uri, "cache": str(cache)}

    def __call__(self, config: Config, workers: int, steps: int = STEPS, **more: Any) -> Trace:
        """What all workers saw together."""
        task = Task(replace(config, {"compute.workers": workers}), steps=steps, **self.place, **more)
        traces = [train(task, 0, 1)] if workers == 1 else self.pair.run(train, task)
        first = traces[0]
        first.rows = [[*chain(*parts)] for parts in zip(*(trace.rows for trace in traces), strict=True)]
        assert all(trace.losses == first.losses for trace in traces), "all workers report the sums of all"
        return first


@pytest.fixture
def run(process_group: None, pair: Pair, sample_store: TokenStore, tmp_path: Path) -> Layouts:
    return Layouts(pair, sample_store, tmp_path / "cache")


def test_the_curve_is_the_same_for_any_layout(run: Layouts, tiny: Config) -> None:
    alone = run(tiny, 1)
    two = run(tiny, 2)
    accumulated = run(replace(tiny, {"compute.micro_batch": 4}), 1)
    assert alone.rows == two.rows == accumulated.rows
    assert len({tuple(step) for step in alone.rows}) == STEPS
    assert two.losses == pytest.approx(alone.losses, rel=1e-4)
    assert accumulated.losses == pytest.approx(alone.losses, rel=1e-4)
    assert alone.losses[-1] < alone.losses[0]


def test_rolls_are_learned_alike_in_any_layout_and_after_a_change_of_it(
    run: Layouts, tiny: Config, tmp_path: Path
) -> None:
    config = replace(tiny, {"pretrain.roll": 0.01, "pretrain.objective": "noise", "augment.thin": 0.2})
    alone, two = run(config, 1, 10), run(config, 2, 10, save=tmp_path / "two", save_at=5)
    assert two.losses == pytest.approx(alone.losses, rel=1e-4)
    assert alone.losses[-1] < alone.losses[0] - 0.5
    again = run(config, 1, 10, resume=merged(tmp_path / "two"))
    assert again.losses == pytest.approx(alone.losses[5:], rel=1e-4)


def test_dropout_does_not_change_the_batches(run: Layouts, tiny: Config) -> None:
    config = replace(tiny, {"model.dropout": 0.1})
    alone, two = run(config, 1, 8), run(config, 2, 8)
    accumulated = run(replace(config, {"compute.micro_batch": 4}), 1, 8)
    assert alone.rows == two.rows == accumulated.rows == run(tiny, 1, 8).rows
    assert alone.losses != two.losses


@pytest.mark.parametrize("stage", [2, 3])
def test_two_workers_export_whole_weights(run: Layouts, tiny: Config, tmp_path: Path, stage: int) -> None:
    def weights(workers: int) -> dict[str, Tensor]:
        folder = tmp_path / str(workers)
        run(replace(tiny, {"compute.zero_stage": stage}), workers, 4, save=folder, save_at=4)
        return MidiBertForMaskedLM.from_pretrained(merged(folder)).state_dict()

    alone, two = weights(1), weights(2)
    assert alone.keys() == two.keys()
    assert all(torch.allclose(two[name], value, rtol=1e-3, atol=1e-4) for name, value in alone.items())


CASES = [(stage, precision, "clean") for stage in range(4) for precision in ("fp32", "bf16")] + [(1, "fp32", "paper")]


@pytest.mark.parametrize(("stage", "precision", "protocol"), CASES)
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_workers(
    run: Layouts, tiny: Config, tmp_path: Path, stage: int, precision: str, protocol: str, before: int, after: int
) -> None:
    changes = {
        "tokens.protocol": protocol,
        "compute.zero_stage": stage,
        "compute.precision": precision,
        "optimizer.decay": "matrices",
        "optimizer.schedule": "linear",
    }
    config = replace(tiny, changes)
    undisturbed = run(config, before, 16, save=tmp_path / "step", save_at=8)
    resumed = run(config, after, 16, resume=merged(tmp_path / "step"))
    assert resumed.progress is not None
    assert resumed.progress.step == 8
    assert resumed.rows == undisturbed.rows[8:]
    assert resumed.rates == undisturbed.rates[8:]
    assert resumed.decays == undisturbed.decays
    assert resumed.losses == pytest.approx(undisturbed.losses[8:], rel=1e-3)
