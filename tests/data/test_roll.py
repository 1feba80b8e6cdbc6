"""The piano roll around each note, against one drawn note by note."""

from collections import Counter

import numpy as np
import pytest
import torch

from midibert_ray.data.augment import augment
from midibert_ray.data.hashing import row_keys
from midibert_ray.data.roll import COLUMNS, ROWS, roll_targets
from midibert_ray.data.segments import Segments
from midibert_ray.data.store import TokenStore
from midibert_ray.music.vocabulary import CP

Notes = list[tuple[int, int, int, int]]


def drawn(notes: Notes) -> list[list[list[float]]]:
    """The targets of one segment, by looking at every note for every sixteenth."""
    bars, bar = [], 0
    for number, (new, *_) in enumerate(notes):
        bar += number > 0 and new == 0
        bars.append(bar)

    def moment(at: int) -> list[float]:
        sounding = [
            pitch
            for (_, position, pitch, duration), bar in zip(notes, bars, strict=True)
            if bar * 16 + position <= at and 32 * (bar * 16 + position) + 16 * (duration + 1) > 32 * at
        ]
        pitches, classes = Counter(sounding), Counter((22 + pitch) % 12 for pitch in sounding)
        counts = [*(pitches[p] for p in range(86)), *(classes[c] for c in range(12))]
        return [count / max(len(sounding), 1) for count in counts]

    return [
        [*(moment(16 * bar + s) for s in range(16)), moment(16 * bar + position)]
        for (_, position, _, _), bar in zip(notes, bars, strict=True)
    ]


@pytest.mark.parametrize("augmented", [False, True])
def test_targets_are_those_of_a_roll_drawn_note_by_note(sample_store: TokenStore, augmented: bool) -> None:
    segments = Segments([sample_store], length=96)
    batch = segments.gather(np.arange(0, len(segments), 40))
    tokens, length = torch.from_numpy(batch.tokens).long(), torch.from_numpy(batch.length)
    assert (length < 96).any(), "some are padded"
    if augmented:
        keys = row_keys(1, 2, 3, torch.arange(len(length)))
        after = augment(tokens, length, keys, transpose=6, shift=15, scale=True, thin=0.2)
        tokens, length = after.tokens, after.length
    targets = roll_targets(tokens, torch.arange(96) < length[:, None])
    expected = [each for row, n in zip(tokens.tolist(), length.tolist(), strict=True) for each in drawn(row[:n])]
    assert targets.shape == (int(length.sum()), ROWS, COLUMNS) == (len(expected), 17, 98)
    assert torch.allclose(targets, torch.tensor(expected))
    own = torch.cat([row[:n, 2] for row, n in zip(tokens, length, strict=True)])
    assert (targets[torch.arange(len(own)), 16, own] > 0).all(), "each note sounds in its own moment"


def test_a_long_note_sounds_beyond_its_bar_and_a_short_one_for_a_sixteenth() -> None:
    notes = [[0, 15, 10, 63], [0, 0, 20, 0], [0, 0, 30, 7], [0, 0, 40, 0]]
    tokens = torch.tensor([[*notes, list(CP.pad)]])
    first, second, third, fourth = roll_targets(tokens, torch.arange(5)[None] < 4)
    assert first[:15].sum() == 0
    assert first[15, 10] == first[16, 10] == 1
    assert second[:, 20].tolist() == [0.5, *[0] * 15, 0.5]
    assert second[1:16, 10].tolist() == [1.0] * 15
    assert third[:4, 30].tolist() == [0.5] * 4
    assert third[3, (22 + 10) % 12 + 86] == 0.5
    assert (third[:15, 10] > 0).all() and third[15, 10] == 0, "two bars after its begin"
    assert fourth[:, 10].sum() == 0
