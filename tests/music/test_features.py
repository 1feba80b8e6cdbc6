"""Plain features: a few notes by hand, and real music moved up by two semitones."""

import numpy as np
import pytest

from midibert_ray.music.features import NOTE_FEATURES, PASSAGE_FEATURES, note_features, passage_features
from midibert_ray.music.tokens import Tokens
from tests.stores import Piece

PITCHED = {
    "pitch, mean",
    "lowest pitch",
    "highest pitch",
    "pitches below middle C",
    "top line, mean",
    "bass line, mean",
}
"""Features of a passage that say how high it is."""


def made(*notes: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and onsets of (onset in sub-beats, MIDI pitch, thirty-seconds) in 4/4."""
    onset, pitch, duration = np.array(notes).T
    new = np.diff(onset // 16, prepend=-1) > 0
    tokens = np.stack([~new, onset % 16, pitch - 22, duration - 1], axis=1).astype(np.uint8)
    return tokens, onset.astype(np.int32)


def named(names: tuple[str, ...], values: np.ndarray) -> dict[str, float]:
    return dict(zip(names, values.tolist(), strict=True))


def test_a_passage_by_hand() -> None:
    # A C major triad of a half note, then E5, D5 and C5 as quarters; the third stands in the second bar.
    found = named(
        PASSAGE_FEATURES,
        passage_features(
            *made((0, 60, 16), (0, 64, 16), (0, 67, 16), (8, 76, 8), (12, 74, 8), (16, 72, 8)),
        ),
    )
    weights = {0: 16 + 8, 4: 16 + 8, 7: 16, 2: 8}  # C is the commonest class; of equals the lowest
    for step in range(12):
        assert found[f"pitch class {step} above the commonest"] == pytest.approx(weights.get(step, 0) / 72)
    assert found["top line steps from 8 semitones"] == pytest.approx(1 / 3)  # G4 to E5
    assert found["top line steps from 2 semitones"] == pytest.approx(2 / 3)
    assert found["top line steps upwards"] == pytest.approx(1 / 3)
    assert found["chord notes at interval class 4 from the lowest"] == 0.5
    assert found["chord notes at interval class 5 from the lowest"] == 0.5
    assert (found["onsets at a bar's start"], found["onsets on other beats"]) == (0.5, 0.5)
    assert (found["durations from 5 thirty-seconds"], found["durations from 9 thirty-seconds"]) == (0.5, 0.5)
    assert found["log duration, mean"] == pytest.approx(3.5)
    assert found["waits from 3 sub-beats"] == pytest.approx(2 / 3)
    assert (found["notes a bar"], found["onsets a bar"], found["notes an onset"]) == (3, 2, 1.5)
    assert found["single-note onsets"] == 0.75
    assert found["polyphony"] == pytest.approx(36 / 17)
    assert (found["bars without an onset"], found["sub-beats a bar"]) == (0, 16)
    assert (found["lowest pitch"], found["highest pitch"], found["range"]) == (60, 76, 16)
    assert found["wait entropy"] == pytest.approx(-(2 / 3) * np.log2(2 / 3) - (1 / 3) * np.log2(1 / 3))


def test_notes_by_hand() -> None:
    rows = note_features(*made((0, 48, 32), (0, 72, 4), (4, 60, 4), (4, 64, 4)))
    bass, top, low, high = (named(NOTE_FEATURES, row) for row in rows)
    assert (bass["rank from the top"], bass["rank from the bottom"], top["rank from the top"]) == (1, 0, 0)
    assert (bass["to the next note above in its onset"], bass["to the next note below in its onset"]) == (24, 48)
    assert (high["below the highest sounding"], low["below the highest sounding"]) == (0, 4)
    assert low["above the lowest sounding"] == 12, "the bass is held"
    assert low["above the lowest of its onset"] == 0
    assert high["pitches sounding"] == 3
    assert (low["since the last onset"], low["to the next onset"], bass["since the last onset"]) == (4, 48, 48)
    assert (high["from the last top"], low["from the last bass"], high["to the next top"]) == (-8, 12, 48)
    assert (low["to the nearest pitch of the last onset"], top["to the nearest pitch of the next onset"]) == (12, 8)
    assert (bass["ends before the next onset"], top["ends before the next onset"]) == (0, 1)
    assert top["above the mean pitch around"] == pytest.approx(72 - 61)


@pytest.mark.parametrize("notes", [1, 2])
def test_a_note_or_two_have_features(notes: int) -> None:
    tokens, onset = made((0, 60, 4), (2**30, 62, 4))
    assert np.isfinite(passage_features(tokens[:notes], onset[:notes])).all()
    assert np.isfinite(note_features(tokens[:notes], onset[:notes])).all()


def test_real_music_in_another_key(sample_pieces: list[Piece]) -> None:
    """Two semitones higher, all is as before but what tells how high it is."""
    steady = [name not in PITCHED for name in PASSAGE_FEATURES]
    absolute = [name in ("pitch", "pitch class") for name in NOTE_FEATURES]
    for *_, piece in sample_pieces[:8]:
        higher = piece.tokens.copy()
        higher[:, 2] += 2
        before, after = passage_features(piece.tokens, piece.onset), passage_features(higher, piece.onset)
        assert before.shape == (len(PASSAGE_FEATURES),)
        assert before.dtype == np.float32
        assert np.isfinite(before).all()
        np.testing.assert_allclose(after[steady], before[steady], atol=1e-4)
        moved = named(PASSAGE_FEATURES, after - before)
        assert moved["lowest pitch"] == moved["highest pitch"] == 2
        notes, moved_notes = note_features(piece.tokens, piece.onset), note_features(higher, piece.onset)
        assert notes.shape == (len(piece), len(NOTE_FEATURES))
        np.testing.assert_allclose(moved_notes[:, ~np.array(absolute)], notes[:, ~np.array(absolute)], atol=1e-3)
        assert (moved_notes[:, 0] - notes[:, 0] == 2).all()


def test_features_of_a_part_do_not_know_where_it_stands(sample_pieces: list[Piece]) -> None:
    piece: Tokens = sample_pieces[0][3]
    later = piece.onset[100:300] + 16 * 50
    np.testing.assert_allclose(
        passage_features(piece.tokens[100:300], later), passage_features(piece.tokens[100:300], piece.onset[100:300])
    )
