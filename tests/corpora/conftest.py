"""The sample, as files."""

from tests.music.conftest import sample, sample_midi

__all__ = ["sample", "sample_midi"]
