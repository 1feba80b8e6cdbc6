"""Named configurations: debug and demo (minutes on a laptop), small (hours on a CPU), base (the paper)."""

import shlex
import sys
from collections.abc import Container
from pathlib import Path
from typing import Any

from midibert_ray.music.tasks import LINE, MELODY, PAPER_TASKS
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import flatten, replace

_PAPER_TASKS = tuple(task.name for task in PAPER_TASKS)


# Everything end to end on the sample music, on two CPU cores, in some four minutes. Rates are larger than the paper's
# and batches smaller, as the model and the music are tiny. Five validation songs say little of an epoch, so that no
# trial stops early, and its rate falls to 0.
_DEBUG: dict[str, Any] = {
    "corpora.names": ("sample",),
    "model.layers": 2,
    "model.hidden": 96,
    "model.heads": 4,
    "model.feed_forward": 384,
    "optimizer.lr": 2e-3,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_steps": 10,
    "pretrain.epochs": 36,
    "pretrain.valid_every": 12,
    "finetune.corpus": "sample",
    "finetune.batch": 4,
    "finetune.lr": 1e-3,
    "finetune.warmup": 0.1,
    "finetune.epochs": 8,
    "finetune.patience": 0,
    "study.tasks": (MELODY.name,),
    "study.seeds": 2,
    "compute.workers": 2,
    "compute.max_concurrent_trials": 2,
}

PRESETS: dict[str, dict[str, Any]] = {
    "debug": _DEBUG,
    # The same with a model of useful size, which begins with weights that ship: they have learned from the training
    # songs of the corpus that the sample is taken from, none of which is a test song of the sample.
    "demo": _DEBUG
    | {
        "model.layers": 4,
        "model.hidden": 256,
        "model.feed_forward": 1024,
        "model.attention": "rope",
        "optimizer.lr": 2e-4,
        "pretrain.start": "melody",
        "pretrain.epochs": 4,
        "pretrain.valid_every": 2,
        "finetune.lr": 5e-4,
        "finetune.epochs": 2,
    },
    # Four layers of 256 on all five corpora: hours on a CPU, minutes on a GPU.
    "small": {
        "model.layers": 4,
        "model.hidden": 256,
        "model.heads": 4,
        "model.feed_forward": 1024,
        "optimizer.lr": 3e-4,
        "optimizer.schedule": "linear",
        "optimizer.warmup_steps": 200,
        "pretrain.epochs": 10,
        "finetune.lr": 1e-4,
        "study.tasks": _PAPER_TASKS,
        "compute.workers": 2,
    },
    # The paper: 12 layers of 768, AdamW at 2e-5 without a schedule, batch 12 (paper §V-B).
    "base": {"study.tasks": _PAPER_TASKS},
}
"""Named configurations: the fields of `Config()` that each changes."""

STUDIES: dict[str, dict[str, object]] = {
    "paper": {
        "study.name": "paper",
        "study.tasks": _PAPER_TASKS,
        "study.variants": (),
        "study.tables": ("1", "2", "3", "4"),
        "study.protocols": ("paper", "clean"),
    },
    # Six pre-trainings of one budget, each fine-tuned for four tasks with two seeds, one of them in four ways: some
    # three hours of two cores.
    "levers": {
        "study.name": "levers",
        "study.tasks": _PAPER_TASKS,
        "study.variants": (),
        "study.tables": ("levers",),
        "study.seeds": 2,
        "model.attention": "rope",
        "optimizer.lr": 5e-4,
        "optimizer.schedule": "cosine",
        "pretrain.epochs": 2,
        "finetune.lr": 3e-4,
        "finetune.warmup": 0.1,
        "finetune.epochs": 4,
        "finetune.train_segments": 400,
        "compute.precision": "bf16",
        "compute.workers": 1,
        "compute.max_concurrent_trials": 2,
    },
    # The model that ships, from nothing but POP909 and Lieder, tested on Solo besides: minutes of a GPU.
    "weights": {
        "study.name": "weights",
        "study.tasks": (LINE.name,),
        "study.variants": ("pretrained",),
        "study.corpus": "pop909,lieder",
        "study.tests": ("pop909", "lieder", "solo"),
        "study.seeds": 1,
        "corpora.names": ("pop909", "lieder"),
        "model.attention": "rope",
        "mask.fraction": 0.3,
        "augment.transpose": 6,
        "optimizer.lr": 1e-3,
        "optimizer.schedule": "cosine",
        "pretrain.objective": "noise",
        "pretrain.splits": "train",
        "pretrain.batch": 48,
        "pretrain.epochs": 16,
        "pretrain.patience": 0,
        "finetune.batch": 24,
        "finetune.lr": 8e-4,
        "finetune.warmup": 0.1,
        "finetune.octave": 0.5,
        "finetune.epochs": 11,
        "finetune.patience": 0,
        "compute.precision": "bf16",
        "compute.workers": 1,
    },
    "sweep": {"study.name": "sweep", "study.draws": 24},
}
"""Settings that a study of some name changes in a preset; the command line overrules them."""


def preset(name: str) -> Config:
    """The configuration of one of `PRESETS`."""
    return replace(Config(), PRESETS[name])


def program(job: str) -> list[str]:
    """The words that start a job here: the command `midibert`, or the file of the checkout that one is in."""
    file = f"jobs/{job}.py"
    installed = Path(sys.argv[0]).name == "midibert" or not Path(file).is_file()
    return ["midibert", job] if installed else ["python", file]


def command_line(job: str, config: Config, *words: str, only: Container[str] = (), also: Container[str] = ()) -> str:
    """The command that runs a job with a configuration, quoted for a shell: the nearest preset, and what differs.

    `words` stand before the settings; of these `only` and storage.root are given, if it names any; `also` always.
    """
    settings = flatten(config)
    presets = {name: flatten(preset(name)) for name in PRESETS}
    name = min(presets, key=lambda name: sum(settings[key] != value for key, value in presets[name].items()))
    changed = [key for key, value in presets[name].items() if settings[key] != value and (not only or key in only)]
    keys = [key for key in settings if key in changed or key == "storage.root" or key in also]
    return shlex.join([*program(job), *words, "--preset", name, *(f"{key}={_text(settings[key])}" for key in keys)])


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)
