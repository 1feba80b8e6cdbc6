from __future__ import annotations

import io
from collections.abc import Sequence

import mido
import numpy as np
import pytest
from hard_files import midi_file, note
from hypothesis import given, settings
from hypothesis import strategies as st

from midibert_ray.music.grid import quantize
from midibert_ray.music.metre import Bars, lay_bars
from midibert_ray.music.midi import MidiError, Notes, Track, notes_to_pretty_midi, read_notes
from midibert_ray.music.protocol import CLEAN, PAPER
from midibert_ray.music.tokens import Tokens, encode, to_pretty_midi


def laid(signatures: Sequence[tuple[int, int, int]], until: int, ticks_per_beat: int = 4) -> Bars:
    return lay_bars(np.array(signatures, dtype=np.int64).reshape(-1, 3), ticks_per_beat, until)


def bars(*signatures: tuple[int, int, int], until: int, ticks_per_beat: int = 4) -> list[int]:
    """Sub-beats at which bars begin, by one note a sixteenth; ticks are sixteenths unless told."""
    made = laid(signatures, until, ticks_per_beat)
    return np.unique(made.bars(made.onsets(np.arange(until)))).tolist()


@pytest.mark.parametrize(
    ("numerator", "denominator", "expected"),
    [
        (4, 4, [0, 16, 32]),
        (3, 4, [0, 12, 24, 36]),
        (2, 4, [0, 8, 16, 24, 32, 40]),
        (6, 8, [0, 12, 24, 36]),
        (2, 2, [0, 16, 32]),
        (5, 4, [0, 12, 20, 32, 40]),  # three quarters and two
        (6, 4, [0, 12, 24, 36]),
        (7, 4, [0, 16, 28, 44]),
        (3, 2, [0, 16, 24, 40]),  # a beat is a half
        (9, 8, [0, 12, 18, 30, 36]),  # a beat is a dotted quarter
        (12, 8, [0, 12, 24, 36]),
        (5, 8, [0, 10, 20, 30, 40]),
        (7, 16, [0, 7, 14, 21, 28, 35, 42]),
    ],
)
def test_bars_are_as_long_as_the_time_signature_says(numerator, denominator, expected):
    assert bars((0, numerator, denominator), until=48) == [begin for begin in expected if begin < 48]


def test_without_a_time_signature_bars_are_those_of_four_four():
    assert bars(until=40) == [0, 16, 32]


def test_a_time_signature_within_a_bar_ends_it():
    assert bars((0, 4, 4), (40, 3, 4), until=64) == [0, 16, 32, 40, 52]


def test_of_several_signatures_at_one_tick_the_last_counts():
    assert bars((0, 4, 4), (0, 3, 4), until=24) == [0, 12]


@pytest.mark.parametrize(
    "signatures",
    [
        [(0, 1, 4), (4, 3, 4)],  # written out as a bar of its own
        [(0, 3, 4), (4, 3, 4)],  # a bar that is broken off
    ],
)
def test_a_pickup_stands_at_the_end_of_its_bar(signatures):
    made = laid(signatures, 16)
    onsets = made.onsets(np.array([0, 2, 4, 16]))
    assert onsets.tolist() == [8, 10, 12, 24]
    assert (onsets - made.bars(onsets)).tolist() == [8, 10, 0, 0]


def test_a_short_bar_before_a_shorter_one_is_no_pickup():
    assert bars((0, 3, 4), (12, 2, 4), until=28) == [0, 12, 20]


def test_a_bar_that_is_no_multiple_of_a_sixteenth_ends_where_it_ends():
    """7/32 at 32 ticks a quarter: bars of 28 ticks have four sub-beats, of which the last is half as long."""
    made = laid([(0, 7, 32)], 56, ticks_per_beat=32)
    ticks = np.array([0, 24, 28, 36, 56])
    assert made.onsets(ticks).tolist() == [0, 3, 4, 5, 8]
    assert made.bars(made.onsets(ticks)).tolist() == [0, 0, 4, 4, 8]


