"""Notes in ticks -> notes on the sixteenth grid, and the alignment of POP909 to its annotated beats.

Where bars begin is `midibert_ray.music.metre`'s to say. Both protocols round to the nearest grid point, ties to the
earlier.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from midibert_ray.music.events import ZERO_DURATION
from midibert_ray.music.metre import SUBBEATS_PER_BAR, lay_bars
from midibert_ray.music.midi import MidiError, Notes
from midibert_ray.music.pairing import close_notes
from midibert_ray.music.protocol import Protocol
from midibert_ray.music.smf import NoNotesError
from midibert_ray.music.splitmix64 import STEP, mix
from midibert_ray.music.vocabulary import DURATIONS, PITCH_HIGH, PITCH_LOW

TICKS_PER_BEAT = 480
"""The authors' code assumes it, and aligned notes have it."""

SUBBEATS_PER_BEAT = 4

_MOST = 1 << 31
"""Ticks of aligned notes and sub-beats of onsets, which are stored as int32, stay below."""

OUT_OF_RANGE = "pitch out of range"
DRUM = "drum"
BEFORE_FIRST_BEAT = "before first beat"
AFTER_LAST_BEAT = "after last beat"
"""Reasons for which a note is dropped, as they stand in manifests."""

DRUM_CHANNEL_PIANO = "notes of the drum channel read as piano"
OFF_GRID = "pieces off the grid"
"""Remarks, as they stand in manifests."""

OFF_GRID_SHARE = 0.25
"""A piece is off the grid from this share of onsets on that lie further than a thirty-second triplet (a twelfth of a
beat) from the nearest sixteenth. By chance it is a third of them; transcriptions in no tempo have 0.21 to 0.48
(EMOPIA, Pianist8), pieces that were aligned to beats below 0.2 (Pop1K7) or none, and triplets count as near."""
_FEWEST_ONSETS = 32
"""Below it a share says nothing."""

_KIT = frozenset((35, 36, 37, 38, 39, 40, 42, 44, 46, 49, 51, 53, 55, 57, 59))
"""Pitches of bass drum, snare, hi-hat and cymbals in General MIDI; half of what a drum kit plays, at the least."""
_MPE_CHANNELS = 3
"""Channels of one instrument beside channel 10 that make it one of many; two may be the hands of a pianist."""
_DRUM_WORDS = re.compile(r"drum|\bperc(\b|u)|\bkits?\b|\bbatter|schlagz|cymbal|snare|trommel", re.IGNORECASE)

PARTS = ("MELODY", "BRIDGE", "PIANO")
"""Track names of POP909; the index + 1 is the part: 1 melody, 2 bridge, 3 accompaniment."""

EARLY_SECONDS, EARLY_MIN_SECONDS = 0.1, 0.2
"""A note this little before the first beat, and longer than that, is taken to begin on it."""


@dataclass(frozen=True, kw_only=True)
class GridNotes:
    """Notes on the grid, in token order."""

    onset: NDArray[np.int32]
    """[n] sub-beats from the start of bar 0, never falling."""
    bar: NDArray[np.int32]
    """[n] sub-beats at which the note's bar begins."""
    duration: NDArray[np.uint8]
    """[n] index 0..63: d stands for d + 1 thirty-seconds."""
    pitch: NDArray[np.uint8]
    """[n] MIDI 22..107."""
    velocity: NDArray[np.uint8]
    """[n] MIDI 1..127."""
    part: NDArray[np.uint8]
    """[n] 1 melody, 2 bridge, 3 accompaniment, 0 unknown."""
    dropped: Mapping[str, int]
    """Notes left out, by reason."""
    source: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """[n] index of the note among those that `quantize` was given."""
    bar_number: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    """[n] number of the note's bar, from 0, empty bars counted."""
    remarks: Mapping[str, int] = field(default_factory=dict)
    """Facts that a reader should know of the piece, counted; see `OFF_GRID` and `DRUM_CHANNEL_PIANO`."""

    def __len__(self) -> int:
        return len(self.onset)


