"""Made-up outcomes that are consistent: confusion counts, pieces and metrics come from the same answers."""

import zlib
from pathlib import Path

import numpy as np

from midibert_ray.music.tasks import TASKS
from midibert_ray.studies.plan import StudyPlan
from midibert_ray.studies.result import PREDICTIONS, Provenance, TrialResult, write
from midibert_ray.training.checkpoints import write_digests
from midibert_ray.training.metrics import confusion, macro_f1


def outcome(
    variant: str,
    accuracy: float,
    *,
    task: str = "melody",
    protocol: str = "clean",
    seed: int = 1,
    pieces: int = 20,
    size: int = 40,
) -> TrialResult:
    """A trial that is right about so often; all of a task and protocol have the same labels."""
    kind = TASKS[task]
    padded = protocol == "paper" and kind.level == "note"
    classes = (("padding",) if padded else ()) + kind.classes
    made = _random(task, protocol)
    piece = np.repeat(np.arange(pieces), made.integers(1, 2 * size, size=pieces) if size > 1 else 1)
    label = made.choice(len(kind.classes), size=len(piece), p=_shares(len(kind.classes))) + padded
    answers = _random(task, protocol, variant, seed)
    easy = answers.normal(accuracy, 0.1, size=pieces)[piece]
    other = (label - padded + answers.integers(1, len(kind.classes), size=len(piece))) % len(kind.classes) + padded
    said = np.where(answers.random(len(piece)) < easy, label, other)
    matrix = confusion(label, said, len(classes))
    right = label == said
    by_piece = {
        f"{number:03d}": [
            int(right[piece == number].sum()),
            int((piece == number).sum()),
            int(right[piece == number].mean() > 0.5),
        ]
        for number in range(pieces)
    }
    metrics = {
        "test/accuracy": float(right.mean()),
        "test/f1": macro_f1(matrix),
        "test/loss": 1.0,
        "valid/best": accuracy,
    }
    if kind.level == "sequence":
        metrics["test/piece_accuracy"] = sum(whole for *_, whole in by_piece.values()) / pieces
    return TrialResult(
        trial=f"{task}-{variant}-{protocol}-seed{seed}",
        task=task,
        variant=variant,
        protocol=protocol,
        seed=seed,
        epoch=3,
        metrics=metrics,
        classes=list(classes),
        confusion=matrix.tolist(),
        pieces=by_piece,
        seconds=90.0,
        devices=2.0,
    )


def leave(plan: StudyPlan, key: str, share: float) -> TrialResult:
    """A finished trial in its folder."""
    trial = plan.trials[key].trial
    result = outcome(trial.variant, share, task=trial.task, protocol=trial.protocol, seed=trial.seed)
    folder = Path(plan.uri(key), "checkpoint_000001")
    folder.mkdir(parents=True)
    write(folder, result, Provenance(study=plan.key, encoder="", config={}), {PREDICTIONS: b"parquet"})
    write_digests(folder, 0, 1, key)
    return result


def _shares(classes: int) -> np.ndarray:
    """The last class is the most frequent one."""
    shares = np.ones(classes)
    shares[-1] = classes
    return shares / shares.sum()


def _random(*words: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(" ".join(map(str, words)).encode()))
