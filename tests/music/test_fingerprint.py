"""Near-duplicates by the notes alone."""

import numpy as np

from midibert_ray.music.fingerprint import ALIKE, SKETCH, near_duplicates, resemblance, sketch


def piece(seed: int, notes: int = 300) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return np.cumsum(random.integers(0, 4, notes)).astype(np.int32), random.integers(40, 80, notes).astype(np.uint8)


def test_transposed_and_trimmed_pieces_are_alike_and_others_are_not() -> None:
    onset, pitch = piece(0)
    whole = sketch(onset, pitch)
    assert len(whole) == SKETCH
    assert resemblance(whole, sketch(onset + 16, pitch + np.uint8(3))) == 1
    trimmed = sketch(onset[40:] - onset[40], pitch[40:] - np.uint8(5))
    assert ALIKE < resemblance(whole, trimmed) < 1
    assert resemblance(whole, sketch(*piece(1))) == 0
    sketches = [sketch(*piece(1)), whole, sketch(*piece(2)), trimmed, sketch(*piece(3, notes=15))]
    assert near_duplicates(sketches).tolist() == [0, 1, 2, 1, 4]


def test_a_changed_time_or_note_changes_what_is_near_it_alone() -> None:
    onset, pitch = piece(0)
    changed = pitch.copy()
    changed[150] += 1
    assert resemblance(sketch(onset, pitch), sketch(onset, changed)) > 0.8
    assert resemblance(sketch(onset, pitch), sketch(2 * onset, pitch)) < ALIKE


def test_nothing_is_alike_where_nothing_is() -> None:
    assert near_duplicates([]).tolist() == []
    empty = np.zeros(0, np.uint64)
    assert near_duplicates([empty, empty]).tolist() == [0, 1]
