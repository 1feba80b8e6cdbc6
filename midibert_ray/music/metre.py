"""Where bars begin: time signatures -> bars on the sixteenth grid.

A bar is as long as its time signature says. One that is longer than a whole note is cut at a beat, into as few bars of
at most sixteen sub-beats as will do, the longer ones first (5/4: three quarters and two), so that every position has a
token. An incomplete first bar is a pickup, and stands at the end of a bar of the metre that follows. A time signature
within a bar ends that bar.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

SUBBEATS_PER_BAR = 16
"""In 4/4, and the most that a bar can have: there are sixteen Position tokens."""

_WHOLE = 64
"""Sixty-fourths of a whole note, the unit of note values here; the shortest that a metre may count is one."""
_PER_SUBBEAT = 4
"""Sixty-fourths of a sub-beat."""
_UNITS = 16
"""Units of time of a tick: a sixty-fourth lasts as many of them as a quarter has ticks, so that all is in integers."""


@dataclass(frozen=True, kw_only=True)
class Metre:
    """Stretches of time in which all bars are cut alike; every array is int64 [s], one value a stretch."""

    unit: int
    """Units of a sixty-fourth: the ticks of a quarter."""
    start: NDArray[np.int64]
    """Units from tick 0; the first is below 0 where there is a pickup."""
    grid: NDArray[np.int64]
    """Sub-beats from the start of bar 0."""
    long: NDArray[np.int64]
    """Sixty-fourths of the longer pieces of a bar,"""
    longs: NDArray[np.int64]
    """how many of them come first in it,"""
    short: NDArray[np.int64]
    """and of the shorter ones,"""
    shorts: NDArray[np.int64]
    """which follow."""

    def onsets(self, ticks: NDArray[np.int64], *, down: bool = False) -> NDArray[np.int64]:
        """The nearest sub-beats of ticks, ties to the earlier: int64 [n], from the start of bar 0.

        Args:
            ticks: [n].
            down: take the last sub-beat that is not later instead.
        """
        time = ticks * _UNITS
        at = np.searchsorted(self.start, time, side="right") - 1
        length, passed = self._bar(at) * self.unit, time - self.start[at]
        bar, rest = passed // length, passed % length
        begin, place = self._piece(at, rest, self.long[at] * self.unit, self.short[at] * self.unit)
        sub_beat = _PER_SUBBEAT * self.unit
        within = place // sub_beat if down else -((sub_beat - 2 * place) // (2 * sub_beat))
        return self.grid[at] + bar * self._grid_bar(at) + begin + within

    def bars(self, onsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the bars of notes begin: int64 [n] sub-beats, given their onsets [n]."""
        at = np.searchsorted(self.grid, onsets, side="right") - 1
        length, passed = self._grid_bar(at), onsets - self.grid[at]
        bar, rest = passed // length, passed % length
        begin, _ = self._piece(at, rest, _sub_beats(self.long[at]), _sub_beats(self.short[at]))
        return self.grid[at] + bar * length + begin

    @cached_property
    def _whole(self) -> bool:
        """Whether no bar is cut."""
        return bool((self.longs == 1).all() and not self.shorts.any())

    def _bar(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.longs[at] * self.long[at] + self.shorts[at] * self.short[at]

    def _grid_bar(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.longs[at] * _sub_beats(self.long[at]) + self.shorts[at] * _sub_beats(self.short[at])

    def _piece(
        self, at: NDArray[np.int64], rest: NDArray[np.int64], long: NDArray[np.int64], short: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """In which piece of its bar a place lies: the sub-beat at which that begins, and the place from there on."""
        if self._whole:
            return np.zeros_like(rest), rest
        longs = self.longs[at]
        in_longs = rest < longs * long
        which = np.where(in_longs, rest // long, (rest - longs * long) // np.maximum(short, 1))
        place = rest - np.where(in_longs, which * long, longs * long + which * short)
        longs_before: NDArray[np.int64] = np.where(in_longs, which, longs)
        shorts_before: NDArray[np.int64] = np.where(in_longs, 0, which)
        return longs_before * _sub_beats(self.long[at]) + shorts_before * _sub_beats(self.short[at]), place


def four_four(ticks_per_beat: int) -> Metre:
    """Bars of a whole note from tick 0."""
    return metre(np.zeros((0, 3), dtype=np.int64), ticks_per_beat)


def metre(signatures: NDArray[np.int64], ticks_per_beat: int) -> Metre:
    """The bars of time signatures.

    Args:
        signatures: [m, 3] tick (ascending), numerator, denominator (a power of two up to 64); 4/4 before the first.
        ticks_per_beat: ticks of a quarter.
    """
    rows = np.concatenate([np.array([[0, 4, 4]]), signatures])
    rows = rows[np.append(np.diff(rows[:, 0]) > 0, True)]  # of several at one tick the last
    start = rows[:, 0] * _UNITS
    long, longs, short, shorts = np.array([_pieces(n, d) for n, d in rows[:, 1:].tolist()], dtype=np.int64).T
    bar = (longs * long + shorts * short) * ticks_per_beat
    if len(start) > 1 and start[1] <= bar[0] and start[1] < bar[1]:
        # A pickup: the first stretch is the end of a bar of the second.
        start, long, longs, short, shorts = (column[1:] for column in (start, long, longs, short, shorts))
        bar, start = bar[1:], start.copy()
        start[0] -= bar[0]
    open_end = Metre(
        unit=ticks_per_beat,
        start=start,
        grid=np.zeros(len(start), dtype=np.int64),
        long=long,
        longs=longs,
        short=short,
        shorts=shorts,
    )
    return _laid_out(open_end)


def _laid_out(made: Metre) -> Metre:
    """The stretches one behind the other on the grid; a bar that is broken off has as many sub-beats as it begins."""
    grid = made.grid.copy()
    at = np.arange(len(grid) - 1)
    length, passed = made._bar(at) * made.unit, np.diff(made.start)
    bars, rest = passed // length, passed % length
    begin, place = made._piece(at, rest, made.long[at] * made.unit, made.short[at] * made.unit)
    grid[1:] = np.cumsum(bars * made._grid_bar(at) + begin - -place // (_PER_SUBBEAT * made.unit))
    return Metre(
        unit=made.unit,
        start=made.start,
        grid=grid,
        long=made.long,
        longs=made.longs,
        short=made.short,
        shorts=made.shorts,
    )


def _pieces(numerator: int, denominator: int) -> tuple[int, int, int, int]:
    """How a bar is cut: sixty-fourths of its longer pieces, how many, and the same of its shorter ones.

    A beat is the denominator's note value, three of them in compound metres (6/8, 9/8, 12/16 ...).
    """
    beat = _WHOLE // denominator
    if numerator * beat <= _WHOLE:
        return numerator * beat, 1, 1, 0
    if denominator >= 8 and numerator % 3 == 0:
        beat, numerator = 3 * beat, numerator // 3
    pieces = -(-numerator // (_WHOLE // beat))
    beats, longs = divmod(numerator, pieces)
    if longs == 0:
        return beats * beat, pieces, 1, 0
    return (beats + 1) * beat, longs, beats * beat, pieces - longs


def _sub_beats(sixty_fourths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sub-beats of a piece of a bar; the last may be cut off (7/32)."""
    return -(-sixty_fourths // _PER_SUBBEAT)


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
