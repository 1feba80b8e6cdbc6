from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import mido
import numpy as np
import pretty_midi
import pytest
from hard_files import END, ESCAPED, RUNNING_STATUS, SPLIT_SYSEX, message, midi_file, note, raw_file, riff
from hypothesis import given, settings
from hypothesis import strategies as st

from midibert_ray.music import pairing
from midibert_ray.music.events import MAX_NOTES, changes_program, is_doubtful
from midibert_ray.music.midi import (
    MidiError,
    Notes,
    notes_to_pretty_midi,
    read_notes,
    ticks_to_seconds,
)


def rows_of(notes: Notes) -> list[tuple]:
    start, end = ticks_to_seconds(notes, notes.start), ticks_to_seconds(notes, notes.end)
    columns = (notes.track, start, end, notes.pitch, notes.velocity)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def rows_of_pretty_midi(data: bytes) -> tuple[list[tuple], list[tuple]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        midi = pretty_midi.PrettyMIDI(io.BytesIO(data))
    instruments = [instrument for instrument in midi.instruments if instrument.notes]
    rows = [(i, n.start, n.end, n.pitch, n.velocity) for i, t in enumerate(instruments) for n in t.notes]
    return sorted(rows), [(i.name, i.program, i.is_drum) for i in instruments]


def assert_equals_pretty_midi(data: bytes) -> None:
    rows, tracks = rows_of_pretty_midi(data)
    if not rows:
        with pytest.raises(MidiError, match="no notes"):
            read_notes(data)
        return
    notes = read_notes(data)
    assert rows_of(notes) == rows
    assert [(t.name, t.program, t.is_drum) for t in notes.tracks] == tracks


def columns(data: bytes) -> list[tuple[int, int, int]]:
    notes = read_notes(data)
    return list(zip(notes.start.tolist(), notes.end.tolist(), notes.pitch.tolist(), strict=True))


def test_running_status():
    assert columns(RUNNING_STATUS) == [(0, 480, 60), (480, 960, 64)]
    assert_equals_pretty_midi(RUNNING_STATUS)


def test_riff_wrapper_is_taken_off():
    assert columns(riff(RUNNING_STATUS)) == columns(RUNNING_STATUS)
    with pytest.raises(MidiError, match="RMID"):
        read_notes(b"RIFF\0\0\0\0WAVEfmt ")
    with pytest.raises(MidiError, match="data chunk"):
        read_notes(b"RIFF\0\0\0\0RMID")


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_formats(kind):
    assert_equals_pretty_midi(midi_file(note(60, 100), kind=kind))
    if kind:
        assert_equals_pretty_midi(midi_file([], note(60, 100), note(72, 50, time=7), kind=kind))


def test_one_note_off_ends_every_older_note_of_its_pitch():
    two_on = [message("note_on", 0, note=60, velocity=9), message("note_on", 10, note=60, velocity=8)]
    track = [*two_on, message("note_off", 10, note=60), message("note_off", 10, note=60)]
    assert columns(midi_file(track)) == [(0, 20, 60), (10, 20, 60)]


def test_a_note_off_at_its_own_start_makes_no_note():
    track = [*note(60, 0), *note(62, 5)]
    assert columns(midi_file(track)) == [(0, 5, 62)]


def test_notes_that_never_end_are_no_notes():
    track = [message("note_on", 0, note=50, velocity=3), *note(62, 5)]
    assert columns(midi_file(track)) == [(0, 5, 62)]


def test_programs_that_share_a_channel_are_read_as_pretty_midi_reads_them():
    track = [
        message("program_change", program=5),
        message("note_on", note=60, velocity=9),
        message("program_change", program=7),
        message("note_on", 10, note=60, velocity=9),
        *[message("note_off", 10, note=60)] * 2,
        *note(61, 5),
    ]
    assert_equals_pretty_midi(midi_file(track))


@pytest.mark.parametrize(
    ("event", "program", "sysex"),
    [("60c004", True, False), ("60c003", False, False), ("60f7027e09", False, True), ("60f0027ef7", False, False)],
)
def test_rare_events_among_notes_are_found(event, program, sysex):
    """Delta times hold the bytes 0xC0 and 0xF7, five bytes long the last, and most notes have no status byte."""
    notes = "00903c40 81c0003c00 81f7004040 604000 e0404000 81808080003c40 603c00"
    body = bytes.fromhex(f"00c003 {notes} {event} {notes}") + END
    assert changes_program(body, 0) is program
    assert is_doubtful(body) is sysex


def test_several_tempi_and_960_ticks_per_beat():
    tempi = [mido.MetaMessage("set_tempo", tempo=t, time=d) for t, d in ((400_000, 0), (600_000, 960), (600_000, 5))]
    data = midi_file(tempi, note(60, 1920) + note(64, 960), ticks_per_beat=960)
    notes = read_notes(data)
    assert notes.ticks_per_beat == 960
    assert notes.tempo_ticks.tolist() == [0, 960]
    assert ticks_to_seconds(notes, notes.end).tolist() == pytest.approx([1.0, 1.6])
    assert_equals_pretty_midi(data)


def test_a_sysex_message_in_two_packets_takes_no_time_of_its_own():
    assert columns(SPLIT_SYSEX) == [(96, 192, 60)]
    assert_equals_pretty_midi(SPLIT_SYSEX)


def test_a_sysex_event_need_not_end_in_f7():
    data = raw_file(bytes.fromhex("00f0037e7f0960903c4060803c00") + END)
    assert columns(data) == [(96, 192, 60)]
    assert_equals_pretty_midi(data)


def test_bytes_of_a_sysex_event_are_never_taken_for_notes():
    with pytest.raises(MidiError, match="data byte 0x3c where a status byte must stand"):
        read_notes(raw_file(bytes.fromhex("00f003017ff7003c40") + RUNNING_STATUS[22:]))
    assert columns(ESCAPED) == [(0, 96, 60)]


def test_whole_sysex_events_need_no_second_reading(monkeypatch):
    monkeypatch.setattr(pairing, "walk", lambda *args, **options: pytest.fail("the slow reader was used"))
    assert columns(raw_file(bytes.fromhex("00f0057e7f0901f7") + RUNNING_STATUS[22:])) == columns(RUNNING_STATUS)


def test_events_after_an_early_end_of_track_count():
    data = raw_file(END + RUNNING_STATUS[22:])
    assert columns(data) == columns(RUNNING_STATUS)
    assert_equals_pretty_midi(data)


def test_of_several_names_the_last_before_the_first_note_ends_counts():
    names = [mido.MetaMessage("track_name", name=name) for name in "ABC"]
    data = midi_file([*names[:2], *note(60, 5), names[2]])
    assert [track.name for track in read_notes(data).tracks] == ["B"]
    assert_equals_pretty_midi(data)


def test_an_unknown_meta_event_keeps_its_delta_time():
    """Where pretty_midi is wrong, and we are not: mido drops the delta of what it does not know."""
    assert columns(raw_file(bytes.fromhex("60ff40016100903c4060803c00") + END)) == [(96, 192, 60)]


def test_drums_are_marked():
    notes = read_notes(midi_file(note(36, 10, channel=9), note(60, 10)))
    assert [track.is_drum for track in notes.tracks] == [True, False]


def test_foreign_chunks_and_trailing_bytes_are_skipped():
    at = RUNNING_STATUS.index(b"MTrk")
    data = RUNNING_STATUS[:at] + b"XFIH\0\0\0\2ab" + RUNNING_STATUS[at:] + b"\0\0\0"
    assert columns(data) == columns(RUNNING_STATUS)


BROKEN = {
    "empty file": b"",
    r"not a MIDI file: it begins with 'PK\\x03\\x04', not 'MThd'": b"PK\3\4" * 10,
    "a RIFF file of type 'AVI '; only RMID": riff(END).replace(b"RMID", b"AVI "),
    "truncated": RUNNING_STATUS[:-6],
    "truncated: 10 bytes": RUNNING_STATUS[:10],
    "1 of the 2 tracks": raw_file(END, declared=2),
    "SMPTE": raw_file(END, division=0xE728),
    "zero ticks per beat": raw_file(END, division=0),
    "no tracks": raw_file(),
    "format 3": raw_file(END, kind=3),
    "no notes": raw_file(END),
    "empty track: MTrk chunk 2 of 2 has no events": raw_file(END, b"", kind=1),
    "unreadable MIDI events": raw_file(bytes.fromhex("00903cff 10903c00") + END),
    "the track ends within an event": raw_file(bytes.fromhex("00903c40 60803c")),
    "data byte 0x3c where a status byte must stand": raw_file(bytes.fromhex("003c40") + END),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_files_give_a_reason(reason):
    with pytest.raises(MidiError, match=reason):
        read_notes(BROKEN[reason])


def test_pieces_are_bounded_in_hours_and_notes_and_not_in_ticks():
    hour = 3600 * 2 * 1920
    data = midi_file([*note(60, 5), *note(62, 5, time=hour)], ticks_per_beat=1920)
    assert columns(data) == [(0, 5, 60), (hour + 5, hour + 10, 62)]
    fine = midi_file([*note(60, 5), *note(62, 5, time=0x0FFFFFFF)], ticks_per_beat=32000)  # behind where the probe is
    assert columns(fine) == [(0, 5, 60), (0x0FFFFFFF + 5, 0x0FFFFFFF + 10, 62)]
    with pytest.raises(MidiError, match="29 hours long; more than 24"):
        read_notes(midi_file(note(60, 5, time=100_000_000)))
    late = [mido.MetaMessage("set_tempo", tempo=5, time=0x0FFFFFFF)] * 129
    with pytest.raises(MidiError, match="later than 34,359,738,368"):
        read_notes(midi_file(late, note(60, 5)))
    with pytest.raises(MidiError, match="more than 1,000,000 notes"):
        read_notes(raw_file(b"\x00\x90\x3c\x40" + b"\x01\x3c\x00\x00\x3c\x40" * MAX_NOTES + b"\x01\x3c\x00" + END))


@pytest.mark.parametrize("ticks", [1 << 31, 1 << 32, 5 << 30])
@pytest.mark.parametrize("delta", [0x0FFFFFFF, 1 << 20])
def test_ticks_of_more_bits_than_symusic_has_are_told(ticks, delta):
    wait = [mido.MetaMessage("text", text="", time=delta)] * (ticks // delta)
    late = note(62, 5, time=ticks - delta * len(wait))
    for first in (note(60, 5), [*note(60, 5), *note(60, 5, channel=1)]):  # the second is read event by event anyway
        start = sum(event.time for event in [*first, *wait]) + late[0].time
        data = midi_file([*first, *wait, *late], ticks_per_beat=32767)
        assert read_notes(data).start.max() == start == ticks + 5 * len(first) // 2


def test_silence_that_ends_late_is_no_reason():
    body = bytes.fromhex("00903c4060803c00 ffffff7fff0100 ffffff7fff0100 ffffff7fff2f00".replace(" ", ""))
    assert columns(raw_file(body)) == [(0, 96, 60)]


ODD_EVENTS = {
    "key signature": "ff590208 00",
    "time signature": "ff580400ff0000",
    "set tempo": "ff5103000000",
    "SMPTE offset": "ff5405 7f7f000000",
    "controller, pitch bend or program above 127": "b007ff",
    "pressure above 127": "a03cff",
    "system message": "f8",
    "SysEx event": "f0027fff",
}


@pytest.mark.parametrize(
    ("offset", "damaged"),
    [
        ("17 3b 3b 1d 63", False),  # 23:59:59, frame 29.99 of 30 at 24 frames a second, as some programs write
        ("77 00 00 00 00", False),  # 23 hours at 30 frames a second: a rate stands above the hours
        ("18 00 00 00 00", True),
        ("38 00 00 00 00", True),
        ("7f 00 00 00 00", True),
        ("97 00 00 00 00", True),
        ("00 3c 00 00 00", True),
        ("00 00 00 00 64", True),
        ("00 00 00 00", True),
    ],
)
def test_a_smpte_offset_that_is_no_time_of_day_is_damaged(offset, damaged):
    data = bytes.fromhex(offset)
    event = bytes([0, 0xFF, 0x54, len(data)]) + data
    for channels in ("00903c4060803c00", "00903c4060813c0000803c00"):
        assert read_notes(raw_file(event + bytes.fromhex(channels) + END)).ignored == (
            {"SMPTE offset": 1} if damaged else {}
        )


@pytest.mark.parametrize("kind", ODD_EVENTS)
@pytest.mark.parametrize("channels", [1, 2])
def test_an_event_that_has_no_bearing_on_notes_is_ignored_and_counted(kind, channels):
    odd = bytes.fromhex("00" + ODD_EVENTS[kind].replace(" ", ""))
    second = bytes.fromhex("00913e4060813e00") if channels == 2 else b""
    notes = read_notes(raw_file(odd + bytes.fromhex("00903c4060803c00") + second + END))
    assert notes.pitch.tolist() == [60, 62][:channels]
    assert notes.ignored == {kind: 1}
    assert notes.seconds_per_tick.tolist() == [60 / (120 * 480)]
    assert notes.metre.tolist() == []


@pytest.mark.parametrize(
    ("kind", "event"),
    [
        *(
            ("controller, pitch bend or program", each)
            for each in ("b007ff", "b0ff07", "b00790", "e00080", "c0ff", "c090")
        ),
        *(("pressure", each) for each in ("a03cff", "a0ff3c", "a03c90", "a0f83c", "d0ff", "d090", "d0f7")),
        *(("pressure", each) for each in ("a03c40 003dff", "a03c40 8a003dff", "a03c40 00d040 00a03cff")),
        ("pressure", "903d40 00a03c40 10903d00 00b04040 10a03d90"),
    ],
)
def test_a_channel_event_above_127_is_counted_whatever_its_kind(kind, event):
    for before in ("", "a020b04000", "df7fd000"):  # a long delta time looks like a status
        for second in ("", "00913e4060813e00"):
            body = bytes.fromhex(f"00903c40 60803c00 {before} 00{event} {second}")
            notes = read_notes(raw_file(body + END))
            assert notes.ignored == {f"{kind} above 127": 1}
            assert notes.start.tolist()[0] == 0 and notes.end.tolist()[0] == 96


@pytest.mark.parametrize("event", ["a03c40 003d41 a020 3e42", "d040 0041 df7f 42", "b04000 00a03c40 00d040"])
def test_sound_pressure_needs_no_second_reading(event, monkeypatch):
    monkeypatch.setattr(pairing, "walk", lambda *args, **options: pytest.fail("the slow reader was used"))
    assert read_notes(raw_file(bytes.fromhex(f"00903c40 60803c00 00{event}") + END)).ignored == {}


def test_an_escape_may_hold_any_bytes():
    assert read_notes(ESCAPED).ignored == {}


def test_tracks_that_the_header_does_not_declare_are_counted():
    """No reader plays them, and music of which only one hand is read would look like any other."""
    body = bytes.fromhex("00903c4060803c00") + END
    notes = read_notes(raw_file(body, body, body, declared=1))
    assert (len(notes), notes.ignored) == (1, {"tracks beyond those that the header declares": 2})
    assert read_notes(raw_file(body) + b"MTr" + bytes(9)).ignored == {}


def test_notes_that_never_end_last_to_the_end_of_their_track_where_they_are_asked_for():
    opened = message("note_on", 0, note=50, velocity=3)
    end = mido.MetaMessage("end_of_track", time=40)
    for channels in ([0], [0, 1]):  # through symusic, and event by event
        events = [event for channel in channels for event in note(62, 5, channel=channel)]
        notes = read_notes(midi_file([opened, *events, end]), keep_unreleased=True)
        assert (50, 0, 5 * len(channels) + 40) in zip(notes.pitch, notes.start, notes.end, strict=True)
        assert notes.dropped == {}
        assert read_notes(midi_file([opened, *events, end])).dropped == {"never released": 1}


def test_notes_of_no_length_are_counted():
    assert read_notes(midi_file([*note(60, 0), *note(62, 5)])).dropped == {"zero duration": 1}
    with pytest.raises(MidiError, match=r"no notes \(dropped: 1 zero duration\)"):
        read_notes(midi_file(note(60, 0)))


def test_time_signatures_of_every_track_are_read():
    metre = [
        mido.MetaMessage("time_signature", numerator=n, denominator=d, time=t) for n, d, t in ((3, 4, 0), (6, 8, 9))
    ]
    assert read_notes(midi_file(note(60, 5), metre)).metre.tolist() == [[0, 3, 4], [9, 6, 8]]
    two = [*metre, *note(60, 5), *note(60, 5, channel=1)]
    assert read_notes(midi_file(two)).metre.tolist() == [[0, 3, 4], [9, 6, 8]]


@given(data=st.binary(max_size=300))
def test_no_bytes_raise_anything_but_midi_error(data):
    for content in (data, raw_file(data), raw_file(data + END)):
        try:
            read_notes(content)
        except MidiError as error:
            assert str(error)


@given(at=st.integers(0, 2000), value=st.integers(0, 255))
def test_a_changed_byte_raises_nothing_but_midi_error(sample_midi, at, value):
    data = bytearray(sample_midi)
    data[at] = value
    try:
        read_notes(bytes(data))
    except MidiError as error:
        assert str(error)


EVENTS_OF_ONE = st.tuples(
    st.sampled_from(["on", "on", "on", "off", "off", "off", "program", "sysex", "open", "name"]),
    st.integers(0, 3),
    st.integers(60, 61),
    st.integers(0, 3),
    st.just(0),
)

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["on", "on", "on", "off", "off", "off", "program", "sysex", "open", "continue", "name", "end"]),
        st.integers(0, 3),  # delta time: many events share a tick
        st.integers(60, 62),
        st.integers(0, 3),  # velocity 0 is a note-off
        st.sampled_from([0, 0, 0, 1, 9]),
    ),
    max_size=40,
)


