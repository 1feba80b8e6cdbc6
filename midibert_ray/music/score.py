"""MusicXML bytes -> notes in ticks, by partitura (`pip install 'midibert-ray[scores]'`)."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from midibert_ray.music.events import MAX_NOTES, ZERO_DURATION, Track, too_many_notes
from midibert_ray.music.midi import Notes
from midibert_ray.music.smf import MidiError, NoNotesError

SCORE_SUFFIXES = (".mxl", ".musicxml")
"""Endings of MusicXML files, compressed or not, in lower or upper case."""

TICKS_PER_BEAT = 480
SCORE_BYTES = 64 << 20
"""A score that is larger when unpacked is refused; a long opera scene has 20 MB."""

_TEMPO = 60 / 120
"""Seconds of a quarter: a score tells no time, and 120 bpm is what MIDI assumes where nothing is said."""
_VELOCITY = 80
_PIANO = 0
_CONTAINER = "META-INF/container.xml"


def is_score(data: bytes) -> bool:
    """Tell whether bytes are a compressed or plain MusicXML file by their first ones, and no MIDI file."""
    return data[:2] == b"PK" or data.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"<"


def read_score(data: bytes) -> Notes:
    """Read a MusicXML file: ``bytes`` -> `Notes` at 480 ticks a quarter, one track a part, in the score's order.

    Notes are as written: ties are joined, grace notes are none (they have no length, and are counted), repeats are
    played once, velocities are all 80, and a quarter lasts half a second. Every bar that is shorter or longer than its
    time signature (a pickup, a bar before a repeat) gets a time signature of its own at its start and end, so that
    bars begin where the score has them.

    Raises:
        MidiError: not MusicXML, damaged, without a time signature, more than `MAX_NOTES` notes, or no note.
        ModuleNotFoundError: partitura is not installed.
    """
    import partitura

    with warnings.catch_warnings(action="ignore"):
        try:
            parts = partitura.load_musicxml(io.BytesIO(_unpacked(data)), quiet=True).parts
            voices = [_notes(part) for part in parts]
        except MidiError:
            raise
        except Exception as error:  # its parser raises whatever a strange score makes it run into
            raise MidiError(f"unreadable MusicXML: {type(error).__name__}: {error}"[:200]) from error
        metre = _metre(parts[0]) if parts else np.zeros((0, 3), dtype=np.int64)
    table = np.concatenate([np.zeros((4, 0), np.int64), *voices], axis=1)
    whole = table[1] > table[0]
    dropped = {ZERO_DURATION: int((~whole).sum())} if not whole.all() else {}
    if not whole.any():
        raise NoNotesError(dropped)
    if table.shape[1] > MAX_NOTES:
        raise MidiError(too_many_notes())
    if not len(metre):
        raise MidiError("a score without a time signature: where its bars begin is not known")
    track = np.repeat(np.arange(len(voices)), [voice.shape[1] for voice in voices])
    order = np.lexsort((table[2], table[0], track))
    start, end, pitch, velocity = table[:, order[whole[order]]]
    return Notes(
        start=start,
        end=end,
        pitch=pitch.astype(np.uint8),
        velocity=velocity.astype(np.uint8),
        track=track[order[whole[order]]].astype(np.int32),
        tracks=tuple(Track(name=_name(part), program=_PIANO, is_drum=False) for part in parts),
        ticks_per_beat=TICKS_PER_BEAT,
        tempo_ticks=np.zeros(1, dtype=np.int64),
        seconds_per_tick=np.full(1, _TEMPO / TICKS_PER_BEAT),
        metre=metre,
        dropped=dropped,
    )


def _unpacked(data: bytes) -> bytes:
    """The MusicXML document of a file that may be compressed (.mxl: a ZIP whose container names the score)."""
    if data[:2] != b"PK":
        return data
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            root = ElementTree.fromstring(_member(archive, _CONTAINER, 1 << 20)).find(".//{*}rootfile")
            if root is None or not root.get("full-path"):
                raise MidiError(f"unreadable MusicXML: {_CONTAINER} names no score")
            return _member(archive, str(root.get("full-path")), SCORE_BYTES)
    except (zipfile.BadZipFile, KeyError, ElementTree.ParseError, OSError, RuntimeError, NotImplementedError) as error:
        raise MidiError(f"unreadable MusicXML: the archive is damaged or no score: {error}") from error


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """A member of an archive; what it claims to be large is not believed, what it unpacks to is counted."""
    with archive.open(name) as member:
        content = member.read(limit + 1)
    if len(content) > limit:
        raise MidiError(f"unreadable MusicXML: {name} unpacks to more than {limit >> 20} MiB")
    return content


def _notes(part: Any) -> NDArray[np.int64]:
    """int64 [4, n] start and end in ticks, pitch and velocity of a part's notes, ties joined."""
    if not part.notes_tied:
        return np.zeros((4, 0), dtype=np.int64)
    notes = part.note_array(include_grace_notes=False)
    start, end = (_ticks(part, at) for at in (notes["onset_div"], notes["onset_div"] + notes["duration_div"]))
    return np.stack([start, end, notes["pitch"].astype(np.int64), np.full(len(notes), _VELOCITY)])


def _ticks(part: Any, divisions: NDArray[np.int64]) -> NDArray[np.int64]:
    quarters = np.asarray(part.quarter_map(divisions), dtype=np.float64) - float(part.quarter_map(0))
    return np.rint(quarters * TICKS_PER_BEAT).astype(np.int64)


def _name(part: Any) -> str:
    return " ".join((part.part_name or "").split())


def _metre(part: Any) -> NDArray[np.int64]:
    """int64 [m, 3] tick, numerator and denominator: of time signatures, and around bars of another length."""
    rows = list(_changes(part))
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _changes(part: Any) -> Iterator[tuple[int, int, int]]:
    signatures = {int(_ticks(part, np.array(s.start.t))): (int(s.beats), int(s.beat_type)) for s in part.time_sigs}
    if not signatures:
        return
    now, irregular = (4, 4), False
    for bar in part.measures:
        begin, end = _ticks(part, np.array([bar.start.t, bar.end.t])).tolist()
        changed = begin in signatures
        now = signatures.get(begin, now)
        if changed or irregular:
            yield begin, *now
        irregular = (end - begin) * now[1] != now[0] * 4 * TICKS_PER_BEAT
