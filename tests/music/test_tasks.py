"""What tasks are made of, and how labels are read."""

import ast
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from midibert_ray.corpora.catalogue import corpus
from midibert_ray.corpora.labels import list_pieces
from midibert_ray.music.protocol import CLEAN
from midibert_ray.music.tasks import (
    PAPER_TASKS,
    TASKS,
    Task,
    note_labels,
    one_task,
    sequence_label,
    sequence_number,
    sequence_tags,
)


def test_the_tasks_with_a_name():
    assert {name: (task.level, len(task.classes), task.corpus) for name, task in TASKS.items()} == {
        "melody": ("note", 3, "pop909"),
        "velocity": ("note", 6, "pop909"),
        "composer": ("sequence", 8, "pianist8"),
        "emotion": ("sequence", 4, "emopia"),
        "line": ("note", 2, "pop909"),
        "lieder_composer": ("sequence", 17, "lieder_composers"),
    }
    assert [task.name for task in PAPER_TASKS] == ["melody", "velocity", "composer", "emotion"]


def test_no_branch_asks_for_the_name_of_a_task():
    package = Path(__file__).parents[2] / "midibert_ray"
    asked = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare | ast.match_case)
        and any(isinstance(part, ast.Constant) and part.value in TASKS for part in ast.walk(node))
    ]
    assert not asked, "ask a field of `music.tasks.Task` instead"


def test_velocity_classes():
    velocity = np.array([0, 31, 32, 47, 48, 63, 64, 79, 80, 95, 96, 127], dtype=np.uint8)
    labels = note_labels(TASKS["velocity"], SimpleNamespace(velocity=velocity))
    assert labels.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert labels.dtype == np.uint8


def test_melody_labels_are_the_parts():
    part = np.array([1, 2, 3, 0], dtype=np.uint8)
    assert note_labels(TASKS["melody"], SimpleNamespace(part=part)).tolist() == [1, 2, 3, 0]
    assert note_labels(TASKS["line"], SimpleNamespace(part=part)).tolist() == [1, 2, 2, 0], "a bridge is no melody"


def test_composers_of_lieder_are_the_folders_of_their_corpus():
    pieces = list_pieces(corpus("lieder_composers"), {}, CLEAN)
    assert TASKS["lieder_composer"].classes == tuple(sorted({piece.label for piece in pieces}))


def test_one_task_of_several_corpora():
    low, high = (replace(TASKS["composer"], name="genre", classes=names) for names in (("a", "b"), ("b", "c")))
    assert one_task([low]) is low
    assert one_task([low, high, low]).classes == ("a", "b", "c")
    with pytest.raises(ValueError, match=r"'melody': edges=\(\) in pop909, \(2,\) in pop909; give corpora that label"):
        one_task([TASKS["melody"], TASKS["line"]])


def test_sequence_labels():
    assert sequence_label(TASKS["composer"], "Bethel") == 0
    assert sequence_label(TASKS["composer"], "Yiruma") == 7
    assert sequence_label(TASKS["emotion"], "Q4") == 3


def test_wrong_uses_are_refused():
    with pytest.raises(ValueError, match=r"Bach.*Bethel"):
        sequence_label(TASKS["composer"], "Bach")
    with pytest.raises(ValueError, match="composer, emotion, lieder_composer label"):
        sequence_label(TASKS["melody"], "Q1")
    with pytest.raises(ValueError, match="melody, velocity, line have"):
        note_labels(TASKS["emotion"], SimpleNamespace())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"column": "genre"}, "column='genre'; note-level tasks read part or velocity"),
        ({"level": "sequence"}, "column='velocity'; note-level tasks read part or velocity, others neither"),
        ({"level": "sequence", "column": "year", "kind": "number"}, "kind='number' with 2 classes at level sequence"),
        ({"kind": "tags"}, "kind='tags' with 2 classes at level note"),
        ({"edges": (64, 96)}, r"edges=\(64, 96\); 2 classes have one less"),
        ({"melody": "tune"}, "melody='tune'; use one of soft, loud"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(changes, problem):
    fields = {"name": "own", "level": "note", "classes": ("soft", "loud"), "corpus": "pop909", "column": "velocity"}
    assert Task(**fields, edges=(64,)).edges == (64,)
    with pytest.raises(ValueError, match=f"task 'own': {problem}"):
        Task(**fields | changes)


def test_only_composer_drops_short_rows():
    assert [name for name, task in TASKS.items() if task.drops_short_rows] == ["composer"]


def test_numbers_and_tags():
    year = Task(name="year", level="sequence", kind="number", classes=(), corpus="own", column="year")
    mood = Task(
        name="mood", level="sequence", kind="tags", classes=("calm", "sad", "slow"), corpus="own", column="mood"
    )
    assert sequence_number(year, "1987.5") == 1987.5
    assert sequence_tags(mood, " slow; sad ;") == (1, 2)
    for text in ("soon", "nan", ""):
        with pytest.raises(ValueError, match=rf"'{text}' is no number, as task 'year' needs it"):
            sequence_number(year, text)
    with pytest.raises(ValueError, match=r"'loud' is no class of task 'mood'; the classes are calm, sad, slow"):
        sequence_tags(mood, "sad;loud")