def _event(kind: str, time: int, pitch: int, velocity: int, channel: int) -> bytes:
    payload = bytes([pitch] * velocity)
    body = {
        "on": bytes([0x90 + channel, pitch, velocity]),
        "off": bytes([0x80 + channel, pitch, velocity]),
        "program": bytes([0xC0 + channel, velocity]),
        "sysex": bytes([0xF0, velocity + 1, *payload, 0xF7]),
        "open": bytes([0xF0, velocity, *payload]),
        "continue": bytes([0xF7, velocity, *payload]),
        "name": bytes([0xFF, 0x03, velocity, *payload]),
        "end": END[1:],
    }
    return bytes([time]) + body[kind]


@settings(max_examples=150)
@given(tracks=st.lists(EVENTS, min_size=1, max_size=3))
def test_any_events_are_read_as_pretty_midi_reads_them(tracks):
    bodies = (b"".join(_event(*event) for event in events) + END for events in tracks)
    assert_equals_pretty_midi(raw_file(*bodies, kind=1))


ODD = st.sampled_from(sorted(ODD_EVENTS))


@settings(max_examples=150)
@given(events=st.lists(st.one_of(EVENTS_OF_ONE, ODD), max_size=40))
def test_both_paths_give_one_answer(events):
    """What symusic reads, event by event: a track is read the same whichever way it goes."""
    odd = {kind: b"\x00" + bytes.fromhex(data.replace(" ", "")) for kind, data in ODD_EVENTS.items()}
    body = b"".join(odd[event] if isinstance(event, str) else _event(*event) for event in events) + END
    try:
        fast = pairing._read_fast(480, body)
    except MidiError:
        fast = None
    if fast is None:
        return
    exact = pairing.walk(body)
    assert (fast.dropped, fast.ignored) == (exact.dropped, exact.ignored)
    for (track, notes), (other, expected) in zip(fast.instruments, exact.instruments, strict=True):
        assert track == other
        assert sorted(notes.T.tolist()) == sorted(expected.T.tolist())
    np.testing.assert_array_equal(fast.tempi, exact.tempi)
    np.testing.assert_array_equal(fast.metre, exact.metre)