def waltz() -> bytes:
    signature = mido.MetaMessage("time_signature", numerator=3, denominator=4)
    return midi_file([signature, *[event for pitch in (48, 60, 64) * 4 for event in note(pitch, 480)]])


def test_clean_follows_the_metre_and_paper_does_not():
    clean = encode(quantize(read_notes(waltz()), CLEAN)).tokens
    assert clean[:, 0].tolist() == [0, 1, 1] * 4
    assert clean[:, 1].tolist() == [0, 4, 8] * 4
    paper = encode(quantize(read_notes(waltz()), PAPER)).tokens
    assert paper[:-1, 1].tolist() == [0, 4, 8, 12] * 2 + [0, 4, 8]
    alone = encode(quantize(read_notes(waltz()), PAPER.switch(bars="file"))).tokens
    assert alone[:-1, 1].tolist() == clean[:-1, 1].tolist()


SIGNATURE = st.tuples(
    st.integers(0, 200), st.integers(1, 13), st.sampled_from([1, 2, 4, 8, 16, 32, 64])
)  # sixteenths, numerator, denominator
NOTE = st.tuples(st.integers(0, 300), st.integers(1, 32), st.integers(22, 107), st.integers(1, 127))


def tokens_of(data: bytes) -> Tokens:
    return encode(quantize(read_notes(data), CLEAN))


def written(midi) -> bytes:
    buffer = io.BytesIO()
    midi.write(buffer)
    return buffer.getvalue()


@settings(max_examples=300)
@given(
    signatures=st.lists(SIGNATURE, max_size=4, unique_by=lambda row: row[0]),
    notes=st.lists(NOTE, min_size=1, max_size=12, unique_by=lambda row: (row[0], row[2])),
)
def test_notes_to_tokens_to_midi_is_the_identity_in_every_metre(signatures, notes):
    start, length, pitch, velocity = np.array(sorted(notes), dtype=np.int64).T
    source = Notes(
        start=start * 120,
        end=start * 120 + length * 60,
        pitch=pitch.astype(np.uint8),
        velocity=velocity.astype(np.uint8),
        track=np.zeros(len(start), dtype=np.int32),
        tracks=(Track(name="", program=0, is_drum=False),),
        ticks_per_beat=480,
        tempo_ticks=np.zeros(1, dtype=np.int64),
        seconds_per_tick=np.full(1, 60 / (120 * 480)),
        metre=np.array(sorted(signatures), dtype=np.int64).reshape(-1, 3) * [120, 1, 1],
    )
    tokens = encode(quantize(source, CLEAN))
    again = tokens_of(written(to_pretty_midi(tokens)))
    np.testing.assert_array_equal(again.tokens, tokens.tokens)
    np.testing.assert_array_equal(again.onset, tokens.onset)
    assert tokens.tokens[:, 1].max() < 16


def test_time_signatures_survive_pretty_midi():
    notes = read_notes(waltz())
    assert read_notes(written(notes_to_pretty_midi(notes))).metre.tolist() == [[0, 3, 4]]


def test_a_signature_where_the_last_note_goes_counts_and_one_behind_it_does_not():
    """A signature far behind the music has no bearing on it; one within half a sub-beat of a note has."""
    late = laid([(0, 4, 4), (2**31 - 1, 1, 64)], 20)
    assert late.bars(late.onsets(np.array([0, 17, 20]))).tolist() == [0, 16, 16]
    near = laid([(0, 4, 4), (210, 3, 4)], 207, ticks_per_beat=40)
    assert near.onsets(np.array([207])).tolist() == near.bars(near.onsets(np.array([207]))).tolist() == [21]


def test_more_bars_than_a_day_has_are_corrupt():
    with pytest.raises(MidiError, match="more than 1,048,576 bars"):
        laid([(0, 1, 64)], 2**31 - 1)
