"""The jobs by name: what each takes on its command line, and which settings it reads."""

import ast
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from midibert_ray.settings.config import ConfigError
from midibert_ray.settings.presets import STUDIES


@dataclass(frozen=True, kw_only=True)
class Command:
    """The command line of a job."""

    name: str
    settings: tuple[str, ...]
    """Sections and dotted keys that the job reads; `--help` shows these."""
    words: str = ""
    """Its positional words beside settings, for `--help`; empty: none."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Settings that only this job takes (`name=value`), which no configuration holds: name -> meaning."""
    kinds: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Words that stand for settings, which others of the command line overrule: word -> settings."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """Switches that only this job has (`--name`): name -> meaning."""

    @property
    def description(self) -> str:
        """The docstring of the job's module, read without importing what the job needs."""
        source = Path(__file__).with_name("jobs") / f"{self.name}.py"
        return ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""


_ENCODER = ("seed", "corpora", "tokens", "protocol", "mask", "augment", "model", "optimizer", "pretrain")
_PRETRAINING = tuple(
    f"compute.{name}"
    for name in (
        *("precision", "compile", "workers", "micro_batch", "attention", "packing", "zero_stage", "gpu", "accelerator"),
        *("placement", "cpus_per_worker", "max_failures", "log_every", "keep_checkpoints"),
    )
)
_ACTORS = {
    "precision": "Number format of the model, fp32 or bf16, which is faster where the hardware has it and rounds more.",
    "cpus": "CPUs of an actor, its threads where it has no GPU; 1.",
    "gpus": "GPUs of an actor, 0 to 1; a fraction lets several share one, each with that share of its memory. Without "
    "it, 1 where the cluster has any, else 0.",
    "actors": "Actors at the most; without it, as many as the cluster has room for. Any number gives the same results.",
}
_APPLIED = {
    "model": "Folder of a model as `export` writes it, `s3://bucket/prefix`, MLflow's runs:/... or models:/..., or the "
    "name of a model that ships with the package.",
    "input": "A file of music, or a folder or bucket of them, however deep (*.mid, *.midi, *.mxl, *.musicxml).",
}
_EVERYTHING = (*_ENCODER, "finetune", "rnn", "study", "compute", "storage", "tracking")

COMMANDS = {
    command.name: command
    for command in (
        Command(
            name="download",
            settings=("corpora",),
            words="CORPUS (pop909, asap, pop1k7, pianist8, emopia), or section.key=value",
        ),
        Command(name="tokenize", settings=("corpora", "tokens", "protocol", "storage.root")),
        Command(name="pretrain", settings=(*_ENCODER, *_PRETRAINING, "storage", "tracking")),
        Command(
            name="study",
            settings=_EVERYTHING,
            words="paper, levers, weights, sweep, or section.key=value",
            extra={"task": "The one task of the study, in place of study.tasks."},
            kinds=STUDIES,
        ),
        Command(name="pipeline", settings=_EVERYTHING),
        Command(
            name="report",
            settings=("storage.root", "tracking"),
            words="STUDY, or section.key=value",
            flags={"flush": "send what waits for the tracking server below storage.root, then make what waited for it"},
        ),
        Command(
            name="export",
            settings=(*_ENCODER, "compute.precision", "storage", "tracking"),
            extra={
                "output": "Folder to write, local or `s3://bucket/prefix`; it must be new or empty.",
                "run": "Trial to export, by its name in the study's tables (melody-pretrained-clean-seed2021 ...); or "
                "the key of a trial or pre-training run; or a folder, such as OUT/studies/ablation-1a2b3c4d5e/TRIAL or "
                "OUT/runs/pretrain-1a2b3c4d5e/step_000000120; without it and without reference, the best checkpoint of "
                "the finished pre-training of these settings is exported.",
                "reference": "A .ckpt file of the authors' code (pre-trained, note-level or sequence-level) to export "
                "instead. It is a pickle, and is refused if it holds anything but tensors and plain values.",
                "weights": "Number format of the weights in the file: fp32, or bf16 for half the size; opened as fp32.",
            },
        ),
        Command(
            name="annotate",
            settings=(),
            extra={
                **_APPLIED,
                "output": "Folder to write, local or in a bucket; new, or of the same command.",
                "formats": "Some of midi, csv, parquet, jams, html; without it midi,csv,html.",
                "abstain": "Labels of a lower probability are left out; 0, none is.",
                **_ACTORS,
            },
        ),
        Command(
            name="embed",
            settings=(),
            extra={
                **_APPLIED,
                "output": "File to write, ending in .parquet, local or in a bucket; new, or of the same command.",
                "layer": "Layer of the model: 0 the embeddings, -1 the last; -1.",
                "pool": "mean, one vector a piece (the mean over its notes), or none, one a note; mean.",
                **_ACTORS,
            },
        ),
        Command(name="submit", settings=(), words="JOB and its command line"),
    )
}
"""The jobs by name, in the order in which they are used."""


def find(name: str) -> Command:
    """A job by its name.

    Raises:
        ConfigError: for an unknown one; names the nearest.
    """
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"{name!r} is no job; {hint}Known: {', '.join(COMMANDS)}")
    return COMMANDS[name]


def overview() -> str:
    """The help of `midibert` itself: one line a job."""
    lines = ["usage: midibert JOB [options] [section.key=value ...]", ""]
    lines += [f"  {name:<10} {command.description.splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "`midibert JOB --help` has examples and settings, `--help all` all settings.", ""])
