"""What one machine without Ray makes of the same work, for comparison."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from midibert_ray.data.format import store_digest
from midibert_ray.data.store import TokenStore
from midibert_ray.music.protocol import CLEAN
from midibert_ray.settings.config import Config
from midibert_ray.tokenizing.plan import plan_corpus
from midibert_ray.tokenizing.shard import make_shard
from midibert_ray.training import engine as engines
from midibert_ray.training.build import new_model
from midibert_ray.training.engine import Progress
from midibert_ray.training.pretrain import PretrainData, PretrainLoop, run_epochs

Curves = dict[str, list[tuple[int, float]]]

CURVES = ("train/loss", "valid/loss", "valid/accuracy")


def digest(corpus: str, folder: Path) -> str:
    """The content digest of a corpus that one process tokenizes."""
    plan = plan_corpus(corpus, corpora_root="", storage_root=str(folder), protocol=CLEAN)
    Path(plan.uri).mkdir(parents=True)
    shards = plan.shards("here-1-00000000")
    return store_digest((report["piece"], report["digest"]) for shard in shards for report in make_shard(shard))


@dataclass(frozen=True)
class Run:
    """A pre-training."""

    config: Config
    store: str
    cache: str


def curves(run: Run, rank: int, world: int) -> Curves:
    """The curves of a run, as one of its workers; see `tests.training.layouts.Pair`."""
    data = PretrainData(run.config, [TokenStore.open(run.store, run.cache)])
    device, steps = torch.device("cpu"), data.steps(run.config.pretrain.epochs)
    engine = engines.build(new_model(run.config), run.config, steps=steps, device=device)
    found: Curves = {name: [] for name in CURVES}

    def report(metrics: dict[str, Any], _: bool) -> None:
        for name in CURVES:
            if name in metrics:
                found[name].append((metrics["step"], metrics[name]))

    run_epochs(PretrainLoop(run.config, data, engine, rank=rank, world=world, device=device), Progress(), report)
    return found