@settings(max_examples=60)
@given(events=st.lists(EVENTS_OF_ONE, max_size=40))
def test_a_part_reads_the_same_alone_and_beside_another_channel(events):
    """A track of one channel, and the same with a note of a second channel behind it, which symusic does not split."""
    body = b"".join(_event(*event) for event in events if event[0] != "end")
    beside = bytes.fromhex("08913e4060813e00")
    answers = []
    for content in (body + bytes.fromhex("08ff0100") + END, body + beside + END):
        try:
            notes = read_notes(raw_file(content))
        except MidiError as error:
            answers.append(str(error).startswith("unreadable") or [])
            continue
        own = [row[1:] for row in rows_of(notes) if notes.tracks[row[0]].program or row[3] != 62 or row[4] != 64]
        answers.append(sorted(own))
    assert answers[0] == answers[1]


LAYOUTS = [
    lambda note: (0, 0),
    lambda note: (0, note % 2),
    lambda note: (note % 2, 0),
    lambda note: (note % 3, note % 2),
    lambda note: (1, note % 2),  # behind a conductor track
]
"""Track and channel of each note."""


@settings(max_examples=60)
@given(
    notes=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 27)), min_size=1, max_size=8),
    odd=st.lists(st.tuples(st.integers(0, 99), ODD), max_size=3),
)
def test_notes_read_the_same_however_they_are_split_over_tracks_and_channels(notes, odd):
    answers = []
    for layout in LAYOUTS:
        tracks = {0: [(at, bytes.fromhex(ODD_EVENTS[kind].replace(" ", ""))) for at, kind in odd], 1: [], 2: []}
        for number, (start, length) in enumerate(notes):
            track, channel = layout(number)
            tracks[track].append((start, bytes([0x90 + channel, 40 + number, 64])))
            tracks[track].append((start + length, bytes([0x80 + channel, 40 + number, 0])))
        bodies = []
        for events in tracks.values():
            events.sort(key=lambda event: event[0])
            deltas = np.diff([0, *(at for at, _ in events)]).tolist()
            bodies.append(b"".join(bytes([delta]) + event for delta, (_, event) in zip(deltas, events, strict=True)))
        try:
            read = read_notes(raw_file(*(body + END for body in bodies), kind=1))
            rows = sorted(zip(read.start.tolist(), read.end.tolist(), read.pitch.tolist(), strict=True))
            answers.append((rows, read.dropped, read.ignored, read.metre.tolist()))
        except MidiError as error:
            answers.append(str(error))
    assert all(answer == answers[0] for answer in answers)


