"""The file that comes back: every event of the input as it was, notes in one track a label."""

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pretty_midi
import pytest

from midibert_ray.inference.annotator import Annotator

Events = dict[str, Any]


def events(midi: pretty_midi.PrettyMIDI) -> Events:
    """All that a file holds, but for its division into tracks."""
    kinds = {
        "notes": lambda i: [(n.start, n.end, n.pitch, n.velocity) for n in i.notes],
        "controls": lambda i: {(c.time, c.number, c.value) for c in i.control_changes},
        "bends": lambda i: {(b.time, b.pitch) for b in i.pitch_bends},
    }
    found: Events = {
        kind: sorted(
            {(i.program, i.is_drum, *row) for i in midi.instruments for row in read(i)}
            if kind != "notes"
            else [(i.program, i.is_drum, *row) for i in midi.instruments for row in read(i)]
        )
        for kind, read in kinds.items()
    }
    times, tempi = midi.get_tempo_changes()
    return found | {
        "resolution": midi.resolution,
        "tempi": list(zip(times.tolist(), tempi.tolist(), strict=True)),
        "metre": [(m.time, m.numerator, m.denominator) for m in midi.time_signature_changes],
        "keys": [(k.time, k.key_number) for k in midi.key_signature_changes],
        "lyrics": [(x.time, x.text) for x in midi.lyrics],
        "texts": [(x.time, x.text) for x in midi.text_events],
    }


def reread(midi: pretty_midi.PrettyMIDI) -> pretty_midi.PrettyMIDI:
    file = io.BytesIO()
    midi.write(file)
    return pretty_midi.PrettyMIDI(io.BytesIO(file.getvalue()))


def check(model: Annotator, path: Path) -> None:
    """A row for each note that pretty_midi reads, and its events in what comes back, also from a file."""
    given = pretty_midi.PrettyMIDI(str(path))
    song = model.annotate(path)
    rows, there = song.notes, events(given)
    columns = rows[["program", "is_drum", "onset_s", "offset_s", "pitch", "velocity"]]
    # Notes that are never released are none to pretty_midi, and last to the end of their track for us.
    assert len(rows) >= len(there["notes"])
    assert set(there["notes"]) <= set(columns.itertuples(index=False, name=None))
    made = song.to_midi()
    if len(rows) > len(there["notes"]):
        there["notes"] = sorted(columns.itertuples(index=False, name=None))
    tempi = there.pop("tempi")
    found = events(made)
    np.testing.assert_allclose(found.pop("tempi"), tempi, rtol=1e-12)
    assert found == there
    exact = events(pretty_midi.PrettyMIDI(io.BytesIO(song.to_bytes())))
    assert exact["tempi"] == tempi and exact["metre"] == there["metre"]
    # pretty_midi itself writes 4/4 where there is no time signature.
    for written in (exact, events(reread(made))):
        np.testing.assert_allclose(np.array(written["notes"], float), np.array(there["notes"], float), atol=1e-9)
        for kind in ("controls", "bends", "keys", "lyrics", "texts"):
            assert [row[1:] for row in written[kind]] == [row[1:] for row in there[kind]], kind


def test_songs_come_back_with_all_their_events(note_model: Annotator, songs: list[Path]) -> None:
    for path in songs[:2]:
        check(note_model, path)


FOREIGN = {"asap-dataset": 60, "Pianist8/midi": 40, "EMOPIA_1.0/midis": 40, "Pop1K7/midi_synchronized": 30, "Solo": 23}


@pytest.mark.corpora
@pytest.mark.parametrize("folder", FOREIGN)
def test_foreign_files_come_back_with_all_their_events(note_model: Annotator, corpora_root: Path, folder: str) -> None:
    """Scores and performances of five publishers, of any length and metre: a fifth of 193 here."""
    files = sorted(path for path in (corpora_root / folder).rglob("*") if path.suffix in (".mid", ".midi"))
    for path in random.Random(5).sample(files, FOREIGN[folder] // 5):
        check(note_model, path)
