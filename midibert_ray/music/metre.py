"""Beginnings of bars: time signatures -> bars on the sixteenth grid.

A bar is as long as its time signature says. A longer one than a whole note is cut at a beat, into as few bars of
at most sixteen sub-beats as will do, the longer ones first (5/4: three quarters and two), so that every position has a
token. An incomplete first bar is a pickup, and stands at the end of a bar of the metre that follows. A time signature
within a bar ends that bar.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from midibert_ray.music.smf import MidiError

SUBBEATS_PER_BAR = 16
"""In 4/4, and the most that a bar can have: there are sixteen Position tokens."""
MAX_BARS = 1 << 20
"""Most bars of a piece, and time signatures; a day has no more than a twelfth of it in 4/4 at 240 bpm."""

_WHOLE = 64
"""Sixty-fourths of a whole note, the unit of note values here; the shortest that a metre may count is one."""
_UNITS = 16
"""Units of time of a tick: a sixty-fourth lasts as many of them as a quarter has ticks, so that all is in integers."""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """The bars of a piece; arrays have one value a bar."""

    sub_beat: int
    """Units of time."""
    start: NDArray[np.int64]
    """Units from tick 0, ascending; the first is below 0 where there is a pickup."""
    grid: NDArray[np.int64]
    """Sub-beats from the start of bar 0; a bar that is broken off has as many as it begins."""

    def onsets(self, ticks: NDArray[np.int64], *, down: bool = False) -> NDArray[np.int64]:
        """The nearest sub-beats of ticks [n], ties to the earlier, or with ``down`` the last that is not later."""
        time = ticks * _UNITS
        at = np.searchsorted(self.start, time, side="right") - 1
        place = time - self.start[at]
        step = self.sub_beat
        return self.grid[at] + (place // step if down else -((step - 2 * place) // (2 * step)))

    def bars(self, onsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the bars of notes begin: int64 [n] sub-beats, given their onsets [n]."""
        return self.grid[self.numbers(onsets)]

    def numbers(self, onsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices of the bars of notes: int64 [n], given their onsets [n] in sub-beats."""
        return np.searchsorted(self.grid, onsets, side="right") - 1


def lay_bars(signatures: NDArray[np.int64], ticks_per_beat: int, last: int) -> Bars:
    """The bars of time signatures.

    Args:
        signatures: [m, 3] tick (ascending), numerator, denominator (a power of two up to 64); 4/4 before the first.
        ticks_per_beat: ticks of a quarter.
        last: the tick of the last note.

    Raises:
        MidiError: more than `MAX_BARS` bars.
    """
    rows = np.concatenate([np.array([[0, 4, 4]]), signatures])
    rows = rows[np.append(np.diff(rows[:, 0]) > 0, True)][: MAX_BARS + 1]  # of several at one tick the last
    cuts = [_pieces(n, d) for n, d in rows[:, 1:].tolist()]
    lengths = [sum(cut) * ticks_per_beat for cut in cuts]
    starts = (rows[:, 0] * _UNITS).tolist()
    if len(starts) > 1 and starts[1] <= lengths[0] and starts[1] < lengths[1]:
        # A pickup: the first stretch is the end of a bar of the second.
        starts, cuts, lengths = [starts[1] - lengths[1], *starts[2:]], cuts[1:], lengths[1:]
    sub_beat = _WHOLE // SUBBEATS_PER_BAR * ticks_per_beat
    end = last * _UNITS + sub_beat  # where rounding may move the last note
    begins, count = [], 0
    for start, stop, cut, length in zip(starts, [*starts[1:], end + 1], cuts, lengths, strict=True):
        stop = min(stop, end + 1)
        bars = max(-(-(stop - start) // length), 0)
        count += bars * len(cut)
        if count > MAX_BARS:
            raise MidiError(f"more than {MAX_BARS:,} bars: most likely corrupt")
        laid = np.arange(start, stop, length)
        if len(cut) > 1:
            laid = np.add.outer(laid, np.cumsum([0, *cut[:-1]]) * ticks_per_beat).ravel()
            laid = laid[laid < stop]
        begins.append(laid)
    start = np.concatenate(begins)
    grid = np.cumsum(-(-np.diff(start, prepend=start[0]) // sub_beat))
    return Bars(sub_beat=sub_beat, start=start, grid=grid)


def _pieces(numerator: int, denominator: int) -> list[int]:
    """The pieces of a bar in sixty-fourths, the longer ones first.

    A beat is the denominator's note value, three of them in compound metres (6/8, 9/8, 12/16 ...).
    """
    beat = _WHOLE // denominator
    if numerator * beat <= _WHOLE:
        return [numerator * beat]
    if denominator >= 8 and numerator % 3 == 0:
        beat, numerator = 3 * beat, numerator // 3
    pieces = -(-numerator // (_WHOLE // beat))
    beats, longer = divmod(numerator, pieces)
    return [(beats + 1) * beat] * longer + [beats * beat] * (pieces - longer)


def signatures(bars: NDArray[np.int64], onsets: NDArray[np.int64], ticks_per_subbeat: int) -> NDArray[np.int64]:
    """Time signatures that tell where bars begin, so that `metre` finds the same bars in a file with them.

    Args:
        bars: [n] sub-beats at which the bars of notes begin, never falling.
        onsets: [n] of the notes.
        ticks_per_subbeat: of the file.

    Returns:
        int64 [m, 3] tick, numerator, denominator; none where all bars are those of 4/4 from the start.
    """
    begins, first = np.unique(bars, return_index=True)
    if not (begins % SUBBEATS_PER_BAR).any():
        return np.zeros((0, 3), dtype=np.int64)
    last = np.append(onsets[first[1:] - 1], onsets[-1]) - begins
    gaps = np.append(np.diff(begins), SUBBEATS_PER_BAR)
    rows: list[tuple[int, int]] = []
    length = 0
    for begin, gap, least in zip(begins.tolist(), gaps.tolist(), (last + 1).tolist(), strict=True):
        if not rows and begin:
            # Bars of one sub-beat before the first note: several, so that they are no pickup.
            length = gap if gap <= SUBBEATS_PER_BAR and begin % gap == 0 and gap >= least else 1
            rows.append((0, length))
        on_a_line = bool(rows) and (begin - rows[-1][0]) % length == 0
        if not (on_a_line and least <= length and gap % length == 0):
            length = min(gap, SUBBEATS_PER_BAR)
            rows.append((begin, length))
    if len(rows) > 1 and rows[1][0] <= rows[0][1] and rows[1][0] < rows[1][1]:
        # One bar, and a longer one behind it, would be a pickup: shorter bars are none.
        rows[0] = (0, int(last[0]) + 1 if begins[0] == 0 else 1)
    return np.array([(begin * ticks_per_subbeat, *_as_signature(length)) for begin, length in rows], dtype=np.int64)


def _as_signature(sub_beats: int) -> tuple[int, int]:
    """Numerator and denominator of a bar: in quarters where sub-beats come out even, else in eighths or sixteenths."""
    step = int(np.gcd(sub_beats, 4))
    return sub_beats // step, SUBBEATS_PER_BAR // step
