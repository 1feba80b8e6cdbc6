"""Plain features and textbook models, learned and tuned on the same splits: the baseline that a Transformer must beat.

On small corpora such features have beaten embeddings of large models. A label of a piece is learned from
`music.features.passage_features` of its segments, of which a model reads no more either; a label of a note from
`note_features`. Everything is bounded, so that it takes seconds: see the constants.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from midibert_ray.data.order import keyed_hash
from midibert_ray.data.segments import Segments
from midibert_ray.music.features import note_features, passage_features
from midibert_ray.training.predictions import KINDS, Predictions
from midibert_ray.training.task_data import IGNORE, TaskData

TRAIN_SEGMENTS, VALID_SEGMENTS = 10_000, 2_000
"""Most segments that are learned from, and that models are chosen by; of more, as many are drawn."""
TRAIN_NOTES, VALID_NOTES, NOTE_PIECES = 30_000, 10_000, 600
"""The same for notes, which are drawn from so many pieces at most."""
THREADS = 1
"""Whatever the machine has: sums in another order differ in their last bits, and threads that wait spin."""
_BLOCK = 256
"""Segments that are read at a time."""
_SURE = 1e-6
"""Smallest probability; a class that is not learned has it."""

Features = NDArray[np.float32]


class Candidate(NamedTuple):
    """A model with a setting."""

    name: str
    model: Any
    """As scikit-learn has it."""


class PlainResult(NamedTuple):
    """The best of the candidates in validation, on the test split."""

    predictions: Predictions
    name: str
    learned: int
    """Segments or notes that it was learned from."""


def plain(data: TaskData) -> dict[str, PlainResult]:
    """Learn a task from plain features, choose by the task's metric in validation, and score each test split once.

    By name of the split: `test`, and those of corpora that are tested besides.
    """
    read = _of_notes if data.task.level == "note" else _of_segments
    seed = keyed_hash(data.config.seed, "plain", data.task.name) % 2**31
    draw = partial(_drawn, random=np.random.default_rng(seed))
    with threadpool_limits(limits=THREADS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Label .* is present in all", UserWarning)  # or not in any: it is one of many
        train = read(data, "train", draw)
        valid = read(data, "valid", draw)
        features, labels = train.features, train.scored.label
        best, chosen = -np.inf, None
        for candidate in candidates(data, labels, seed):
            candidate.model.fit(features, labels)
            value = _said(data, candidate.model, valid).metrics("valid")[f"valid/{data.task.metric}"]
            if value > best:
                best, chosen = value, candidate
        assert chosen, "there is a candidate, and metrics are finite"
        return {
            split: PlainResult(_said(data, chosen.model, read(data, split, _all)), chosen.name, len(features))
            for split in data.splits
            if split not in ("train", "valid")
        }


def candidates(data: TaskData, labels: NDArray[Any], seed: int) -> Iterator[Candidate]:
    """The models that are compared: linear ones for pieces, and boosted trees of two sizes."""
    kind, linear = data.task.kind, data.task.level == "sequence"
    if kind == "classes" and len(np.unique(labels)) < 2:
        yield Candidate("the only class of the training split", DummyClassifier(strategy="prior"))
        return
    for strength in (0.01, 0.1, 1.0) if linear else ():
        if kind == "number":
            yield Candidate(f"ridge regression, alpha {1 / strength:g}", _scaled(Ridge(alpha=1 / strength)))
        else:
            model = _scaled(LogisticRegression(C=strength, max_iter=1000, tol=1e-3))
            yield Candidate(f"logistic regression, C {strength:g}", _by_tag(kind, model))
    for leaves in (7, 31):
        settings: dict[str, Any] = {"max_leaf_nodes": leaves, "random_state": seed, "early_stopping": False}
        if kind == "number":
            yield Candidate(f"boosted trees of {leaves} leaves", HistGradientBoostingRegressor(**settings))
        else:
            yield Candidate(
                f"boosted trees of {leaves} leaves", _by_tag(kind, HistGradientBoostingClassifier(**settings))
            )


def _scaled(model: Any) -> Any:
    return make_pipeline(StandardScaler(), model)


def _by_tag(kind: str, model: Any) -> Any:
    """A model for each tag, where there are tags."""
    return OneVsRestClassifier(model) if kind == "tags" else model


class _Split(NamedTuple):
    """The features and labels of a split that are learned from or scored."""

    features: Features
    """float32 [n, features]"""
    scored: Predictions
    """Piece, segment, note and label of each; nothing is said of it yet."""


_Draw = Callable[[NDArray[np.int64], int], NDArray[np.int64]]
"""Takes numbers and how many of them are wanted at most."""


def _drawn(numbers: NDArray[np.int64], most: int, *, random: np.random.Generator) -> NDArray[np.int64]:
    return numbers if len(numbers) <= most else np.sort(random.choice(numbers, most, replace=False))


def _all(numbers: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    return numbers


def _of_segments(data: TaskData, split: str, draw: _Draw) -> _Split:
    segments = data.splits[split]
    rows = draw(data.rows(split), TRAIN_SEGMENTS if split == "train" else VALID_SEGMENTS)
    features, pieces = [], []
    for some in _blocks(rows):
        raw = segments.gather(some)
        pieces.append(raw.piece)
        for piece, notes in zip(raw.piece.tolist(), raw.note, strict=True):
            store, _ = segments.source(piece)
            notes = notes[notes >= 0]
            features.append(passage_features(store.tokens[notes], store.onset[notes]))
    scored = (np.concatenate(pieces), rows, np.full(len(rows), -1), data.labels(split, rows))
    return _Split(np.stack(features), _unsaid(data, *scored))


def _of_notes(data: TaskData, split: str, draw: _Draw) -> _Split:
    segments = data.splits[split]
    rows = data.rows(split)
    pieces = draw(np.unique(segments.locate(rows)[0]), NOTE_PIECES)
    rows = rows[np.isin(segments.locate(rows)[0], pieces)]
    found = []
    for some in _blocks(rows):
        raw, labels = segments.gather(some), data.labels(split, some)
        row, position = np.nonzero(labels != IGNORE)
        found.append((raw.piece[row], some[row], raw.note[row, position], labels[row, position]))
    piece, segment, note, label = (np.concatenate(column) for column in zip(*found, strict=True))
    kept = draw(np.arange(len(note)), TRAIN_NOTES if split == "train" else VALID_NOTES)
    scored = piece[kept], segment[kept], note[kept], label[kept]
    return _Split(_features_of(segments, *scored[:3:2]), _unsaid(data, *scored))


def _features_of(segments: Segments, piece: NDArray[np.int64], note: NDArray[np.int64]) -> Features:
    """Features of some notes, by piece and number in its store; each piece is read as a whole."""
    order = np.argsort(piece, kind="stable")
    numbers, first = np.unique(piece[order], return_index=True)
    parts = []
    for number, rows in zip(numbers.tolist(), np.split(order, first[1:]), strict=True):
        store, where = segments.source(number)
        parts.append(note_features(store.tokens[where], store.onset[where])[note[rows] - where.start])
    features = np.empty((len(note), parts[0].shape[1]), np.float32)
    features[order] = np.concatenate(parts)
    return features


def _blocks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start, end in pairwise((*range(0, len(rows), _BLOCK), len(rows))):
        yield rows[start:end]


def _unsaid(data: TaskData, piece: Any, segment: Any, note: Any, label: NDArray[Any]) -> Predictions:
    return KINDS[data.task.kind](piece, segment, note, label, np.zeros((len(label), data.outputs), np.float32))


def _said(data: TaskData, model: Any, split: _Split) -> Predictions:
    """A model's predictions of a split, as a network's outputs would be: logits, or numbers."""
    scored, outputs = split.scored, np.full((len(split.features), data.outputs), np.log(_SURE))
    if data.task.kind == "number":
        outputs = model.predict(split.features)[:, None]
    elif data.task.kind == "tags":
        outputs = logit(np.clip(model.predict_proba(split.features), _SURE, 1 - _SURE))
    else:
        outputs[:, model.classes_] = np.log(np.clip(model.predict_proba(split.features), _SURE, 1))
    return type(scored)(scored.piece, scored.segment, scored.note, scored.label, outputs.astype(np.float32))
