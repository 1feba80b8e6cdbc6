"""The calibration of a tiny trial, against its own predictions and plain loops over its hidden states."""

import numpy as np
import pytest
import torch

from midibert_ray.data.store import TokenStore
from midibert_ray.model.calibration import Reliability, fit_temperature, softmax
from midibert_ray.model.heads import MidiBertForNotes
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.training.calibrate import calibrate, pooled
from midibert_ray.training.finetune import Finetuning, finetune, new_model
from midibert_ray.training.task_data import TaskData


def job(config: Config, store: TokenStore, **changes: object) -> Finetuning:
    dotted = {f"finetune.{name}": value for name, value in changes.items()}
    config = replace(config, {"finetune.init": "scratch", "finetune.epochs": 1, "rnn.epochs": 1} | dotted)
    data = TaskData(config, store)
    return Finetuning(config, data, new_model(config, data, ""), torch.device("cpu"))


@pytest.mark.parametrize("task", ["melody", "emotion"])
def test_the_temperature_is_the_validation_split_s(tiny: Config, short_store: TokenStore, task: str) -> None:
    made = job(tiny, short_store, task=task, model="midibert")
    test = finetune(made, lambda metrics, save: None)
    valid = made.evaluate("valid")
    found = calibrate(made, test, "test")
    assert found.temperature == fit_temperature(valid.logits, valid.label)
    assert found.valid == Reliability.measure(valid.logits, valid.label, found.temperature)
    assert found.test == Reliability.measure(test.logits, test.label, found.temperature)
    assert found.familiarity and found.test.scored == len(test.label)
    assert found.favour is None  # neither is judged by F1
    swept = calibrate(made, valid, "valid")
    assert swept.test is None and (swept.temperature, swept.valid) == (found.temperature, found.valid)


def test_a_melody_that_is_judged_by_f1_is_answered_from_the_validation_split_s_best_probability_on(
    tiny: Config, sample_store: TokenStore
) -> None:
    made = job(tiny, sample_store, task="line", corpus="sample", lr=1e-3)
    found = calibrate(made, finetune(made, lambda metrics, save: None), "test")
    assert found.favour and found.favour.name == "melody"
    valid, column = made.evaluate("valid"), made.data.classes.index("melody")
    shares, truth = softmax(valid.logits.astype(float) / found.temperature)[:, column], valid.label == column

    def f1(said: np.ndarray) -> float:
        return float(2 * (said & truth).sum() / (said.sum() + truth.sum()))

    assert found.favour.f1 == pytest.approx(f1(shares >= found.favour.least))
    assert found.favour.f1 >= max(f1(shares >= least) for least in np.linspace(0.05, 0.95, 19))
    assert found.favour.f1_of_most_probable == pytest.approx(f1(valid.prediction == column))


def test_a_recurrent_model_has_no_familiar_music(tiny: Config, short_store: TokenStore) -> None:
    made = job(tiny, short_store, model="rnn")
    assert calibrate(made, finetune(made, lambda metrics, save: None), "test").familiarity is None


def test_pieces_are_the_means_of_their_notes(tiny: Config, sample_store: TokenStore) -> None:
    made = job(tiny, sample_store)
    assert isinstance(made.model, MidiBertForNotes)
    segments = made.data.splits["valid"]
    found = pooled(made, made.model.midibert, "valid", np.arange(len(segments)))
    first = segments.gather(np.flatnonzero(segments.locate(np.arange(len(segments)))[0] == 0))
    with torch.no_grad():
        states = [
            made.model.midibert(torch.from_numpy(tokens[None, :length]).long()).last_hidden_state[0]
            for tokens, length in zip(first.tokens, first.length, strict=True)
        ]
    assert len(found) == segments.pieces and len(states) > 1
    np.testing.assert_allclose(found[0], torch.cat(states).mean(0).numpy(), atol=1e-5)
