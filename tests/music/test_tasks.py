from __future__ import annotations

import numpy as np
import pytest

from midibert_ray.music.tasks import TASKS, note_labels, sequence_label


def test_the_four_tasks():
    assert {name: (task.level, len(task.classes), task.corpus) for name, task in TASKS.items()} == {
        "melody": ("note", 3, "pop909"),
        "velocity": ("note", 6, "pop909"),
        "composer": ("sequence", 8, "pianist8"),
        "emotion": ("sequence", 4, "emopia"),
    }


def test_velocity_classes():
    velocity = np.array([0, 31, 32, 47, 48, 63, 64, 79, 80, 95, 96, 127], dtype=np.uint8)
    labels = note_labels(TASKS["velocity"], np.zeros(12, dtype=np.uint8), velocity)
    assert labels.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert labels.dtype == np.uint8


def test_melody_labels_are_the_parts():
    part = np.array([1, 2, 3, 0], dtype=np.uint8)
    assert note_labels(TASKS["melody"], part, part).tolist() == [1, 2, 3, 0]


def test_sequence_labels():
    assert sequence_label(TASKS["composer"], "Bethel") == 0
    assert sequence_label(TASKS["composer"], "Yiruma") == 7
    assert sequence_label(TASKS["emotion"], "Q4") == 3


def test_wrong_uses_are_refused():
    with pytest.raises(ValueError, match=r"Bach.*Bethel"):
        sequence_label(TASKS["composer"], "Bach")
    with pytest.raises(ValueError, match="composer and emotion"):
        sequence_label(TASKS["melody"], "Q1")
    with pytest.raises(ValueError, match="melody and velocity"):
        note_labels(TASKS["emotion"], np.zeros(1, np.uint8), np.zeros(1, np.uint8))


def test_only_composer_drops_short_rows():
    assert [name for name, task in TASKS.items() if task.drops_short_rows] == ["composer"]