def read_beats(text: bytes) -> NDArray[np.float64]:
    """A beat annotation of POP909: float64[beats, columns], of which the first is the time in seconds, ascending.

    Raises:
        MidiError: not a table of numbers, fewer than two beats, or times that do not ascend.
    """
    columns = len(text.strip().split(b"\n", 1)[0].split())
    try:
        table = np.fromiter(map(float, text.split()), dtype=np.float64).reshape(-1, max(columns, 1))
    except ValueError as error:
        raise MidiError(
            f"the beat annotation is not a table of numbers in {columns} columns, as its first line is"
        ) from error
    if len(table) < 2 or columns < 2:
        raise MidiError(f"the beat annotation has {len(table)} lines, {columns} columns; at least 2 of each are needed")
    if not np.isfinite(table).all() or (np.diff(table[:, 0]) <= 0).any():
        raise MidiError("the beat annotation's times (column 1) do not ascend")
    return table


def align_to_beats(notes: Notes, beats: NDArray[np.float64]) -> tuple[Notes, dict[str, int]]:
    """Move notes from performed time to beat time, on the sixteenth grid.

    Reference behaviour: a note belongs to the beat that it starts in, and that beat's length stretches its
    start and its duration to sixteenths. The result is what one gets when the aligned notes are written to a
    MIDI file and read again: overlapping notes of one track and pitch end at the first of their ends.

    Args:
        notes: as read from the file.
        beats: [beats, >= 2] seconds and number of the beat in its bar, as `read_beats` gives them.

    Returns:
        Notes at 480 ticks per beat, all times multiples of 120 ticks, bar lines at multiples of 1,920; and
        the number of notes dropped, by reason.

    Raises:
        MidiError: no downbeat among the first four beats, or no note left.
    """
    times = beats[:, 0]
    start, end = _performed_seconds(notes, np.stack([notes.start, notes.end]))
    early = start < times[0]
    rescued = early & (start >= times[0] - EARLY_SECONDS) & (end - start > EARLY_MIN_SECONDS)
    start = np.where(rescued, times[0], start)
    lengths = np.diff(times, append=2 * times[-1] - times[-2])
    beat = np.maximum(np.searchsorted(times, start, side="left") - 1, 0)
    late = start > times[-1] + lengths[-1]
    length = lengths[beat]
    inside = np.rint((start - times[beat]) / length * SUBBEATS_PER_BEAT)
    duration = np.minimum(np.rint((end - start) / length * SUBBEATS_PER_BEAT), _MOST).astype(np.int64)
    onset = (beat + _upbeats(beats)) * SUBBEATS_PER_BEAT + inside.astype(np.int64)
    dropped = {BEFORE_FIRST_BEAT: early & ~rescued, AFTER_LAST_BEAT: late}
    outside = dropped[BEFORE_FIRST_BEAT] | late
    dropped[ZERO_DURATION] = ~outside & (duration <= 0)
    keep = ~outside & (duration > 0)
    counts = _counts(dropped)
    if not keep.any():
        raise NoNotesError(counts, " within the annotated beats")
    return _regrid(notes, keep, onset, duration), counts


def _counts(dropped: Mapping[str, NDArray[np.bool_]]) -> dict[str, int]:
    return {reason: int(count) for reason, where in dropped.items() if (count := np.count_nonzero(where))}


