"""The tables of the paper, and some of ours, as rows of variants, with the results that it prints (accuracy in %)."""

from collections.abc import Mapping
from dataclasses import dataclass

from midibert_ray.music.tasks import PAPER_TASKS


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table."""

    label: str
    """As the paper has it."""
    variant: str
    """Key of `trials.VARIANTS`."""
    printed: Mapping[str, float]
    """Task -> the paper's test accuracy in %; empty where the paper has none."""
    baseline: str = ""
    """The variant that this row is tested against; empty takes the table's."""


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table of results."""

    title: str
    baseline: str
    """The variant that the other rows are tested against; empty tests only rows that have a baseline of their own."""
    rows: tuple[Row, ...]


def _row(label: str, variant: str, *printed: float, baseline: str = "") -> Row:
    metrics = dict(zip((task.name for task in PAPER_TASKS), printed, strict=True)) if printed else {}
    return Row(label=label, variant=variant, printed=metrics, baseline=baseline)


_RNN = _row("RNN + CP", "rnn", 88.66, 43.77, 60.32, 54.13)
_FULL = (96.37, 51.63, 78.57, 67.89)

TABLES: dict[str, PaperTable] = {
    "2": PaperTable(
        title="Table II: representations and models",
        baseline="rnn",
        rows=(
            _row("RNN + REMI", "rnn-remi", 89.96, 44.56, 51.97, 53.46),
            _row("MidiBERT + REMI", "remi", 90.97, 49.02, 67.19, 67.74),
            _RNN,
            _row("MidiBERT + CP", "pretrained", *_FULL),
        ),
    ),
    "3": PaperTable(
        title="Table III: without pre-training, or partly frozen",
        baseline="pretrained",
        rows=(
            _RNN,
            _row("MidiBERT + CP", "pretrained", *_FULL),
            _row("without pre-training", "scratch", 83.38, 47.78, 53.97, 44.95),
            _row("freeze BERT", "freeze-backbone", 92.50, 46.14, 70.63, 58.72),
            _row("freeze self-attention layers", "freeze-attention", 92.93, 47.74, 69.84, 65.14),
        ),
    ),
    "4": PaperTable(
        title="Table IV: pre-training corpus",
        baseline="pretrained",
        rows=(
            _row("all five corpora", "pretrained", *_FULL),
            _row("all train splits", "train-splits", 96.15, 52.11, 67.46, 64.22),
            _row("Pop1K7 + ASAP", "pop1k7-asap", 95.35, 48.73, 58.73, 67.89),
        ),
    ),
    "leak": PaperTable(
        title="What the order of notes gives away",
        baseline="",
        rows=(
            _row("MidiBERT + CP, notes track by track", "pretrained"),
            _row("MidiBERT + CP, notes by pitch", "pretrained-by-pitch", baseline="pretrained"),
            _row("without pre-training, track by track", "scratch"),
            _row("without pre-training, by pitch", "scratch-by-pitch", baseline="scratch"),
            _row("RNN + CP, track by track", "rnn"),
            _row("RNN + CP, by pitch", "rnn-by-pitch", baseline="rnn"),
        ),
    ),
    "levers": PaperTable(
        title="What helps: pre-trainings that see as many notes, and ways to fine-tune",
        baseline="pretrained",
        rows=(
            _row("masks of 15 %", "pretrained"),
            _row("masks of 30 %", "mask-30"),
            _row("noise on 30 %", "noise"),
            _row("noise and piano roll", "noise-roll"),
            _row("noise, piano roll, transposition", "noise-roll-transpose"),
            _row("segments of 1,024", "segment-1024"),
            _row("masks of 15 %, fine-tuned at a constant rate", "constant-rate"),
            _row("masks of 15 %, lower layers tuned more slowly", "layer-decay"),
            _row("masks of 15 %, mean of the last three epochs", "average-3"),
        ),
    ),
}
"""By name, as in `study.tables`. Table I describes corpora and has no trials."""
MELODY_OR_NOT = {"pretrained": 97.09, "skyline": 78.54}
"""Accuracy in % of telling melody from the two other classes (paper, §VIII-A1)."""
CONFUSIONS = {"melody": "Fig. 3", "velocity": "Fig. 5", "composer": "Fig. 6", "emotion": "Fig. 7"}
"""Where the paper shows confusion matrices, of these two variants:"""
CONFUSED = ("rnn", "pretrained")


def variants(tables: tuple[str, ...]) -> tuple[str, ...]:
    """The variants of some tables, each once, in the order in which they first come."""
    return tuple(dict.fromkeys(row.variant for name in tables if name in TABLES for row in TABLES[name].rows))
