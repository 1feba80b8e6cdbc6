"""Pieces of token stores, cut into segments: what training reads.

`Segments` gathers any of them by number; which segments form a batch is said by `order.BatchOrder`.
"""

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from midibert_ray.data.store import TokenStore
from midibert_ray.music import tokens as music_tokens
from midibert_ray.music import vocabulary

Representation = Literal["cp", "remi"]
Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SegmentBatch:
    """Some segments side by side, padded on the right. k segments of `length` time steps."""

    tokens: NDArray[np.uint8]
    """[k, length, 4] CP ids, or [k, length] REMI ids; PAD rows beyond a segment's end."""
    length: Indices
    """int64[k], time steps that are not padding."""
    piece: Indices
    """int64[k], the piece of each segment: `Segments.piece_id(piece)`, `Segments.label(piece)`."""
    start: Indices
    """int64[k], time step of the piece with which the segment starts."""
    note: Indices
    """int64[k, length], the note of its store; -1 for padding and, in REMI, all but Pitch tokens."""
    velocity: NDArray[np.uint8]
    """[k, length]; in REMI it stands on the Pitch tokens. 0 elsewhere."""
    part: NDArray[np.uint8]
    """[k, length]; in REMI it stands on the Pitch tokens. 0 elsewhere."""


class Segments:
    """The segments of some pieces of some stores, by number: a piece's segments follow one another."""

    def __init__(
        self,
        stores: Sequence[TokenStore],
        *,
        splits: AbstractSet[str] | None = None,
        length: int = 512,
        representation: Representation = "cp",
        drop_short_last: bool = False,
        keep: Callable[[str, str], bool] | None = None,
        labelled: str = "",
    ) -> None:
        """Lay the segments out; the tokens stay on disk, a few numbers a piece are held in memory.

        Args:
            stores: their pieces follow one another in this order.
            splits: only pieces of these, or all.
            length: time steps of a segment.
            representation: `cp`, or `remi`, which is expanded from CP when a segment is gathered.
            drop_short_last: leave out a last segment shorter than half of `length` (the authors' rule
                in the composer task; a piece shorter than that disappears).
            keep: (corpus, piece) -> whether the piece takes part; see `order.holdout_piece`.
            labelled: only pieces that have a label in this column; empty: all.

        Raises:
            ValueError: if no segment is left.
        """
        if representation not in ("cp", "remi"):
            raise ValueError(f"representation must be 'cp' or 'remi', got {representation!r}")
        self.stores, self.length, self.representation = tuple(stores), length, representation
        chosen = [store.select(splits, labelled) for store in self.stores]
        self._store = np.repeat(np.arange(len(chosen)), [len(rows) for rows in chosen])
        self._row = np.concatenate([np.zeros(0, np.int64), *chosen])
        if keep is not None:
            kept = np.flatnonzero([keep(self.corpus(piece), self.piece_id(piece)) for piece in range(self.pieces)])
            self._store, self._row = self._store[kept], self._row[kept]
        self._steps = self._count_steps()
        full, rest = np.divmod(self._steps, length)
        segments = full + (rest > 0 if not drop_short_last else rest >= length / 2)
        self._first = np.concatenate([[0], np.cumsum(segments)])
        if not len(self):
            expected = "any split" if splits is None else f"splits {sorted(splits)}"
            known = {store.corpus: sorted(store.splits) for store in self.stores}
            raise ValueError(
                f"no segment of {length} time steps is left of {expected}; there are {known}; give more music, or "
                "shorter segments (tokens.segment=...)"
            )

    def __len__(self) -> int:
        """Number of segments."""
        return int(self._first[-1])

    @property
    def pieces(self) -> int:
        """Number of pieces."""
        return len(self._row)

    def corpus(self, piece: int) -> str:
        """The corpus of a piece; pieces are numbered as in `SegmentBatch.piece`."""
        return self.stores[self._store[piece]].corpus

    def piece_id(self, piece: int) -> str:
        """The id of a piece within its corpus."""
        return self.stores[self._store[piece]].piece_id(int(self._row[piece]))

    def name(self, piece: int) -> str:
        """The id of a piece, behind its corpus where there are several."""
        return f"{self.corpus(piece)}/{self.piece_id(piece)}" if len(self.stores) > 1 else self.piece_id(piece)

    def source(self, piece: int) -> tuple[TokenStore, slice]:
        """The store of a piece, and its notes there."""
        store, row = self.stores[self._store[piece]], self._row[piece]
        return store, slice(*store.offsets[row : row + 2].tolist())

    def take(self, column: str, piece: Indices, note: Indices) -> NDArray[Any]:
        """The values of k notes, by piece and `SegmentBatch.note`, in a column of their stores, such as `onset`."""
        columns = [getattr(store, column) for store in self.stores]
        found = np.empty((len(note), *columns[0].shape[1:]), columns[0].dtype)
        for number, values in enumerate(columns):
            mine = self._store[piece] == number
            found[mine] = values[note[mine]]
        return found

    def label(self, piece: int, column: str = "label") -> str | None:
        """The label of a piece; see `TokenStore.label`."""
        return self.stores[self._store[piece]].label(int(self._row[piece]), column)

    def cluster(self, piece: int) -> str:
        """The group of a piece; see `TokenStore.cluster`."""
        return self.stores[self._store[piece]].cluster(int(self._row[piece]))

    @property
    def clusters(self) -> dict[str, str]:
        """Name of a piece -> the group or first near-duplicate that it belongs to, where it is not alone."""
        alone = {piece: self.cluster(piece) for piece in range(self.pieces)}
        several = len(self.stores) > 1
        return {
            self.name(piece): f"{self.corpus(piece)}/{cluster}" if several else cluster
            for piece, cluster in alone.items()
            if cluster != self.piece_id(piece)
        }

    def locate(self, indices: Indices) -> tuple[Indices, Indices]:
        """Piece and first time step (int64[k] each) of some segments (int64[k]).

        Raises:
            IndexError: if an index is not that of a segment.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"segments are 0..{len(self) - 1}, got {indices.min()}..{indices.max()}")
        piece = np.searchsorted(self._first, indices, side="right") - 1
        return piece, (indices - self._first[piece]) * self.length

    def lengths(self, indices: Indices) -> Indices:
        """Time steps that are not padding (int64[k]) of some segments, without reading them."""
        piece, start = self.locate(indices)
        return np.minimum(self.length, self._steps[piece] - start)

    def gather(self, indices: Indices) -> SegmentBatch:
        """Read some segments (int64[k]), in the order given; an index may come more than once."""
        piece, start = self.locate(indices)
        length = np.minimum(self.length, self._steps[piece] - start)
        shape = (len(piece), self.length)
        width, pad = ((4,), vocabulary.CP_PAD) if self.representation == "cp" else ((), (vocabulary.REMI_PAD,))
        tokens, note = np.empty((*shape, *width), np.uint8), np.empty(shape, np.int64)
        velocity, part = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
        steps = np.arange(self.length)
        for store, rows, first, ids, notes in self._sources(piece):
            where = np.minimum(first[:, None] + start[rows, None] + steps, len(ids) - 1)
            tokens[rows] = np.take(ids, where, axis=0)
            note[rows] = index = where if notes is None else notes[where]
            velocity[rows], part[rows] = np.take(store.velocity, index), np.take(store.part, index)
        padding = steps >= length[:, None]
        tokens[padding], note[padding] = np.array(pad, np.uint8), -1
        velocity[note < 0], part[note < 0] = 0, 0
        return SegmentBatch(
            tokens=tokens, length=length, piece=piece, start=start, note=note, velocity=velocity, part=part
        )

    def _sources(
        self, piece: Indices
    ) -> Iterator[tuple[TokenStore, Indices, Indices, NDArray[np.uint8], Indices | None]]:
        """Where the segments lie: (store, rows of the batch, start of their piece, ids, note of each id).

        In CP the ids are the notes themselves, in their own order.
        """
        groups = self._store[piece] if self.representation == "cp" else piece
        for group in np.unique(groups):
            rows = np.flatnonzero(groups == group)
            store = self.stores[self._store[piece[rows[0]]]]
            start = store.offsets[self._row[piece[rows]]]
            if self.representation == "cp":
                yield store, rows, start, store.tokens, None
            else:
                remi = music_tokens.remi_from_cp(store.tokens[start[0] : store.offsets[self._row[group] + 1]])
                notes = np.full(len(remi.ids), -1, np.int64)
                notes[remi.pitch_at] = start[0] + np.arange(len(remi.pitch_at))
                yield store, rows, np.zeros_like(start), remi.ids, notes

    def _count_steps(self) -> Indices:
        """Time steps of every piece: its notes, or its REMI tokens (three a note and one a bar)."""
        steps = np.zeros(len(self._row), np.int64)
        for number, store in enumerate(self.stores):
            mine = self._store == number
            rows = self._row[mine]
            notes = store.offsets[rows + 1] - store.offsets[rows]
            steps[mine] = notes if self.representation == "cp" else 3 * notes + store.bars[rows]
        return steps
