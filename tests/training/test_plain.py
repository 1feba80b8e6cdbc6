"""The engine in plain torch that benchmarks drive: the run that DeepSpeed makes, and it goes on bit for bit."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.plain import PlainEngine
from midibert_ray.data.store import TokenStore
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.training.build import new_model
from midibert_ray.training.engine import Progress
from midibert_ray.training.pretrain import PretrainData, PretrainLoop, run_epochs
from tests.training.test_pretrain import losses, run

CPU = torch.device("cpu")


def plain(config: Config, store: TokenStore, *, resume: Path | None = None, save: Path | None = None) -> list[float]:
    data = PretrainData(config, [store])
    engine = PlainEngine(new_model(config), config, steps=data.steps(config.pretrain.epochs), device=CPU)
    progress = Progress(**engine.load(resume)["progress"]) if resume else Progress()
    reports: list[tuple[dict[str, Any], bool]] = []

    def report(metrics: dict[str, Any], checkpoint: bool) -> None:
        reports.append((metrics, checkpoint))
        if checkpoint and save and not save.exists():
            engine.save(save, progress=asdict(progress))

    run_epochs(PretrainLoop(config, data, engine, rank=0, world=1, device=CPU), progress, report)
    return losses(reports)


@pytest.mark.parametrize(("precision", "protocol"), [("fp32", "clean"), ("fp32", "paper"), ("bf16", "clean")])
def test_it_makes_the_run_that_deepspeed_makes(
    process_group: None, sample_store: TokenStore, tiny: Config, precision: str, protocol: str
) -> None:
    changes = {"compute.precision": precision, "tokens.protocol": protocol, "compute.micro_batch": 6}
    config = replace(tiny, changes | {"pretrain.epochs": 1, "optimizer.clip": 0.5})
    close = 1e-4 if precision == "fp32" else 1e-2
    assert plain(config, sample_store) == pytest.approx(losses(run(config, sample_store)), rel=close)


def test_it_goes_on_bit_for_bit(sample_store: TokenStore, tiny: Config, tmp_path: Path) -> None:
    config = replace(tiny, {"model.dropout": 0.1, "pretrain.valid_every": 1, "compute.precision": "bf16"})
    undisturbed = plain(config, sample_store, save=tmp_path / "state.pt")
    assert plain(config, sample_store, resume=tmp_path / "state.pt") == undisturbed
