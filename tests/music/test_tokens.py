from __future__ import annotations

import hashlib
import io
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midibert_ray.corpora.catalogue import corpus
from midibert_ray.corpora.labels import list_pieces
from midibert_ray.corpora.tokens import tokenize_piece
from midibert_ray.music.grid import PARTS, GridNotes, quantize
from midibert_ray.music.midi import read_notes
from midibert_ray.music.pairing import close_notes
from midibert_ray.music.protocol import CLEAN, PROTOCOLS
from midibert_ray.music.tokens import (
    Tokens,
    encode,
    remi_from_cp,
    to_notes,
    to_pretty_midi,
)

SAMPLE_DIGESTS = {
    "paper": "c5c019f46e2d31fd452fba3206ef381c9ce52f03e9fe808fbe9d11ab0b39074e",
    "clean": "40ff5e7f64b1a4d34ebd94b7037dac99e71bc4d4a45eb688f86e0de7123bf0cb",
}

NOTES = st.lists(
    st.tuples(
        st.integers(0, 70),  # sub-beats: five bars, most of them empty
        st.integers(0, 63),
        st.integers(22, 107) | st.integers(60, 61),
        st.integers(1, 127),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=40,
)


def make_grid(notes: list[tuple[int, ...]]) -> GridNotes:
    table = np.array(sorted(notes), dtype=np.int64)
    columns = dict(zip(("onset", "duration", "pitch", "velocity", "part"), table.T, strict=True))
    kinds = {name: column.astype(np.int32 if name == "onset" else np.uint8) for name, column in columns.items()}
    return GridNotes(**kinds, bar=kinds["onset"] // 16 * 16, dropped={})


def sorted_rows(notes: GridNotes | Tokens) -> np.ndarray:
    """[5, n] onset, pitch, duration, velocity and part, in order."""
    if isinstance(notes, Tokens):
        pitch, duration = notes.tokens[:, 2] + 22, notes.tokens[:, 3]
    else:
        pitch, duration = notes.pitch, notes.duration
    rows = np.stack([notes.onset, pitch, duration, notes.velocity, notes.part]).astype(np.int64)
    return rows[:, np.lexsort(rows)]


def multiset(notes: GridNotes | Tokens) -> Counter:
    return Counter(map(tuple, sorted_rows(notes).T.tolist()))


def through_midi(tokens: Tokens) -> GridNotes:
    buffer = io.BytesIO()
    to_pretty_midi(tokens).write(buffer)
    return quantize(read_notes(buffer.getvalue()), protocol=CLEAN, parts=PARTS)


@given(notes=NOTES)
def test_notes_to_cp_to_midi_and_back_is_the_identity(notes):
    grid = make_grid(notes)
    tokens = encode(grid)
    assert multiset(tokens) == multiset(grid)
    assert multiset(through_midi(tokens)) == multiset(grid)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_the_sample_survives_the_way_through_midi(sample, protocol):
    pop909 = corpus("sample")
    for piece, contents in sample[:: 3 if protocol is CLEAN else 8]:
        tokens = tokenize_piece(pop909, piece, contents, protocol)
        assert multiset(through_midi(tokens)) == multiset(tokens), piece.piece


def test_overlapping_and_equal_notes_get_voices_of_their_own():
    grid = make_grid([(0, 15, 60, 10, 1), (0, 15, 60, 20, 1), (4, 1, 60, 30, 1), (8, 1, 60, 30, 1), (0, 0, 60, 9, 0)])
    midi = to_pretty_midi(encode(grid))
    assert [instrument.name for instrument in midi.instruments] == ["NOTES", "MELODY", "MELODY 2", "MELODY 3"]
    assert [len(instrument.notes) for instrument in midi.instruments] == [1, 2, 1, 1]


def test_tempo_of_the_written_file():
    grid = make_grid([(16, 7, 60, 10, 1)])
    note = to_pretty_midi(encode(grid), tempo=60).instruments[0].notes[0]
    assert (note.start, note.end) == (4.0, 5.0)


def test_empty_bars_are_kept_by_onsets():
    tokens = encode(make_grid([(3, 7, 60, 10, 1), (16 * 5 + 2, 7, 60, 10, 1), (16 * 5 + 2, 7, 62, 10, 1)]))
    assert tokens.tokens[:, 0].tolist() == [0, 0, 1]
    assert tokens.onset.tolist() == [3, 82, 82]
    assert through_midi(tokens).onset.tolist() == [3, 82, 82]


@given(notes=NOTES)
def test_remi_and_cp_say_the_same(notes):
    cp = encode(make_grid(notes)).tokens
    remi = remi_from_cp(cp)
    assert len(remi.ids) == 3 * len(cp) + (cp[:, 0] == 0).sum()
    for column, (step, first) in enumerate(((-1, 1), (0, 17), (1, 103)), start=1):
        np.testing.assert_array_equal(remi.ids[remi.pitch_at + step] - first, cp[:, column])
    begins = np.cumsum(remi.ids != 0)[remi.ids == 0] // 3
    np.testing.assert_array_equal(begins, np.flatnonzero(cp[:, 0] == 0))


def test_remi_of_a_small_piece():
    cp = np.array([[0, 0, 38, 7], [1, 0, 42, 7], [0, 15, 0, 63]], dtype=np.uint8)
    remi = remi_from_cp(cp)
    assert remi.ids.tolist() == [0, 1, 55, 110, 1, 59, 110, 0, 16, 17, 166]
    assert remi.pitch_at.tolist() == [2, 5, 9]


def _survives(task: tuple[str, str, int]) -> list[str]:
    name, root, share = task
    entry = corpus(name)
    folder = Path(entry.location(root))
    found = {path.relative_to(folder).as_posix(): 1 for path in folder.rglob("*.mid")}
    lost = []
    for piece in list_pieces(entry, found, CLEAN)[share::16]:
        contents = [(folder / file).read_bytes() for file in piece.files]
        tokens = tokenize_piece(entry, piece, contents, CLEAN)
        notes = to_notes(tokens)
        # No note-off of a track ends another note than its own, so that a file holds what is here.
        key = notes.track.astype(np.int64) * 128 + notes.pitch
        unheard = not np.array_equal(close_notes(key, notes.start, notes.end), notes.end)
        written = quantize(notes, CLEAN, parts=PARTS)
        if unheard or not np.array_equal(sorted_rows(written), sorted_rows(tokens)):
            lost.append(f"{name}/{piece.piece}")
        if share == 0 and multiset(through_midi(tokens)) != multiset(tokens):
            lost.append(f"{name}/{piece.piece} through a file")
    return lost


@pytest.mark.corpora
def test_every_piece_of_the_corpora_survives_the_way_through_midi(corpora_root):
    """All to the notes that a file would hold, and one in sixteen to the file itself, which takes longer."""
    names = ("pop909", "pop1k7", "asap", "pianist8", "emopia")
    tasks = [(name, str(corpora_root), share) for name in names for share in range(16)]
    with ProcessPoolExecutor(2) as pool:
        assert [piece for lost in pool.map(_survives, tasks) for piece in lost] == []


def test_the_tokens_of_the_sample_have_not_drifted(sample):
    """The digests were taken when all golden arrays (tests/data/test_parity.py) were met."""
    digests = {}
    for protocol in PROTOCOLS.values():
        total = hashlib.sha256()
        for piece, contents in sample:
            tokens = tokenize_piece(corpus("sample"), piece, contents, protocol)
            for column in (tokens.tokens, tokens.onset.astype("<i4"), tokens.velocity, tokens.part):
                total.update(np.ascontiguousarray(column).tobytes())
        digests[protocol.name] = total.hexdigest()
    assert digests == SAMPLE_DIGESTS
