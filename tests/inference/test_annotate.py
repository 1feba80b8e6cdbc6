"""What a model says of whole pieces, of any length and from any source."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pretty_midi
import pytest
import symusic
import torch

import midibert_ray as mb
from midibert_ray.inference import windows
from midibert_ray.inference.annotator import Annotator, protocol_of
from midibert_ray.inference.sources import read_song
from midibert_ray.model.calibration import Calibration, Familiarity, Favour, Reliability
from midibert_ray.model.midibert import MidiBertConfig
from midibert_ray.music.grid import quantize
from midibert_ray.music.midi import MidiError, read_notes
from midibert_ray.music.protocol import CLEAN, PAPER
from midibert_ray.music.tokens import encode, remi_from_cp
from tests.inference.conftest import MakeModel
from tests.music.hard_files import message, midi_file, note

SHORT = midi_file([*note(60, 480), *note(64, 480), *note(67, 480), *note(72, 480)])


def test_a_short_piece_has_the_answers_of_the_model_itself(note_model: Annotator, songs: list[Path]) -> None:
    notes = read_notes(songs[0].read_bytes())
    cut = notes.take(np.arange(len(notes)) < 50)
    song = replace(read_song(songs[0]), notes=cut, onset_s=np.arange(50.0), offset_s=np.arange(50.0) + 1)
    tokens = torch.from_numpy(encode(quantize(cut, CLEAN)).tokens.astype(np.int64))[None]
    with torch.no_grad():
        expected = note_model.model.head(note_model.encoder(tokens).last_hidden_state)[0].softmax(-1).numpy()
    found = note_model.annotate(song)
    np.testing.assert_allclose(found.scores, expected, atol=1e-6)
    assert [found.classes[k] for k in expected.argmax(1)] == [
        found.notes["label"][row] for row in np.argsort(song.order)[found.grid.source]
    ]


def test_every_note_of_a_long_piece_has_context_on_both_sides(note_model: Annotator, songs: list[Path]) -> None:
    """Of the windows that see a note, one has an eighth of its length on both sides, but at the piece's ends."""
    length = note_model.config.max_length
    for steps in (1, 63, 64, 65, 96, 97, 1000, 1445):
        begins = windows.starts(steps, length)
        at = np.arange(steps)
        before, behind = at - begins[:, None], begins[:, None] + min(length, steps) - 1 - at
        inside = (before >= 0) & (behind >= 0)
        before, behind = (
            np.where(begins[:, None] == 0, length, before),
            np.where(begins[:, None] == begins[-1], length, behind),
        )
        context = np.where(inside, np.minimum(before, behind), -1).max(axis=0)
        assert context.min() >= length // 8 - 1
        assert (begins >= 0).all() and (np.diff(begins) > 0).all()


def test_windows_count_by_their_distance_from_an_edge() -> None:
    values = np.stack([np.zeros((4, 1)), np.ones((4, 1))]).astype(np.float32)
    averaged = windows.average(values, np.array([0, 2]), 6)
    # Steps 2 and 3 are in both windows, with the weights 2 and 1 of the first and 1 and 2 of the second.
    assert averaged[:, 0].tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 1])


def test_results_depend_on_nothing_but_the_piece(note_model: Annotator, songs: list[Path]) -> None:
    some = songs[:3]
    alone = [note_model.annotate(path).scores for path in some]
    together = [song.scores for song in note_model.annotate_many(reversed([some[-1], *some]))]
    for one, other in zip(alone, together[::-1][1:], strict=True):
        assert one.tobytes() == other.tobytes()
    torch.set_num_threads(2)
    assert note_model.annotate(songs[0]).scores.tobytes() == alone[0].tobytes()
    torch.set_num_threads(1)
    pooled = note_model.embed(some)
    assert note_model.embed(some[::-1])[::-1].tobytes() == pooled.tobytes()  # type: ignore[index]


def from_score(path: Path) -> Any:
    return symusic.Score(str(path))


