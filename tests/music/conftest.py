from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

from midibert_ray.corpora import catalogue as corpora
from midibert_ray.corpora.labels import Piece, list_pieces
from midibert_ray.music.protocol import PAPER

# Times tell how busy the machine is, not whether a property holds.
settings.register_profile("music", deadline=None)
settings.load_profile("music")


@pytest.fixture(scope="session")
def sample() -> list[tuple[Piece, list[bytes]]]:
    """The pieces of the sample and the bytes of their files."""
    corpus = corpora.corpus("sample")
    folder = Path(corpus.location(""))
    return [(piece, [(folder / file).read_bytes() for file in piece.files]) for piece in list_pieces(corpus, {}, PAPER)]


@pytest.fixture(scope="session")
def sample_midi(sample) -> bytes:
    """The MIDI file of the first piece of the sample."""
    return sample[0][1][0]
