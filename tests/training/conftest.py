"""Real DeepSpeed without Ray: a process group of one in the test's own process, and two processes beside it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from midibert_ray.data.store import TokenStore
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.presets import preset
from tests.stores import Piece, beginnings, write_store
from tests.training.layouts import Pair


@pytest.fixture(autouse=True)
def torch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's ZeRO stage 3 replaces `linear` in the whole process, for good."""
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        yield
        dist.destroy_process_group()


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(tmp_path_factory.mktemp("meeting") / "point")
    yield pair
    pair.close()


@pytest.fixture(scope="session")
def sample_store(sample_pieces: list[Piece], tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """The first 500 notes of a third of the sample, all splits among it: enough to learn from, and quick."""
    folder = tmp_path_factory.mktemp("few")
    pieces = beginnings(sample_pieces[::3], 500)
    return TokenStore.open(write_store(folder / "sample-few", pieces, "sample"), str(folder / "cache"))


@pytest.fixture(scope="session")
def short_store(sample_pieces: list[Piece], tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """The first 40 notes of a third of the sample, each with an emotion: for models that take their time."""
    folder = tmp_path_factory.mktemp("short")
    pieces = beginnings(sample_pieces[::3], 40)
    return TokenStore.open(write_store(folder / "sample-short", pieces, "sample"), str(folder / "cache"))


@pytest.fixture
def two_workers(tiny: Config, tmp_path: Path, recorded: Config) -> Config:
    """A run of two workers with everything below the test's folder, and a checkpoint an epoch."""
    changes = {
        "storage.root": recorded.storage.root,
        "storage.cache": str(tmp_path / "cache"),
        "pretrain.valid_every": 1,
        "compute.workers": 2,
    }
    return replace(tiny, changes)


@pytest.fixture
def tiny() -> Config:
    """Segments of 64 and one small layer: a step takes a few milliseconds."""
    changes = {
        "tokens.segment": 64,
        "model.layers": 1,
        "model.hidden": 32,
        "model.heads": 2,
        "model.feed_forward": 64,
        "model.dropout": 0.0,
        "pretrain.epochs": 2,
        "pretrain.valid_every": 4,
        "finetune.batch": 12,
        "finetune.warmup": 0.0,
        "finetune.patience": 3,
        "compute.workers": 1,
        "compute.log_every": 4,
        "compute.zero_stage": 1,
    }
    return replace(preset("debug"), changes)
