"""The order of indices: permutations, batches and held-out parts as pure functions of a seed.

Nothing here keeps state, so a resumed run asks for step k and gets it, and one worker or sixty-four
see the same global order.
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from midibert_ray.music.splitmix64 import mix

Indices = NDArray[np.int64]

_ROUNDS = 8


def keyed_hash(*key: int | str) -> int:
    """A 64-bit hash of a key, the same on every machine and in every process."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Permutation:
    """A pseudo-random bijection on [0, n) in O(1) memory.

    A Feistel network over pairs (left, right) with left < a, right < b and a * b just above n; a pair that
    stands for a number outside [0, n) goes through the network again until it falls inside (cycle walking).
    """

    def __init__(self, n: int, key: tuple[int | str, ...]) -> None:
        """The permutation of n numbers, at least one, that belongs to a key."""
        if n < 1:
            raise ValueError(f"a permutation needs at least one element, got n={n}")
        self.n = n
        left = math.isqrt(n - 1) + 1
        self._left = np.uint64(left)
        self._right = np.uint64(-(-n // left))
        self._keys = [np.uint64(keyed_hash("permutation", n, *key, turn)) for turn in range(_ROUNDS)]

    def __call__(self, index: Indices) -> Indices:
        """Where each index (int64, any shape, all in [0, n), else IndexError) is sent; int64 of the same shape."""
        index = np.asarray(index, dtype=np.int64)
        if index.size and (index.min() < 0 or index.max() >= self.n):
            raise IndexError(f"index outside [0, {self.n}): {index.min()}..{index.max()}")
        value = self._network(index.astype(np.uint64).ravel())
        outside = np.flatnonzero(value >= self.n)
        while outside.size:
            value[outside] = self._network(value[outside])
            outside = outside[value[outside] >= self.n]
        return value.astype(np.int64).reshape(index.shape)

    def _network(self, value: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = value // self._right, value % self._right
        for turn, key in enumerate(self._keys):
            if turn % 2:
                right = (right + mix(left ^ key) % self._right) % self._right
            else:
                left = (left + mix(right ^ key) % self._left) % self._left
        return left * self._right + right


@dataclass(frozen=True, kw_only=True)
class BatchOrder:
    """The global batches of every epoch over n segments, as a pure function of (seed, epoch, k)."""

    n: int
    """Number of segments, at least 1."""
    batch_size: int
    """Segments of a global batch, over all workers."""
    seed: int
    """Every epoch has its own permutation, drawn from (seed, epoch)."""
    drop_last: bool = True
    """True: every batch is full; what is left of an epoch is left out, others in each epoch, and where
    n < batch_size the one batch repeats segments. False: each segment once, and a shorter last batch."""

    def __post_init__(self) -> None:
        for name in ("n", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch, at least 1."""
        if self.drop_last:
            return max(1, self.n // self.batch_size)
        return -(-self.n // self.batch_size)

    def indices(self, epoch: int, k: int) -> Indices:
        """The segments of batch k of an epoch: int64[batch_size] (shorter at the end without drop_last)."""
        if epoch < 0 or not 0 <= k < self.batches_per_epoch:
            raise IndexError(f"no batch {k} in epoch {epoch}: an epoch has {self.batches_per_epoch} batches")
        place = np.arange(k * self.batch_size, (k + 1) * self.batch_size, dtype=np.int64)
        place = place % self.n if self.drop_last else place[place < self.n]
        return Permutation(self.n, (self.seed, epoch))(place)


def split_rows(n: int, *, seed: int, fraction: float = 0.15) -> tuple[Indices, Indices]:
    """Rows for training and rows held out, both ascending (int64).

    The rule of the authors' code: segments of all corpora are shuffled and the first 85 % train, so that one piece may
    stand on both sides. (The authors' shuffle has no seed; this one does.)
    """
    _check_fraction(fraction)
    shuffled = Permutation(n, ("rows", seed))(np.arange(n))
    train = int(n * (1 - fraction))
    return np.sort(shuffled[:train]), np.sort(shuffled[train:])


def holdout_piece(piece: str, *, corpus: str, seed: int, fraction: float = 0.15) -> bool:
    """Tell whether a piece is held out from pre-training where validation is by piece, about `fraction` of all pieces.

    It depends on the piece's own id alone: a corpus that grows moves no piece to the other side.
    """
    _check_fraction(fraction)
    return keyed_hash("holdout", seed, corpus, piece) < fraction * 2.0**64


def holdout(pieces: Iterable[tuple[str, str]], *, seed: int, fraction: float = 0.15) -> Callable[[str, str], bool]:
    """The rule that holds pieces, given as (corpus, piece), out of pre-training: `holdout_piece`.

    Where that would take none of them or all, as may happen to a handful, the one of the smallest hash is held out.
    """
    known: list[tuple[str, str]] = []
    sides = set()

    def by_piece(corpus: str, piece: str) -> bool:
        return holdout_piece(piece, corpus=corpus, seed=seed, fraction=fraction)

    for corpus, piece in pieces:
        known.append((corpus, piece))
        sides.add(by_piece(corpus, piece))
        if len(sides) == 2:
            return by_piece
    only = min(known, key=lambda name: keyed_hash("holdout", seed, *name), default=None)
    return lambda corpus, piece: (corpus, piece) == only


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is the held-out share and must lie in (0, 1), got {fraction}")
