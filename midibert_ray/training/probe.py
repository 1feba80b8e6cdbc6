"""A linear probe: the worth of frozen hidden states, the best layer of them chosen in validation.

Hidden states are read once, in one forward pass over the training and validation splits: the mean over a segment's time
steps of every layer (sequence-level tasks), or those of some notes (note-level ones). Linear models of scikit-learn are
fitted to them. The best becomes the head of the encoder up to its layer, which is then a model like any other: it is
scored, saved and exported as those are that were fine-tuned.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from midibert_ray.data.order import keyed_hash
from midibert_ray.model.heads import mean_over
from midibert_ray.training.finetune import Finetuning
from midibert_ray.training.objectives import NumberObjective, output_layer
from midibert_ray.training.predictions import KINDS, Predictions
from midibert_ray.training.task_data import IGNORE, Batch

MOST_ROWS = 16_384
"""Segments or notes of a split whose hidden states are kept at most; of more, as many are drawn."""
MOST_BYTES = 2**29
"""That they take at most, all layers together."""
STRENGTHS = (0.1, 0.001, 0.01, 1.0, 10.0)
"""Inverse strengths of the penalty on weights of standardised states; the first is the one by which layers compare."""
_NEVER = -20.0
"""Logit of a class that the training split does not have."""


class Linear(NamedTuple):
    """Weights [outputs, hidden] and biases [outputs] of a head."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]


class _Split(NamedTuple):
    states: NDArray[np.float32]
    """[layers, rows, hidden]"""
    scored: Predictions
    """Piece, segment, note and label of the rows; nothing is said of them yet."""


def probe(job: Finetuning, split: str = "test") -> Predictions:
    """Give a job the best linear head on its frozen encoder, and predict a split.

    Layers are compared under one penalty; then the best layer tries the others. The encoder loses the layers above.
    `job.metrics` tells the layer, from 1, and the penalty.
    """
    train, valid = _read(job, "train"), _read(job, "valid")
    metric = f"valid/{job.data.task.metric}"
    layers = len(train.states)
    found: list[tuple[float, int, float, Linear]] = []
    trials = [(layer, STRENGTHS[0]) for layer in range(layers)]
    for number in range(layers + len(STRENGTHS) - 1):
        if number == layers:  # of equals the lowest layer
            best = max(found, key=lambda each: each[0])[1]
            trials += [(best, strength) for strength in STRENGTHS[1:]]
        layer, strength = trials[number]
        head = _fit(job, train.states[layer], train.scored.label, strength)
        said = _answer(job, head, valid.states[layer], valid.scored)
        found.append((said.metrics("valid")[metric], layer, strength, head))
    _, layer, strength, head = max(found, key=lambda each: each[0])
    _take(job.model, head, layer + 1)
    job.metrics = {"probe/layer": float(layer + 1), "probe/strength": strength}
    job.progress.accuracy, job.progress.epoch = job.evaluate("valid").metrics("valid")[metric], 1
    return job.evaluate(split)


@torch.no_grad()
def _read(job: Finetuning, split: str) -> _Split:
    """The hidden states of a split's segments or notes, and their labels."""
    job.model.eval()
    model: Any = job.model
    most = min(MOST_ROWS, MOST_BYTES // (4 * len(model.midibert.layers) * model.config.hidden_size))
    random = np.random.default_rng(keyed_hash(job.config.seed, "probe", job.data.task.name, split))
    states, scored = [], []
    for rows, chosen in _chosen(job, split, most, random):
        batch, raw = job.data.batch(split, rows, job.device)
        hidden = _hidden(job, batch)
        empty = np.zeros((*batch.targets.shape[: batch.targets.dim() - (job.data.task.kind == "tags")], 1), np.float32)
        targets = batch.targets.cpu().numpy()
        if chosen is not None:
            hidden = [state[torch.from_numpy(chosen).to(job.device)] for state in hidden]
            targets = np.where(chosen, targets, IGNORE)
        states.append(torch.stack(hidden).float().cpu().numpy())
        scored.append(KINDS[job.data.task.kind].of(job.data.task.level, rows, raw, targets, empty))
    return _Split(np.concatenate(states, axis=1), KINDS[job.data.task.kind].joined(scored))


def _chosen(
    job: Finetuning, split: str, most: int, random: np.random.Generator
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_] | None]]:
    """Batches of segments by their numbers; of note-level tasks with the notes that are taken of them, bool [b, t]."""
    rows = job.data.rows(split)
    notes = job.data.task.level == "note"
    share = 1.0
    if notes:
        count = int(job.data.splits[split].lengths(rows).sum())
        share = min(1.0, most / count)
        if share < 1:  # no segment is read for a note or two
            rows = np.sort(random.choice(rows, max(1, int(len(rows) * min(1.0, 4 * share))), replace=False))
            share = min(1.0, most / int(job.data.splits[split].lengths(rows).sum()))
    elif len(rows) > most:
        rows = np.sort(random.choice(rows, most, replace=False))
    for start in range(0, len(rows), job.recipe.batch):
        some = rows[start : start + job.recipe.batch]
        if notes:
            targets = job.data.labels(split, some)
            yield some, (targets != IGNORE) & (random.random(targets.shape) < share)
        else:
            yield some, None


