"""A trained model's calibration: its temperature, its metrics and the music that it knows, when a trial ends."""

import numpy as np
import torch
from numpy.typing import NDArray

from midibert_ray.model.calibration import Calibration, Familiarity, Favour, Reliability, fit_temperature, softmax
from midibert_ray.model.midibert import MidiBertModel
from midibert_ray.training.finetune import Finetuning
from midibert_ray.training.predictions import Predictions


def calibrate(job: Finetuning, predictions: Predictions, split: str) -> Calibration:
    """The calibration of a job's model, given its predictions on a split, `test` or, in a sweep, `valid`.

    The temperature is that of the validation split, also for the metrics of the test split.
    """
    valid = predictions if split == "valid" else job.valid
    if valid is None:
        valid = job.evaluate("valid")
    classes = valid.label.ndim == 1 and np.issubdtype(valid.label.dtype, np.integer)
    temperature = fit_temperature(valid.logits, valid.label) if classes else 1.0
    encoder = getattr(job.model, "midibert", None)
    known = None
    if encoder is not None:
        known = Familiarity.fit(*(pooled(job, encoder, name, job.data.rows(name)) for name in ("train", "valid")))
    measured = {
        name: Reliability.measure(found.logits, found.label, temperature)
        for name, found in (("valid", valid), (split, predictions))
        if classes
    }
    return Calibration(
        temperature=temperature,
        valid=measured.get("valid"),
        test=measured.get("test"),
        familiarity=known,
        favour=_favour(job, valid, temperature),
    )


def _favour(job: Finetuning, valid: Predictions, temperature: float) -> Favour | None:
    """The melody's, where a task is judged by F1."""
    task = job.data.task
    if not task.melody or task.metric != "f1":
        return None
    column = job.data.classes.index(task.melody)
    probability = softmax(valid.logits.astype(np.float64) / temperature)[:, column]
    return Favour.fit(task.melody, probability, valid.label == column, valid.prediction == column)


@torch.no_grad()
def pooled(job: Finetuning, encoder: MidiBertModel, split: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean hidden states of the pieces that some segments of a split are of, float [pieces, hidden].

    Means are over notes: in REMI over the Pitch tokens.
    """
    encoder.eval()
    sums = np.zeros((job.data.splits[split].pieces, encoder.config.hidden_size))
    notes = np.zeros(len(sums), dtype=np.int64)
    for start in range(0, len(rows), job.recipe.batch):
        batch, raw = job.data.batch(split, rows[start : start + job.recipe.batch], job.device)
        with torch.autocast(job.device.type, torch.bfloat16, enabled=job.config.compute.precision == "bf16"):
            hidden = encoder(batch.tokens, batch.mask, packing=batch.packing).last_hidden_state
        is_note = raw.note >= 0
        totals = (hidden.float() * torch.from_numpy(is_note).to(hidden.device)[..., None]).sum(1)
        np.add.at(sums, raw.piece, totals.cpu().numpy())
        np.add.at(notes, raw.piece, is_note.sum(1))
    return sums[notes > 0] / notes[notes > 0, None]