def _performed_seconds(notes: Notes, ticks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Seconds of ``ticks`` (any shape), float for float as the authors' alignment computes them.

    POP909's tempi are round and its beats are annotated in hundredths of a second, so that notes halfway
    between two sixteenths are common, and the last bit of the time decides where they go.
    """
    microseconds = np.rint(notes.seconds_per_tick * notes.ticks_per_beat * 1e6)
    per_beat = 60.0 / (6e7 / microseconds)
    steps = per_beat[:-1] * np.diff(notes.tempo_ticks) / notes.ticks_per_beat
    passed = np.concatenate([[0.0], np.cumsum(steps)])
    # A tick where the tempo changes is told by the tempo before it.
    at = np.maximum(np.searchsorted(notes.tempo_ticks, ticks, side="left") - 1, 0)
    return passed[at] + per_beat[at] * (ticks - notes.tempo_ticks[at]) / notes.ticks_per_beat


def _upbeats(beats: NDArray[np.float64]) -> int:
    """Beats of bar 0 that pass before the first annotated one."""
    downbeats = np.flatnonzero(beats[:4, 1] == 1)
    if len(downbeats) == 0:
        raise MidiError("no downbeat (1 in column 2) among the first four annotated beats")
    return int(4 - downbeats[0]) % 4


def _regrid(notes: Notes, keep: NDArray[np.bool_], onset: NDArray[np.int64], duration: NDArray[np.int64]) -> Notes:
    """The kept notes at these onsets and durations in sub-beats, by (track, start, pitch, velocity)."""
    tick = TICKS_PER_BEAT // SUBBEATS_PER_BEAT
    order = np.flatnonzero(keep)
    place = (notes.track[order].astype(np.int64) * 2**32 + onset[order]) * 128 + notes.pitch[order]
    order = order[np.argsort(place * 128 + notes.velocity[order], kind="stable")]
    track, pitch = notes.track[order], notes.pitch[order]
    start = onset[order] * tick
    end = start + duration[order] * tick
    if end.max() >= _MOST:
        raise MidiError(f"an aligned note ends at tick {end.max():,}, later than {_MOST:,}: check the beat annotation")
    return replace(
        notes,
        start=start,
        end=close_notes(track.astype(np.int64) * 128 + pitch, start, end),
        pitch=pitch,
        velocity=notes.velocity[order],
        track=track,
        ticks_per_beat=TICKS_PER_BEAT,
        tempo_ticks=np.zeros(1, dtype=np.int64),
        seconds_per_tick=np.full(1, 60 / (120 * TICKS_PER_BEAT)),
        metre=np.zeros((0, 3), dtype=np.int64),
    )


def quantize(notes: Notes, protocol: Protocol, *, merged: bool = False, parts: Sequence[str] = ()) -> GridNotes:
    """Put notes on the sixteenth grid, in token order: `Notes` -> `GridNotes`.

    Pitches outside 22..107 have no token; such notes are dropped and counted (the authors' code stops with a
    KeyError). Onsets go to the nearest sub-beat, durations to the nearest thirty-second from 1 to 64, ties to the
    earlier and the shorter; a moved onset does not change the duration. The rest is the protocol's to
    say; the order of notes changes nothing else.

    Args:
        notes: as read from the file.
        protocol: its fields of `tokens` are used. Notes of one onset come track by track, each by pitch, or
            (`order="pitch"`) by pitch and duration, so that the order tells nothing about tracks, parts or velocities.
        merged: under `order="corpus"` all tracks come together by pitch, where one and the same pitch still comes
            track by track (the published ASAP arrays).
        parts: names of tracks; a note's `part` is the place (from 1) of its track's name, or of the first word of it,
            or 0; notes that have labels of their own have these.

    Raises:
        MidiError: no note is left.
    """
    used, dropped, remarks = _usable(notes, protocol)
    if dropped:
        notes = notes.take(used)
    onset, bar, number, duration = _grid_times(notes, protocol)
    part = _parts(notes, parts)
    if protocol.order == "pitch":
        sort = _by_pitch(notes, onset, duration, part)
    else:
        # Notes come by (track, start, pitch), and the sort is stable.
        start = notes.start if protocol.one_onset == "tick" else onset
        by_track = protocol.order == "track" or not merged
        sort = np.lexsort((notes.pitch, notes.track, start) if by_track else (notes.pitch, start))
    return GridNotes(
        onset=onset[sort].astype(np.int32),
        bar=bar[sort].astype(np.int32),
        duration=duration[sort].astype(np.uint8),
        pitch=notes.pitch[sort],
        velocity=notes.velocity[sort],
        part=part[sort],
        dropped=dropped,
        source=used[sort],
        bar_number=number[sort].astype(np.int32),
        remarks=remarks | ({OFF_GRID: 1} if _is_off_grid(notes) else {}),
    )


def _is_off_grid(notes: Notes) -> bool:
    """Tell whether a piece has no beats that its onsets keep to: a performance in a file of one tempo, say."""
    start = np.sort(notes.start)
    onsets = start[np.append(True, start[1:] != start[:-1])]
    # A distance times 4. Ticks are whole, so that a triplet may lie one further.
    phase = onsets * SUBBEATS_PER_BEAT % notes.ticks_per_beat
    distance = np.minimum(phase, notes.ticks_per_beat - phase)
    off = int(np.count_nonzero(3 * distance > notes.ticks_per_beat + 3 * SUBBEATS_PER_BEAT))
    return len(onsets) >= _FEWEST_ONSETS and off >= OFF_GRID_SHARE * len(onsets)


def _grid_times(notes: Notes, protocol: Protocol) -> tuple[NDArray[np.int64], ...]:
    """Onsets of notes and of their bars in sub-beats, numbers of these bars, and duration indices, [n] each."""
    beat = TICKS_PER_BEAT if protocol.ticks_per_beat == "480" else notes.ticks_per_beat
    last = int(notes.start.max())
    bars = None
    if protocol.bars != "4/4" and (notes.metre != (0, 4, 4)).any():
        bars = lay_bars(notes.metre, beat, last)
        onset, latest = bars.onsets(notes.start), int(bars.onsets(np.array(last - 1), down=True))
    else:  # bars of 4/4 need not be laid
        onset, latest = _nearest(notes.start, beat, SUBBEATS_PER_BEAT), SUBBEATS_PER_BEAT * (last - 1) // beat
    if protocol.shifts_last_onset:
        onset = np.minimum(onset, max(latest, 0))
    if onset.max() >= _MOST:
        raise MidiError(f"a note {onset.max():,} sixteenths from the start: most likely corrupt")
    number = bars.numbers(onset) if bars else onset // SUBBEATS_PER_BAR
    bar = bars.grid[number] if bars else number * SUBBEATS_PER_BAR
    duration = _nearest(notes.end - notes.start, beat, 2 * SUBBEATS_PER_BEAT) - 1
    return onset, bar, number, np.clip(duration, 0, DURATIONS - 1)


def _usable(notes: Notes, protocol: Protocol) -> tuple[NDArray[np.int64], dict[str, int], dict[str, int]]:
    """Indices of the notes that have a token; how many have none, by reason; and remarks."""
    drums = np.array([track.is_drum and protocol.drops_drums for track in notes.tracks])[notes.track]
    outside = (notes.pitch < PITCH_LOW) | (notes.pitch > PITCH_HIGH)
    remarks: dict[str, int] = {}
    if drums.any() and not _speaks_for_drums(notes, drums, outside):
        remarks, drums = {DRUM_CHANNEL_PIANO: int(drums.sum())}, np.zeros_like(drums)
    outside &= ~drums
    dropped = _counts({DRUM: drums, OUT_OF_RANGE: outside})
    used = np.flatnonzero(~(drums | outside))
    if len(used) == 0:
        raise NoNotesError(dropped, " left")
    return used, dropped, remarks


def _speaks_for_drums(notes: Notes, drums: NDArray[np.bool_], outside: NDArray[np.bool_]) -> bool:
    """Tell whether the notes of channel 10 are drums, given those outside the range of a piano.

    They are, unless the file has no other notes within it, or has those of one instrument on many channels at once
    (MPE gives each note the next channel; the program of channel 10 may be another, as it names a kit there); then a
    name or the pitches of a kit must speak for drums.
    """
    on_channel = [track for track in notes.tracks if track.is_drum]
    names = {track.name for track in on_channel}
    heard = [notes.tracks[number] for number in np.unique(notes.track[~drums & ~outside])]
    others = Counter((track.name, track.program) for track in heard)
    shared = max((count for (name, _), count in others.items() if name in names), default=0)
    if others and shared < _MPE_CHANNELS:
        return True
    if any(_DRUM_WORDS.search(track.name) for track in on_channel):
        return True
    return float(np.isin(notes.pitch[drums], list(_KIT)).mean()) >= 0.5


def _nearest(ticks: NDArray[np.int64], beat: int, steps: int) -> NDArray[np.int64]:
    """``ticks`` in units of 1/``steps`` beat, rounded to the nearest, ties down; exact, in integers."""
    return -((beat - 2 * steps * ticks) // (2 * beat))


def _parts(notes: Notes, parts: Sequence[str]) -> NDArray[np.uint8]:
    if notes.label is not None:
        return notes.label
    names = [track.name if track.name in parts else track.name.split(" ")[0] for track in notes.tracks]
    table = np.array([parts.index(name) + 1 if name in parts else 0 for name in names], dtype=np.uint8)
    return table[notes.track]


def _by_pitch(
    notes: Notes, onset: NDArray[np.int64], duration: NDArray[np.int64], part: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """Order by (onset, pitch, duration); notes that are one and the same token come in the order of a hash.

    Sorting those by velocity or part would let the order tell the label of a note, and file order the track.
    """
    token = (onset * 128 + notes.pitch) * DURATIONS + duration
    order = np.argsort(token, kind="stable")
    ordered = token[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(same) == 0:
        return order
    # Few notes have a double: only their places are dealt out anew.
    places = np.zeros(len(order), dtype=bool)
    places[same] = places[same + 1] = True
    doubles, token = order[places], ordered[places]
    kinds = max(4, int(part.max()) + 1)
    content = (token * 128 + notes.velocity[doubles]) * kinds + part[doubles]
    order[places] = doubles[np.lexsort((mix(content.astype(np.uint64) + np.uint64(STEP)), token))]
    return order
