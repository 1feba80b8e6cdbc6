"""A task of one's own is one more value: nothing else is changed for it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from midibert_ray.data.store import TokenStore
from midibert_ray.music.tasks import TASKS, Task, note_labels
from midibert_ray.report.baselines import MAJORITY, baselines
from midibert_ray.report.table import build
from midibert_ray.settings.config import ConfigError
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.presets import preset
from midibert_ray.studies.plan import make
from midibert_ray.training.finetune import Finetuning, finetune, new_model
from midibert_ray.training.recipes import recipe
from midibert_ray.training.task_data import TaskData
from tests.stores import Piece, beginnings, write_store
from tests.studies.made import outcome
from tests.tiny import tiny_study

LOUD = Task(
    name="loud", level="note", classes=("soft", "loud"), corpus="pop909", column="velocity", edges=(90,), rnn_lr=0.5
)


@pytest.fixture
def loud(monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setitem(TASKS, LOUD.name, LOUD)
    return LOUD


def test_a_task_that_is_not_known_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"finetune\.task='melodi' is not allowed; use one of melody.*mean 'melody'"):
        replace(preset("debug"), {"finetune.task": "melodi"})
    with pytest.raises(ConfigError, match=r"study\.tasks='loud'"):
        replace(preset("debug"), {"study.tasks": "loud"})


@pytest.fixture(scope="module")
def sample_store(sample_pieces: list[Piece], tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """The first notes of a third of the sample."""
    folder = tmp_path_factory.mktemp("few")
    pieces = beginnings(sample_pieces[::3], 500)
    return TokenStore.open(write_store(folder / "sample-few", pieces, "sample"), str(folder / "cache"))


@pytest.mark.parametrize("protocol", ["paper", "clean"])
def test_a_fifth_task_is_learned_and_scored(
    tmp_path: Path, loud: Task, sample_store: TokenStore, protocol: str
) -> None:
    config = tiny_study(tmp_path, finetune__task="loud", finetune__init="scratch", tokens__protocol=protocol)
    data = TaskData(config, sample_store)
    assert data.classes[-2:] == ("soft", "loud")
    job = Finetuning(config, data, new_model(config, data, ""), torch.device("cpu"))
    before = [float(job.learn(np.arange(4))[0]) for _ in range(3)]
    assert np.isfinite(before).all()
    predictions = finetune(job, lambda metrics, write: None)
    assert set(np.unique(predictions.label)) == {data.outputs - 2, data.outputs - 1}
    assert recipe(replace(config, {"finetune.model": "rnn"})).rate == 0.5

    majority, *_ = baselines(config, sample_store)
    tested = [np.arange(*sample_store.offsets[i : i + 2]) for i in sample_store.select({"test"})]
    labels = note_labels(loud, sample_store)[np.concatenate(tested)]
    assert majority.name == MAJORITY
    assert majority.detail == {"soft": int((labels == 1).sum()), "loud": int((labels == 2).sum())}


def test_a_fifth_task_is_a_column_of_a_study(tmp_path: Path, loud: Task, sample_store: TokenStore) -> None:
    config = tiny_study(tmp_path, study__tasks=("melody", "loud"), study__variants=("scratch",))
    plan = make(config, lambda config, names: dict.fromkeys(names, sample_store.uri))
    assert [entry.trial.name for entry in plan.trials.values()] == [
        "melody-scratch-clean-seed2021",
        "loud-scratch-clean-seed2021",
    ]
    (made,) = build([outcome("scratch", 0.8, task=task) for task in ("melody", "loud")], {})
    assert made.tasks == ("melody", "loud")
