"""Answers without training, on the test split: a model that does not beat this has learnt nothing.

Notes and segments count as they do for a trial (`training.finetune.TaskData`), so that a baseline stands in
one column with the models.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from midibert_ray.data.segments import Segments
from midibert_ray.data.store import TokenStore
from midibert_ray.music.skyline import skyline
from midibert_ray.music.tasks import TASKS, Task, note_labels, sequence_label
from midibert_ray.music.vocabulary import PITCH_LOW
from midibert_ray.settings.config import Config
from midibert_ray.studies.result import Record

MAJORITY = "majority class"
TRAINING = "majority class of training"
SKYLINE = "skyline"
NO_MELODY = "no melody at all"
SONG = "label of the song"
"""Names of baselines."""
QUADRANTS = ("TP", "FP", "FN", "TN")
"""Notes of melody found, others taken for it, melody missed, and others rightly told from it."""


@dataclass(frozen=True, kw_only=True)
class Baseline(Record):
    """A trivial answer to a task, scored on the test split."""

    protocol: str
    task: str
    name: str
    correct: int
    scored: int
    """Notes or segments of the test split; for `SONG` clips."""
    detail: dict[str, int]
    """Counts behind the two: notes or segments of each class; TP, FP, FN and TN; ..."""
    note: str
    """The rule, for a reader of a table."""

    @property
    def accuracy(self) -> float:
        return self.correct / self.scored


def baselines(config: Config, store: TokenStore) -> list[Baseline]:
    """The baselines of `finetune.task`, on a token store that was made under `tokens.protocol`.

    Every task has the majority classes, that of the test split and that of the training split; one that knows which
    class is the melody also skyline and, as skyline only tells melody from the rest, the answer that nothing is melody;
    one whose pieces are clips of songs also the label of the clip's song.

    Raises:
        ValueError: where the store has no test split, or its labels are not those of the task.
    """
    task = TASKS[config.finetune.task]
    cut = functools.partial(
        Segments,
        [store],
        length=config.tokens.segment,
        representation=config.model.representation,
        drop_short_last=config.protocol_in_force.drops_short_rows and task.drops_short_rows,
    )
    segments = cut(splits={"test"})
    support, learned = _support(task, segments), _support(task, cut(splits={"train"}))
    make = functools.partial(Baseline, protocol=config.tokens.protocol, task=task.name)
    usual = max(learned, key=learned.__getitem__)
    rule = f"always {usual}, the most frequent class of the training split"
    found = [
        majority(config.tokens.protocol, task.name, support),
        make(name=TRAINING, correct=support[usual], scored=sum(support.values()), detail=support, note=rule),
    ]
    if task.melody:
        found += _melody_or_not(task, store, make)
    if task.song:
        found.append(_song(task, store, segments, make))
    return found


def majority(protocol: str, task: str, support: Mapping[str, int]) -> Baseline:
    """Always answer the most frequent class of the test split; of equals the first.

    `support` has for each class the notes or segments of the test split that are of it.
    """
    best = max(support, key=support.__getitem__)
    return Baseline(
        protocol=protocol,
        task=task,
        name=MAJORITY,
        correct=support[best],
        scored=sum(support.values()),
        detail=dict(support),
        note=f"always {best}, the most frequent class of the test split",
    )


def _support(task: Task, segments: Segments) -> dict[str, int]:
    """Notes or segments of each class."""
    counts = np.bincount(_true_classes(task, segments), minlength=len(task.classes)).tolist()
    return dict(zip(task.classes, counts, strict=True))


def _true_classes(task: Task, segments: Segments) -> NDArray[np.int64]:
    """The class, 0..C-1, of everything that is scored: int64 [scored]."""
    if task.level == "sequence":
        pieces, _ = segments.locate(np.arange(len(segments)))
        return np.array([sequence_label(task, segments.label(int(piece)) or "") for piece in pieces])
    batch = segments.gather(np.arange(len(segments)))
    labels = note_labels(task, batch)[batch.note >= 0].astype(np.int64)
    return labels[labels > 0] - 1


def _melody_or_not(task: Task, store: TokenStore, make: Callable[..., Baseline]) -> list[Baseline]:
    """Skyline and its rival, over all notes of the test pieces.

    The authors run skyline on the MIDI files. Tokens of protocol paper have lost where the last onset was (see
    `quantize`), which changes the answer for 14 of POP909's 142,577 test notes.
    """
    counts = np.zeros((2, 2), np.int64)
    melody = task.classes.index(task.melody) + 1
    true = note_labels(task, store) == melody
    for index in store.select({"test"}):
        piece = slice(*store.offsets[index : index + 2])
        duration, pitch = store.tokens[piece, 3], store.tokens[piece, 2].astype(np.int64) + PITCH_LOW
        found = skyline(store.onset[piece], duration, pitch)
        np.add.at(counts, (true[piece].astype(int), found.astype(int)), 1)
    (tn, fp), (fn, tp) = counts.tolist()
    rules = {
        SKYLINE: ((tp, fp, fn, tn), "the highest note of an onset is melody, with refinements"),
        NO_MELODY: ((0, 0, fn + tp, tn + fp), "no note is melody"),
    }
    return [
        make(
            name=name,
            correct=found[0] + found[3],
            scored=sum(found),
            detail=dict(zip(QUADRANTS, found, strict=True)),
            note=f"melody against the rest: {rule}",
        )
        for name, (found, rule) in rules.items()
    ]


def _song(task: Task, store: TokenStore, segments: Segments, make: Callable[..., Baseline]) -> Baseline:
    """The majority label of the clip's song in the training split."""

    def song(clip: str) -> str:
        found = re.fullmatch(task.song, clip)
        return found[1] if found else ""

    votes: dict[str, Counter[str | None]] = {}
    for index in store.select({"train"}).tolist():
        votes.setdefault(song(store.piece_id(index)), Counter())[store.label(index)] += 1
    clips = range(segments.pieces)
    heard = [votes.get(song(segments.piece_id(clip)), Counter()) for clip in clips]
    known = np.array([bool(labels) for labels in heard])
    # max takes the first of equals
    answers = [max(task.classes, key=labels.__getitem__) for labels in heard]
    right = known & [answer == segments.label(clip) for clip, answer in zip(clips, answers, strict=True)]
    sizes = np.bincount(segments.locate(np.arange(len(segments)))[0], minlength=len(clips))
    between = f"{task.classes[0]} to {task.classes[-1]}"
    return make(
        name=SONG,
        correct=int(right.sum()),
        scored=len(clips),
        detail={"known": int(known.sum()), "segments": len(segments), "segments correct": int(sizes[right].sum())},
        note=f"by clip: the majority label of the clip's song in the training split, at a tie the first of {between}; "
        f"{known.sum()} of {len(clips)} clips have their song there, the others count as wrong",
    )