def test_to_pretty_midi_and_back(sample_midi):
    notes = read_notes(sample_midi)
    buffer = io.BytesIO()
    notes_to_pretty_midi(notes).write(buffer)
    written = read_notes(buffer.getvalue())
    for field in ("start", "end", "pitch", "velocity", "track", "tempo_ticks"):
        np.testing.assert_array_equal(getattr(written, field), getattr(notes, field))


def test_only_odd_files_are_read_twice(sample_midi, monkeypatch):
    monkeypatch.setattr(pairing, "walk", lambda *args, **options: pytest.fail("the slow reader was used"))
    assert len(read_notes(sample_midi)) > 1000


def _digest(rows: np.ndarray, tracks: list[tuple[str, int, bool]]) -> str:
    """Of notes (track, start, end, pitch, velocity), times in seconds to the last bit, and of instruments."""
    rows = np.asarray(rows, dtype="<f8").reshape(-1, 5)
    rows = rows[np.lexsort(rows.T[::-1])]
    return hashlib.sha256(rows.tobytes() + repr(tracks).encode()).hexdigest()


def _ours(path: Path) -> str:
    try:
        notes = read_notes(path.read_bytes())
    except MidiError as error:
        return str(error)[:8]
    start, end = ticks_to_seconds(notes, np.stack([notes.start, notes.end]))
    columns = (notes.track, start, end, notes.pitch, notes.velocity)
    return _digest(np.stack(columns, axis=1), [(t.name, t.program, t.is_drum) for t in notes.tracks])