SOURCES: dict[str, Callable[[Path], Any]] = {
    "bytes": Path.read_bytes,
    "text": str,
    "pretty_midi": lambda path: pretty_midi.PrettyMIDI(str(path)),
    "score": from_score,
    "score in seconds": lambda path: symusic.Score(str(path), "second"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_rows(note_model: Annotator, songs: list[Path], kind: str) -> None:
    for path in songs[:3]:
        expected, found = note_model.annotate(path), note_model.annotate(SOURCES[kind](path))
        assert len(found.notes) == len(expected.notes)
        numbers = ["onset_s", "offset_s", "pitch", "velocity", "track", "bar", "position", "probability"]
        # A score in seconds has 32-bit times, and its ticks may be one off.
        tolerance = {"atol": 2e-3} if "seconds" in kind else {"atol": 1e-9}
        if "seconds" not in kind:
            np.testing.assert_allclose(
                found.notes[numbers].astype(float), expected.notes[numbers].astype(float), **tolerance
            )
            assert found.notes["label"].tolist() == expected.notes["label"].tolist()
        np.testing.assert_allclose(found.notes["onset_s"], expected.notes["onset_s"], **tolerance)


def test_notes_that_the_model_cannot_see_have_a_row_and_a_reason(note_model: Annotator) -> None:
    drums = [message("note_on", 0, note=36, velocity=90, channel=9), message("note_off", 240, note=36, channel=9)]
    found = note_model.annotate(midi_file([*note(60, 480), *note(10, 480), *note(120, 480), *note(64, 480)], drums * 2))
    rows = found.notes
    assert rows["pitch"].tolist() == [36, 60, 36, 10, 120, 64]
    assert rows["unseen"].tolist() == ["drum", "", "drum", "pitch out of range", "pitch out of range", ""]
    assert (rows["label"] != "").tolist() == (rows["unseen"] == "").tolist() == rows["probability"].notna().tolist()
    assert rows["bar"].isna().tolist() == (rows["unseen"] != "").tolist()
    assert rows["is_drum"].tolist() == [True, False, True, False, False, False]
    assert found.note_probabilities.isna().all(axis=1).tolist() == (rows["unseen"] != "").tolist()


def test_notes_of_objects_without_a_length_have_a_row_and_a_reason(note_model: Annotator) -> None:
    midi = pretty_midi.PrettyMIDI()
    midi.instruments = [pretty_midi.Instrument(0), pretty_midi.Instrument(0)]
    midi.instruments[1].notes = [pretty_midi.Note(80, 60 + k, k, k + 0.5) for k in range(3)]
    midi.instruments[1].notes += [pretty_midi.Note(80, 70, 1.5, 1.5)]
    midi.instruments[0].control_changes = [pretty_midi.ControlChange(64, 127, 0.5)]
    found = note_model.annotate(midi)
    assert found.notes["unseen"].tolist() == ["", "", "zero duration", ""]
    made = found.to_midi()
    assert sum(len(i.notes) for i in made.instruments) == 4
    assert [len(i.control_changes) for i in made.instruments if not i.notes] == [1]
    assert midi.instruments[1].notes[0].pitch == 60 and len(midi.instruments) == 2


def test_bars_follow_the_metre_and_are_counted_with_the_empty_ones(note_model: Annotator) -> None:
    waltz = [pretty_midi.TimeSignature(3, 4, 0)]
    midi = pretty_midi.PrettyMIDI(initial_tempo=120)
    midi.time_signature_changes = waltz
    midi.instruments = [pretty_midi.Instrument(0)]
    midi.instruments[0].notes = [pretty_midi.Note(80, 60, beat / 2, beat / 2 + 0.4) for beat in (0, 1, 3, 11)]
    rows = note_model.annotate(midi).notes
    assert rows["bar"].tolist() == [1, 1, 2, 4]
    assert rows["position"].tolist() == [0, 4, 0, 8]


def test_a_doubtful_answer_is_left_out(note_model: Annotator) -> None:
    sure = note_model.annotate(SHORT)
    threshold = float(np.sort(sure.notes["probability"])[2])
    found = note_model.annotate(SHORT, abstain=threshold)
    assert found.notes["label"].tolist() == [
        label if probability >= threshold else ""
        for label, probability in zip(sure.notes["label"], sure.notes["probability"], strict=True)
    ]
    assert (found.notes["label"] == "").sum() == 2
    assert "unlabelled" in [i.name for i in found.to_midi().instruments]
    with pytest.raises(ValueError, match="abstain=80 is not possible; allowed: a probability, 0 to 1"):
        note_model.annotate(SHORT, abstain=80)


def test_a_class_that_is_favoured_is_the_label_from_its_probability_on(note_model: Annotator) -> None:
    plain = note_model.annotate(SHORT)
    name, column = plain.classes[0], plain.scores[:, 0]
    least = float(np.sort(column)[-2])  # of all notes but two it is too improbable
    favour = Favour(name=name, least=least, f1=1, f1_of_most_probable=0)
    calibration = replace(a_calibration(1.0), favour=favour)
    found = Annotator(note_model.model, device="cpu", calibration=calibration).annotate(SHORT)
    rows, shares = found.notes, found.note_probabilities
    assert (rows["label"] == name).tolist() == (shares[name] >= least).tolist()
    assert (rows["label"] == name).sum() == 2
    others = shares.drop(columns=name).idxmax(axis=1)
    assert (rows["label"] == others)[shares[name] < least].all()
    told = [shares.loc[row, label] for row, label in enumerate(rows["label"])]
    np.testing.assert_array_equal(rows["probability"], told)
    assert sum(len(i.notes) for i in found.to_midi().instruments if i.name.endswith(name)) == 2


def a_calibration(temperature: float, familiarity: Familiarity | None = None) -> Calibration:
    valid = Reliability.measure(np.array([[1.0, 0], [0, 2]]), np.array([0, 1]), temperature)
    return Calibration(temperature=temperature, valid=valid, familiarity=familiarity)


def test_probabilities_are_divided_by_the_temperature(note_model: Annotator) -> None:
    hot = Annotator(note_model.model, device="cpu", calibration=a_calibration(2.0))
    plain, cooled = note_model.annotate(SHORT).scores, hot.annotate(SHORT).scores
    expected = np.sqrt(plain) / np.sqrt(plain).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(cooled, expected, rtol=1e-5)


def test_a_piece_unlike_the_training_music_is_flagged(note_model: Annotator, songs: list[Path]) -> None:
    known = np.asarray(note_model.embed(songs[:20]))
    familiarity = Familiarity.fit(known[:15], known[15:])
    judge = Annotator(note_model.model, device="cpu", calibration=a_calibration(1.0, familiarity))
    assert judge.annotate(songs[0]).unfamiliar == ""
    odd = midi_file([event for _ in range(60) for event in note(23, 30)])
    assert "is unlike the music that the model was trained on" in judge.annotate(odd).unfamiliar
    assert judge.annotate(odd)._repr_html_().count("unlike") == 1
    assert note_model.annotate(odd).unfamiliar == ""


def test_pieces_have_one_label_and_their_own_tracks(sequence_model: Annotator, songs: list[Path]) -> None:
    found = sequence_model.annotate(songs[0])
    assert found.label == found.probabilities.idxmax() in ("Q1", "Q2", "Q3", "Q4")
    assert found.probabilities.sum() == pytest.approx(1)
    assert "label" not in found.notes.columns
    assert [i.name for i in found.to_midi().instruments] == ["MELODY", "BRIDGE", "PIANO"]
    assert sequence_model.annotate(songs[0], abstain=1.0).label == ""
    with pytest.raises(AttributeError, match="labels pieces, not notes"):
        _ = found.note_probabilities
    assert found.label in found._repr_html_()


def test_a_piece_may_have_tags_or_a_number(make_model: MakeModel, songs: list[Path]) -> None:
    tagged = mb.load(make_model("sequence", answers="tags"), "cpu")
    found = tagged.annotate(songs[0])
    assert tagged.kind == found.kind == "tags"
    expected = [name for name, p in zip(found.classes, found.scores, strict=True) if p >= 0.5]
    assert 0 < len(expected) < 4 and found.label == ";".join(expected)
    assert tagged.annotate(songs[0], abstain=1.0).label == ""
    folder = make_model("sequence", classes=("value",), answers="number")
    number = mb.load(folder, "cpu").annotate(songs[0])
    assert number.classes == () and number.probabilities.empty
    assert float(number.label) == pytest.approx(number.value, rel=1e-5)
    with pytest.raises(AttributeError, match="the model answers in tags, not in numbers"):
        _ = found.value
    assert number.label in number._repr_html_()


def test_a_pieces_logits_are_those_of_its_windows(sequence_model: Annotator, songs: list[Path]) -> None:
    tokens = torch.from_numpy(mb.tokenize(songs[0]).ids)
    begins = windows.starts(len(tokens), 64)
    with torch.no_grad():
        logits = [sequence_model.model(tokens[None, k : k + 64]).logits for k in begins]
    expected = torch.cat(logits).mean(0).softmax(-1)
    np.testing.assert_allclose(sequence_model.annotate(songs[0]).scores, expected.numpy(), atol=1e-6)


def test_a_class_for_padding_is_no_answer(make_model: MakeModel) -> None:
    folder = make_model("note", classes=("padding", "melody", "bridge", "accompaniment"), protocol={"name": "paper"})
    model = mb.load(folder, device="cpu")
    assert model.classes == ("melody", "bridge", "accompaniment")
    found = model.annotate(SHORT)
    assert found.scores.shape == (4, 3)
    np.testing.assert_allclose(found.scores.sum(axis=1), 1, rtol=1e-6)


def test_models_of_the_paper_see_what_they_were_trained_to_see(make_model: MakeModel) -> None:
    """REMI: note-level models attend to Pitch alone. Sequence-level ones attend to padding."""
    classes = ("padding", "melody", "bridge", "accompaniment")
    model = mb.load(make_model("note", classes=classes, representation="remi", protocol={"name": "paper"}), "cpu")
    remi = remi_from_cp(encode(quantize(read_notes(SHORT), CLEAN)).tokens)
    tokens = torch.from_numpy(remi.ids.astype(np.int64))[None]
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    mask[0, remi.pitch_at] = True
    with torch.no_grad():
        expected = model.model.head(model.encoder(tokens, mask)[0])[0, remi.pitch_at, 1:].softmax(-1)
    np.testing.assert_allclose(model.annotate(SHORT).scores, expected.numpy(), atol=1e-6)

    judge = mb.load(make_model("sequence", protocol={"name": "paper"}), "cpu")
    cp = encode(quantize(read_notes(SHORT), CLEAN)).tokens.astype(np.int64)
    padded = torch.tensor(np.concatenate([cp, np.tile([2, 16, 86, 64], (60, 1))]))[None]
    with torch.no_grad():
        expected = judge.model.head(judge.encoder(padded)[0], None)[0].softmax(-1)
    np.testing.assert_allclose(judge.annotate(SHORT).scores, expected.numpy(), atol=1e-6)


def test_the_protocol_is_the_models_but_for_repairs_of_reading() -> None:
    assert protocol_of(MidiBertConfig(protocol=PAPER.to_dict())).order == "corpus"
    assert protocol_of(MidiBertConfig(protocol=PAPER.switch(order="pitch").to_dict())).order == "pitch"
    assert protocol_of(MidiBertConfig(protocol=PAPER.to_dict())).ticks_per_beat == "file"
    assert protocol_of(MidiBertConfig(protocol=CLEAN.to_dict())) == CLEAN
    # Exports of before did not say it.
    old = MidiBertConfig(num_classes=4)
    assert protocol_of(old) == CLEAN
    old.name_classes(("padding", "melody", "bridge", "accompaniment"))
    assert protocol_of(old).attends_labelled


def test_embeddings_are_the_means_of_the_notes_states(note_model: Annotator, songs: list[Path]) -> None:
    each = note_model.embed(songs[:2], pool=None)
    pooled = note_model.embed(songs[:2])
    assert isinstance(pooled, np.ndarray) and pooled.shape == (2, 32) and pooled.dtype == np.float32
    for path, states, mean in zip(songs, each, pooled, strict=False):
        assert states.shape == (len(note_model.annotate(path).notes), 32)
        np.testing.assert_allclose(states.mean(axis=0), mean, atol=1e-5)
    tokens = torch.from_numpy(mb.tokenize(SHORT).ids)[None]
    with torch.no_grad():
        states = note_model.encoder(tokens, output_hidden_states=True).hidden_states
    for layer in (0, 1, -1):
        np.testing.assert_allclose(note_model.embed([SHORT], layer=layer, pool=None)[0], states[layer][0], atol=1e-6)
    assert note_model.embed(SHORT).shape == (1, 32)  # type: ignore[union-attr]
    assert note_model.embed([]).shape == (0, 32)  # type: ignore[union-attr]


def test_embeddings_of_notes_stand_in_the_order_of_rows(note_model: Annotator) -> None:
    data = midi_file([*note(60, 480), *note(10, 480)], [*note(72, 240), *note(30, 240)])
    (states,) = note_model.embed([data], pool=None)
    unseen = note_model.annotate(data).notes["unseen"] != ""
    assert np.isnan(states).all(axis=1).tolist() == unseen.tolist()


def test_a_score_is_read_like_a_file(note_model: Annotator, tmp_path: Path) -> None:
    partitura = pytest.importorskip("partitura")
    part = partitura.score.Part("P1", quarter_duration=1)
    part.add(partitura.score.TimeSignature(3, 4), 0)
    for beat, step in enumerate("CDEFGA"):
        part.add(partitura.score.Note(step=step, octave=4, voice=1), beat, beat + 1)
    partitura.score.add_measures(part)
    path = tmp_path / "waltz.musicxml"
    partitura.save_musicxml(part, str(path))
    found = note_model.annotate(path)
    assert found.notes["bar"].tolist() == [1, 1, 1, 2, 2, 2]
    assert (found.notes["label"] != "").all()
    made = found.to_midi()
    assert [(m.numerator, m.denominator) for m in made.time_signature_changes][:1] == [(3, 4)]
    assert sum(len(i.notes) for i in made.instruments) == 6


def test_settings_that_cannot_be_are_refused(note_model: Annotator, note_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"layer=3 is not there; allowed: 0 \(embeddings\) to 2, or -1 to -3"):
        note_model.embed([SHORT], layer=3)
    with pytest.raises(ValueError, match="pool='max' is not possible; allowed: 'mean', None"):
        note_model.embed([SHORT], pool="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision='fp16' is not possible; allowed: 'fp32', 'bf16'"):
        mb.load(note_folder, "cpu", precision="fp16")
    with pytest.raises(ValueError, match="overlap=1 is not possible; allowed: 0 to below 1"):
        mb.load(note_folder, "cpu", overlap=1)


def test_less_precision_gives_nearly_the_same(note_folder: Path, note_model: Annotator, songs: list[Path]) -> None:
    rough = mb.load(note_folder, "cpu", precision="bf16").annotate(songs[0]).scores
    np.testing.assert_allclose(rough, note_model.annotate(songs[0]).scores, atol=0.02)


def test_bad_input_is_told_in_one_sentence(note_model: Annotator, make_model: MakeModel, tmp_path: Path) -> None:
    empty = midi_file([message("control_change", 0, control=64, value=127)])
    with pytest.raises(MidiError, match=r"^no notes$"):
        note_model.annotate(empty)
    with pytest.raises(MidiError, match=r"^no notes left \(dropped: 1 pitch out of range\)$"):
        note_model.annotate(midi_file([*note(10, 480)]))
    with pytest.raises(MidiError, match=r"^no notes$"):
        note_model.annotate(pretty_midi.PrettyMIDI())
    with pytest.raises(MidiError, match=r"^no notes$"):
        note_model.annotate(symusic.Score(480))
    text = tmp_path / "song.mid"
    text.write_bytes(b"hello")
    with pytest.raises(MidiError, match=r"song.mid: not a MIDI file: it begins with 'hell', not 'MThd'"):
        note_model.annotate(text)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        note_model.annotate("nowhere.mid")
    with pytest.raises(TypeError, match="a dict is no piece of music; give a path, the bytes"):
        note_model.annotate({})  # type: ignore[arg-type]
    late = pretty_midi.PrettyMIDI()
    late.instruments = [pretty_midi.Instrument(0)]
    late.instruments[0].notes = [pretty_midi.Note(80, 60, -1, 1)]
    with pytest.raises(MidiError, match="a note has the onset -1; allowed are 0 to inf"):
        note_model.annotate(late)
    encoder = mb.load(make_model("encoder"), "cpu")
    with pytest.raises(
        ValueError, match=r"\(MidiBertModel\) is an encoder: it has no head, .* embed it, or fine-tune it"
    ):
        encoder.annotate(SHORT)
    assert encoder.embed([SHORT]).shape == (1, 32)  # type: ignore[union-attr]


def test_remarks_say_how_a_piece_was_read(note_model: Annotator) -> None:
    off = midi_file([event for k in range(40) for event in note(60 + k % 12, 97, time=61)])
    assert any("keep to no beat of the file" in text for text in note_model.annotate(off).remarks)
    piano = midi_file([event for k in range(5) for event in note(60 + k, 480, channel=9)])
    assert note_model.annotate(piano).remarks == ("The notes of the drum channel were read as piano.",)
    lengthless = midi_file([*note(60, 480), *note(64, 0)])
    assert note_model.annotate(lengthless).remarks == ("1 note-on event is no note: zero duration.",)
