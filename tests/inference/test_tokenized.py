"""Ids of anybody's music, and the way back."""

from pathlib import Path

import numpy as np
import pretty_midi
import pytest

import midibert_ray as mb
from midibert_ray.music.grid import quantize
from midibert_ray.music.midi import read_notes
from midibert_ray.music.protocol import CLEAN, PAPER
from midibert_ray.music.tokens import encode, remi_from_cp
from tests.music.hard_files import midi_file, note


def test_ids_are_those_of_a_token_store(songs: list[Path]) -> None:
    for path in songs[:3]:
        notes = read_notes(path.read_bytes(), keep_unreleased=True)
        cp = encode(quantize(notes, CLEAN)).tokens
        assert mb.tokenize(path).ids.tolist() == cp.tolist()
        remi, expected = mb.tokenize(path, representation="remi"), remi_from_cp(cp)
        assert remi.ids.tolist() == expected.ids.tolist() and remi.note_at.tolist() == expected.pitch_at.tolist()
        paper = encode(quantize(notes, PAPER)).tokens
        assert mb.tokenize(path, protocol="paper").ids.tolist() == paper.tolist()


def test_every_id_leads_back_to_its_note(songs: list[Path]) -> None:
    found = mb.tokenize(songs[0])
    notes = found.song.notes
    assert sorted(found.grid.source) == list(range(len(notes)))
    assert (found.ids[:, 2] + 22).tolist() == notes.pitch[found.grid.source].tolist()
    assert found.grid.velocity.tolist() == notes.velocity[found.grid.source].tolist()
    starts = notes.start[found.grid.source]
    assert (np.abs(starts / 120 - found.grid.onset) <= 0.5).all()


def test_ids_make_a_file_with_the_same_ids(songs: list[Path]) -> None:
    found = mb.tokenize(songs[0])
    again = mb.tokenize(found.to_midi())
    assert again.ids.tolist() == found.ids.tolist()
    seconds = found.song.offset_s.max()
    assert found.to_midi().get_end_time() == pytest.approx(seconds, rel=0.01)


@pytest.mark.parametrize("representation", ["cp", "remi"])
def test_ids_alone_make_a_file_in_four_four(representation: str) -> None:
    bars = midi_file([event for pitch in (60, 62, 64, 65, 67, 69, 71, 72, 74) for event in note(pitch, 480)])
    ids = mb.tokenize(bars, representation).ids  # type: ignore[arg-type]
    made = mb.detokenize(ids, tempo=90)
    assert mb.tokenize(made, representation).ids.tolist() == ids.tolist()  # type: ignore[arg-type]
    assert [n.start for n in made.instruments[0].notes] == pytest.approx([k * 60 / 90 for k in range(9)])
    assert isinstance(made, pretty_midi.PrettyMIDI)


def test_ids_that_are_no_notes_are_refused() -> None:
    with pytest.raises(ValueError, match="note 1 has the id 86 in the column Pitch; notes have 0 to 85, without PAD"):
        mb.detokenize(np.array([[0, 0, 10, 3], [1, 0, 86, 3]]))
    with pytest.raises(ValueError, match="a note is Position, Pitch and Duration in a row"):
        mb.detokenize(np.array([0, 1, 30, 110, 5]))
    with pytest.raises(ValueError, match="a note is Position, Pitch and Duration in a row"):
        mb.detokenize(np.array([0, 1, 30, 0, 110]))
    with pytest.raises(ValueError, match=r"ids of shape \[2, 3\] are no piece"):
        mb.detokenize(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="representation='bpe' is not possible; allowed: 'cp', 'remi'"):
        mb.tokenize(midi_file([*note(60, 480)]), representation="bpe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="protocol='mine' is not possible; allowed: 'paper', 'clean'"):
        mb.tokenize(midi_file([*note(60, 480)]), protocol="mine")  # type: ignore[arg-type]
