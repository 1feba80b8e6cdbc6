"""The authors' melody tool as they run it, for annotate.py: MIDI file -> MIDI file of the notes that are melody.

    ENVIRONMENT/bin/python benchmarks/peer_melody.py --layers 4 --hidden 256 --heads 4 --feed-forward 1024 < FILES.json

Runs where `transformers==4.40.2`, `miditoolkit==0.1.14` and torch are, takes a JSON list of files on standard input,
and prints one line of JSON: seconds of each file, seconds of these in the model, and notes. What is repeated here is
how the authors' code works: every note looks for its place on the whole grid, every bar looks through all notes,
events are objects, a piece's chunks of 512 are one padded batch, and dropout stays on.
"""

import argparse
import io
import json
import sys
from typing import Any, NamedTuple

import numpy as np
import torch

np.int = int  # which numpy had when miditoolkit 0.1.14 was written
import miditoolkit  # noqa: E402
from harness import clock  # noqa: E402
from peer_authors import PAD, Authors  # noqa: E402
from torch import Tensor, nn  # noqa: E402

BEAT, BAR, STEP, LENGTH = 480, 1920, 120, 512
DURATIONS = np.arange(60, 3841, 60)
VELOCITIES = np.linspace(0, 128, 33, dtype=int)
TEMPI = np.linspace(30, 210, 60, dtype=int)


class Event(NamedTuple):
    """One property of a note, as their code passes it on."""

    name: str
    value: Any


class Melody(nn.Module):
    """Their encoder with the head of note-level tasks."""

    def __init__(self, *, hidden: int, **shape: int) -> None:
        super().__init__()
        self.encoder = Authors(hidden=hidden, length=LENGTH, **shape)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(hidden, 256), nn.ReLU(), nn.Linear(256, 4))

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """tokens: int64 [b, t, 4]; attention_mask: float [b, t] -> logits float [b, t, 4]."""
        encoder = self.encoder
        looked_up = [table(tokens[..., column]) * 16 for column, table in enumerate(encoder.tables)]
        embedded = encoder.projection(torch.cat(looked_up, dim=-1))
        output = encoder.bert(inputs_embeds=embedded, attention_mask=attention_mask, output_hidden_states=True)
        return self.head(output.hidden_states[-1])


def read(midi: miditoolkit.MidiFile) -> list[Any]:
    """Notes of all tracks by onset, moved to the grid one by one."""
    notes = []
    for instrument in midi.instruments:
        notes += sorted(instrument.notes, key=lambda note: (note.start, note.pitch))
    notes.sort(key=lambda note: note.start)
    grid = np.arange(0, notes[-1].start, STEP)
    for note in notes:
        moved = int(grid[np.argmin(abs(grid - note.start))]) - note.start
        note.start, note.end = note.start + moved, note.end + moved
    return notes


def events(notes: list[Any], tempo: float) -> list[list[Event]]:
    """The events of each note, bar by bar."""
    found = []
    for start in range(0, notes[-1].end, BAR):
        inside = [note for note in notes if start <= note.start < start + BAR]
        places = np.linspace(start, start + BAR, 16, endpoint=False, dtype=int)
        for number, note in enumerate(inside):
            index = int(np.argmin(abs(places - note.start)))
            length = int(np.argmin(abs(DURATIONS - (note.end - note.start))))
            velocity = int(np.searchsorted(VELOCITIES, note.velocity, side="right")) - 1
            nearest = int(TEMPI[np.argmin(abs(TEMPI - tempo))])
            found.append(
                [
                    Event("Bar", "New" if number == 0 else "Continue"),
                    Event("Position", f"{index + 1}/16"),
                    Event("Pitch", note.pitch),
                    Event("Duration", length),
                    Event("Velocity", velocity),
                    Event("Tempo", nearest),
                ]
            )
    return found


VOCABULARY: list[dict[Any, int]] = [
    {"New": 0, "Continue": 1},
    {f"{number + 1}/16": number for number in range(16)},
    {pitch: pitch - 22 for pitch in range(22, 108)},
    {number: number for number in range(64)},
]


def words(found: list[list[Event]]) -> Tensor:
    """Chunks of 512, the last one padded: int64 [b, 512, 4]."""
    rows = [[VOCABULARY[column][note[column].value] for column in range(4)] for note in found]
    rows += [PAD] * (-len(rows) % LENGTH)
    return torch.tensor(np.array(rows).reshape(-1, LENGTH, 4))


def written(found: list[list[Event]], classes: list[int]) -> bytes:
    """A MIDI file of the notes that are melody or bridge."""
    midi, bar = miditoolkit.MidiFile(), 0
    track = miditoolkit.Instrument(0, is_drum=False, name="melody")
    for note, answer in zip(found, classes, strict=True):
        bar += note[0].value == "New"
        if answer not in (1, 2):
            continue
        start = bar * BAR + (int(note[1].value.split("/")[0]) - 1) * STEP
        velocity = int(VELOCITIES[note[4].value])
        track.notes.append(miditoolkit.Note(velocity, note[2].value, start, start + int(DURATIONS[note[3].value])))
    midi.instruments.append(track)
    midi.dump(file=(content := io.BytesIO()))
    return content.getvalue()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 12), ("hidden", 768), ("heads", 12), ("feed-forward", 3072), ("threads", 2)):
        options.add_argument(f"--{name}", type=int, default=default)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model = Melody(**{name: getattr(given, name) for name in ("layers", "hidden", "heads", "feed_forward")}).train()
    answer: dict[str, list[float]] = {"seconds": [], "forward": [], "notes": []}
    now = clock(given.threads)
    for path in json.load(sys.stdin):
        start = now()
        midi = miditoolkit.MidiFile(path)
        found = events(read(midi), midi.tempo_changes[0].tempo)
        tokens = words(found)
        mask = (tokens != torch.tensor(PAD)).all(-1).float()
        before = now()
        with torch.no_grad():
            logits = model(tokens, mask)
        after = now()
        written(found, logits.argmax(-1).flatten().tolist()[: len(found)])
        answer["seconds"].append(now() - start)
        answer["forward"].append(after - before)
        answer["notes"].append(len(found))
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
