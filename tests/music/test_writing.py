"""Files from `PrettyMIDI`, beside those that it writes itself."""

import io

import mido
import pretty_midi

from midibert_ray.music.midi import read_notes
from midibert_ray.music.writing import midi_bytes


def made(*instruments: pretty_midi.Instrument) -> pretty_midi.PrettyMIDI:
    midi = pretty_midi.PrettyMIDI(resolution=480, initial_tempo=96)
    midi.instruments = list(instruments)
    return midi


def piano(*notes: tuple[float, float, int], program: int = 0, name: str = "") -> pretty_midi.Instrument:
    instrument = pretty_midi.Instrument(program, name=name)
    instrument.notes = [pretty_midi.Note(70, pitch, start, end) for start, end, pitch in notes]
    return instrument


def messages(data: bytes, track: int) -> list[mido.Message]:
    return list(mido.MidiFile(file=io.BytesIO(data)).tracks[track])


def test_all_events_are_those_that_pretty_midi_writes() -> None:
    midi = made(piano((0, 1, 60), (1, 2, 60), name="Klavier é"), piano((0.5, 1.5, 40), program=48))
    midi.instruments[0].control_changes = [pretty_midi.ControlChange(64, value, value / 100) for value in (0, 127)]
    midi.instruments[1].pitch_bends = [pretty_midi.PitchBend(bend, 0.25) for bend in (-8192, 0, 8191)]
    midi.time_signature_changes = [pretty_midi.TimeSignature(6, 8, 0), pretty_midi.TimeSignature(3, 2, 2)]
    midi.key_signature_changes = [pretty_midi.KeySignature(number, number / 10) for number in range(24)]
    midi.lyrics, midi.text_events = [pretty_midi.Lyric("la", 0.5)], [pretty_midi.Text("ruhig", 1.25)]
    midi.write(own := io.BytesIO())
    found = midi_bytes(midi)
    for track in range(3):
        expected = sorted(map(str, messages(own.getvalue(), track)[:-1]))
        assert sorted(map(str, messages(found, track)[:-1])) == expected


def test_notes_of_one_pitch_follow_each_other_and_those_without_a_length_end() -> None:
    found = midi_bytes(made(piano((0, 1, 60), (1, 2, 60), (2, 2, 62))))
    notes = read_notes(found)
    assert len(notes) == 2 and (notes.end > notes.start).all()
    assert notes.dropped == {"zero duration": 1}


def test_names_that_are_not_latin_are_kept_as_utf_8() -> None:
    assert read_notes(midi_bytes(made(piano((0, 1, 60), name="二胡")))).tracks[0].name == "二胡"


def test_tracks_of_one_instrument_share_its_channel_where_channels_are_few() -> None:
    parts = [[piano((0, 1, 60 + k), program=k) for _ in range(3)] for k in range(7)]
    for tracks in parts:
        for track in tracks[1:]:
            track.control_changes = tracks[0].control_changes
    drums = pretty_midi.Instrument(0, is_drum=True)
    drums.notes = [pretty_midi.Note(90, 36, 0, 1)]
    data = midi_bytes(made(drums, *(track for tracks in parts for track in tracks)))
    used = [{m.channel for m in messages(data, track) if not m.is_meta} for track in range(1, 23)]
    assert used == [{9}] + [{k} for k in range(7) for _ in range(3)]
    few = midi_bytes(made(drums, *(track for tracks in parts[:3] for track in tracks)))
    assert [messages(few, track)[-2].channel for track in range(1, 11)] == [9, 0, 1, 2, 3, 4, 5, 6, 7, 8]
