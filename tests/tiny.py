"""A configuration whose steps take milliseconds, for tests that want everything real but the size."""

from pathlib import Path
from typing import Any

from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.presets import preset

TINY = {
    "tokens.segment": 64,
    "model.layers": 1,
    "model.hidden": 16,
    "model.heads": 2,
    "model.feed_forward": 32,
    "pretrain.epochs": 12,
    "pretrain.valid_every": 4,
    "finetune.batch": 12,
    "finetune.warmup": 0.0,
    "finetune.epochs": 1,
    "finetune.patience": 3,
    "study.seeds": 1,
}


def tiny_study(root: Path, **changes: Any) -> Config:
    """The debug preset with a tiny model, everything below `root`; changes are written with __ for the dot."""
    places = {"storage.root": str(root / "root"), "storage.cache": str(root / "cache")}
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return replace(preset("debug"), TINY | places | dotted)