def _theirs(path: Path) -> str:
    rows, tracks = rows_of_pretty_midi(path.read_bytes())
    return (
        _digest(np.array(rows), [(name, int(program), is_drum) for name, program, is_drum in tracks])
        if rows
        else "no notes"
    )


def _digests(root: Path, folder: str, read: Callable[[Path], str]) -> tuple[int, str]:
    """How many MIDI files are in a folder of `corpora_root`, and one digest of all."""
    paths = sorted((root / folder).rglob("*.mid"), key=str)
    names = ((path.relative_to(root).as_posix(), read(path)) for path in paths)
    return len(paths), hashlib.sha256("\n".join(map(" ".join, names)).encode()).hexdigest()


PRETTY_MIDI = {
    "POP909": (909, "75288cf0e0294d08b057d08c84b9c2870a8ca3507197002fa9d617828ac82d97"),
    "Pop1K7": (1747, "ea17ba99c0e4f3f968abbb16e6703c4dd0f107226a6009d0ecebe2cc0f64211d"),
    "asap-dataset": (235, "3b445ed23b41a835d8bf80e1627daecf94b12c3121b9b542b0969df1e9a23bf5"),
    "Pianist8": (411, "4e5a8e632c02d6429a7360a505c43b9d8e943fe8b1b603e6afd54e3fd30a55e8"),
    "EMOPIA_1.0": (1078, "0a28ad4e8ff75095e77215fee9c3d230b4a29b69cffe4561dd9b8c36e11b60d1"),
}
"""Files below each folder, and the digest of what pretty_midi 0.2.11 reads in them: `_digests(..., _theirs)`, which
takes a hundred times as long as ours."""


@pytest.mark.corpora
@pytest.mark.parametrize("folder", PRETTY_MIDI)
def test_every_file_of_the_corpora_is_read_as_pretty_midi_reads_it(corpora_root, folder):
    assert _digests(corpora_root, folder, _ours) == PRETTY_MIDI[folder]
    for path in sorted((corpora_root / folder).rglob("*.mid"), key=str)[::25]:
        assert _ours(path) == _theirs(path), path
