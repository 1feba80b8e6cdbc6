"""Near-duplicates: pieces with the same notes after transposition and trimming.

A *shingle* is 16 notes that follow one another (by onset, then pitch): their intervals and the sub-beats between
their onsets, which neither a transposition nor another beginning of the piece changes. Of a piece's shingles a
*sketch* is kept: the 64 whose hashes are smallest (bottom-k MinHash; Broder, "On the resemblance and containment of
documents", 1997). Two pieces are near-duplicates if at least half of the 64 smallest hashes of both together are in
both, which estimates that they share half of their shingles. Durations and velocities do not count.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from midibert_ray.music.splitmix64 import mix

SHINGLE = 16
"""Notes of a shingle."""
SKETCH = 64
"""Hashes of a sketch."""
ALIKE = 0.5
"""Share of common hashes from which on two pieces are near-duplicates."""
_NEIGHBOURS = 16  # of the pieces that share a hash, those so near are compared: a phrase may be in thousands
_SHARED = 8  # hashes that two pieces share at least, before they are compared as a whole
_BASE = np.uint64(0x9E3779B97F4A7C15)

Sketch = NDArray[np.uint64]


def sketch(onset: NDArray[np.int32], pitch: NDArray[np.uint8]) -> Sketch:
    """The sketch of a piece, uint64, ascending; empty for fewer than `SHINGLE` notes.

    Args:
        onset: int32 [n], sub-beats.
        pitch: uint8 [n].
    """
    if len(onset) < SHINGLE:
        return np.zeros(0, np.uint64)
    order = np.lexsort((pitch, onset))
    steps = np.diff(onset[order].astype(np.int64)) * 256 + np.diff(pitch[order].astype(np.int64)) + 128
    values = mix(steps.astype(np.uint64))
    width = SHINGLE - 1
    shingles = np.zeros(len(values) - width + 1, np.uint64)
    for place in range(width):
        shingles = shingles * _BASE + values[place : place + len(shingles)]
    return np.unique(mix(shingles))[:SKETCH]


def resemblance(first: Sketch, second: Sketch) -> float:
    """Estimate of the share of two pieces' shingles that is common to both."""
    union = np.union1d(first, second)[:SKETCH]
    both = np.intersect1d(np.intersect1d(first, second, assume_unique=True), union, assume_unique=True)
    return len(both) / max(len(union), 1)


def near_duplicates(sketches: Sequence[Sketch]) -> NDArray[np.int64]:
    """The first piece of each piece's cluster of near-duplicates: int64 [pieces]; a piece alone is its own."""
    parent = np.arange(len(sketches))

    def root(piece: int) -> int:
        while parent[piece] != piece:
            parent[piece] = piece = int(parent[parent[piece]])
        return piece

    for low, high in _candidates(sketches):
        first, second = sorted((root(low), root(high)))
        if first != second and resemblance(sketches[low], sketches[high]) >= ALIKE:
            parent[second] = first
    return np.array([root(piece) for piece in range(len(sketches))], dtype=np.int64)


def _candidates(sketches: Sequence[Sketch]) -> list[list[int]]:
    """Pairs of pieces that share hashes enough to be worth a comparison."""
    sizes = [len(each) for each in sketches]
    values = np.concatenate([np.zeros(0, np.uint64), *sketches])
    order = np.argsort(values, kind="stable")
    values, pieces = values[order], np.repeat(np.arange(len(sketches)), sizes)[order]
    same = (np.flatnonzero(values[step:] == values[:-step]) for step in range(1, _NEIGHBOURS + 1))
    found = [pieces[rows] * len(sketches) + pieces[rows + step] for step, rows in enumerate(same, start=1)]
    pairs, shared = np.unique(np.concatenate([np.zeros(0, np.int64), *found]), return_counts=True)
    chosen = pairs[shared >= _SHARED]
    return np.stack(np.divmod(chosen, max(len(sketches), 1)), axis=1).tolist() if len(chosen) else []