def _hidden(job: Finetuning, batch: Batch) -> list[Tensor]:
    """States after each layer: [b, t, hidden], or for sequence-level tasks their means, as the head takes them."""
    model: Any = job.model
    with torch.autocast(job.device.type, torch.bfloat16, enabled=job.config.compute.precision == "bf16"):
        told = model.midibert(batch.tokens, batch.mask, packing=batch.packing, output_hidden_states=True)
        states = told.hidden_states[1:]
        return [*states] if job.data.task.level == "note" else [mean_over(state, batch.mask) for state in states]


def _fit(job: Finetuning, states: NDArray[np.float32], labels: NDArray[Any], strength: float) -> Linear:
    """The head with the least loss on the training split; it takes states as they are, and is fitted to scaled ones."""
    scaler = StandardScaler().fit(states)
    ready = scaler.transform(states)
    outputs = job.data.outputs
    weight, bias = np.zeros((outputs, states.shape[1])), np.full(outputs, _NEVER)
    if isinstance(job.objective, NumberObjective):
        ridge = Ridge(alpha=1 / strength).fit(ready, (labels - job.objective.mean) / job.objective.scale)
        weight[0], bias[0] = ridge.coef_, ridge.intercept_
    elif job.data.task.kind == "tags":
        for tag in range(outputs):
            _logistic(ready, labels[:, tag] > 0, strength, weight[tag : tag + 1], bias[tag : tag + 1])
    else:
        classes = np.unique(labels)
        rows, offsets = weight[classes], np.zeros(len(classes))
        _logistic(ready, labels, strength, rows, offsets)
        weight[classes], bias[classes] = rows, offsets
    weight /= scaler.scale_
    return Linear(weight, bias - weight @ scaler.mean_)


def _logistic(
    states: NDArray[np.float64], labels: NDArray[Any], strength: float, weight: NDArray[Any], bias: NDArray[Any]
) -> None:
    """Fit into `weight` and `bias`, which have a row a class, or for bool labels a single one."""
    classes = np.unique(labels)
    if len(classes) < 2:
        never = labels.dtype == np.bool_ and not classes[0]
        bias[:] = _NEVER if never else -_NEVER
        return
    model = LogisticRegression(C=strength, max_iter=1000, tol=1e-3).fit(states, labels)
    # Of two classes scikit-learn has the second's weights alone.
    weight[-len(model.coef_) :], bias[-len(model.coef_) :] = model.coef_, model.intercept_


def _answer(job: Finetuning, head: Linear, states: NDArray[np.float32], scored: Predictions) -> Predictions:
    logits = job.objective.answers((states @ head.weight.T + head.bias).astype(np.float32))
    return type(scored)(scored.piece, scored.segment, scored.note, scored.label, logits)


@torch.no_grad()
def _take(model: Any, head: Linear, layers: int) -> None:
    """Cut an encoder above a layer and give it a head."""
    model.midibert.layers = nn.ModuleList(model.midibert.layers[:layers])
    model.config.num_hidden_layers = layers
    last = output_layer(model)
    last.weight.copy_(torch.from_numpy(head.weight))
    last.bias.copy_(torch.from_numpy(head.bias))
