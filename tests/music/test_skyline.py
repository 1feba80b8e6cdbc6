from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from midibert_ray.corpora.catalogue import corpus
from midibert_ray.corpora.labels import list_pieces
from midibert_ray.music.grid import align_to_beats, read_beats
from midibert_ray.music.midi import read_notes
from midibert_ray.music.protocol import PAPER
from midibert_ray.music.skyline import skyline, top_note


def run(rows: list[tuple[int, int, int]]) -> list[bool]:
    return skyline(*np.array(rows).T).tolist()


def test_the_highest_note_from_middle_c_up():
    assert run([(0, 3, 60), (0, 3, 72), (4, 3, 59), (8, 3, 64), (12, 3, 64)]) == [
        False,
        True,
        False,
        True,
        False,
    ]


def test_a_deep_dip_is_no_melody():
    assert run([(0, 3, 80), (4, 3, 71), (8, 3, 80), (12, 3, 80)]) == [True, False, True, False]
    assert run([(0, 3, 80), (4, 3, 72), (8, 3, 80), (12, 3, 80)]) == [True, True, True, False]


def test_too_few_notes():
    assert run([(0, 3, 60)]) == [False]
    assert run([(0, 3, 40), (1, 3, 40)]) == [False, False]
    assert run([(0, 0, 60), (4, 3, 60)]) == [False, False]  # a 32nd rounds to nothing


def test_the_top_note_is_the_highest_that_sounds():
    #        held above until 3    below it      a new top     after its end   equal ones: the first
    rows = [(0, 5, 80), (0, 5, 60), (2, 1, 70), (2, 1, 81), (3, 1, 50), (4, 1, 64), (4, 1, 64)]
    assert top_note(*np.array(rows).T).tolist() == [True, False, False, True, True, True, False]
    backwards = top_note(*np.array(rows[:5][::-1]).T)[::-1]
    assert backwards.tolist() == [True, False, False, True, True]
    assert top_note(*np.array([(0, 0, 30)]).T).tolist() == [True]


def test_a_held_note_above_hides_those_below():
    assert top_note(*np.array([(0, 6, 80), (3, 1, 70)]).T).tolist() == [True, False]  # it ends at 3.5 sub-beats
    assert top_note(*np.array([(0, 5, 80), (3, 1, 70)]).T).tolist() == [True, True]  # it ends at 3


@pytest.mark.corpora
def test_the_authors_counts_on_the_test_split(corpora_root):
    entry = corpus("pop909")
    folder = Path(entry.location(str(corpora_root)))
    counts = np.zeros((2, 2), dtype=int)
    for piece in list_pieces(entry, {}, PAPER):
        if piece.split != "test":
            continue
        midi, beats = ((folder / file).read_bytes() for file in piece.files)
        notes, _ = align_to_beats(read_notes(midi), read_beats(beats))
        notes = notes.take(np.argsort(notes.start, kind="stable"))
        found = skyline(notes.start // 120, (notes.end - notes.start) // 60 - 1, notes.pitch)
        np.add.at(counts, ((notes.track == 0).astype(int), found.astype(int)), 1)
    (tn, fp), (fn, tp) = counts.tolist()
    assert (tp, fp, fn, tn) == (17_351, 18_644, 11_942, 94_640)
