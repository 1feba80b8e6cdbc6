"""A piece with what a model says of it: a table of its notes, and the piece again with a track a label."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
import pretty_midi
from numpy.typing import NDArray

from midibert_ray.inference.sources import Song
from midibert_ray.music.events import ZERO_DURATION
from midibert_ray.music.grid import DRUM, OUT_OF_RANGE, GridNotes
from midibert_ray.music.midi import keep_tempi
from midibert_ray.music.tasks import TAG_MARK
from midibert_ray.music.writing import midi_bytes

UNLABELLED = "unlabelled"
"""Name of the track of notes without a label."""


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """A piece with a model's answers."""

    song: Song
    grid: GridNotes = field(repr=False)
    """The notes that the model saw; `source` leads to those of the song."""
    level: str
    """`note` or `sequence`."""
    classes: tuple[str, ...]
    """None where the answer is a number."""
    scores: NDArray[np.float32] = field(repr=False)
    """Probabilities of the classes: [len(grid), classes] (level `note`) or [classes] (`sequence`); or one number."""
    kind: str = "classes"
    """Of the answer: `classes`, one of which is right, or for pieces `tags`, of which several may be, or a `number`."""
    abstain: float = 0.0
    """Answers of a lower probability are left out."""
    favour: tuple[str, float] | None = None
    """A class, and the probability from which it is a note's label; None: the most probable class is, always."""
    remarks: tuple[str, ...] = ()
    """Sentences on how the piece was read."""
    unfamiliar: str = ""
    """A sentence where the piece is unlike the music that the model was trained on; empty where it is not, or where the
    model has no calibration to tell."""

    @cached_property
    def notes(self) -> pd.DataFrame:
        """A row for every note of the input, by onset, pitch and track.

        onset_s, offset_s: float, seconds. pitch, velocity: MIDI numbers. track: number of the instrument, from 0, with
        its name, program and is_drum. bar: from 1, a pickup and the pieces of bars longer than 4/4 counted. position:
        sixteenths from the start of the bar, from 0. label: the most probable class, or the one that is favoured (level
        `note`); it is empty where the model abstains or did not see the note. probability: of the label. unseen: why
        the model did not see the note, else empty.
        """
        song, grid, n = self.song, self.grid, len(self.song)
        tracks = [song.notes.tracks[k] for k in song.notes.track]
        table = {
            "onset_s": song.onset_s,
            "offset_s": song.offset_s,
            "pitch": song.notes.pitch.astype(np.int64),
            "velocity": song.notes.velocity.astype(np.int64),
            "track": song.notes.track.astype(np.int64),
            "instrument": [track.name for track in tracks],
            "program": [track.program for track in tracks],
            "is_drum": [track.is_drum for track in tracks],
            "bar": _spread(grid.source, grid.bar_number + 1, n),
            "position": _spread(grid.source, grid.onset - grid.bar, n),
        }
        if self.level == "note":
            table["label"] = np.array([*self.classes, ""], dtype=object)[self._labels]
            table["probability"] = np.full(n, np.nan, dtype=np.float32)
            table["probability"][grid.source] = self._probable
        table["unseen"] = self._reasons()
        return pd.DataFrame(table).iloc[self.song.order].reset_index(drop=True)

    @property
    def label(self) -> str:
        """The class of the piece (level `sequence`); its tags as `sad;slow`; its number as text.

        Empty where the model abstains. Raises AttributeError where the model labels notes.
        """
        probabilities = self.probabilities
        if self.kind == "number":
            return f"{self.value:.6g}"
        if self.kind == "tags":
            return TAG_MARK.join(probabilities.index[probabilities >= max(0.5, self.abstain)])
        return str(probabilities.idxmax()) if probabilities.max() >= self.abstain else ""

    @property
    def value(self) -> float:
        """The number that a model of numbers gives the piece; AttributeError where the model gives none."""
        if self.kind != "number":
            raise AttributeError(f"the model answers in {self.kind}, not in numbers: look at `label`, or at `notes`")
        return float(self.scores[0])

    @cached_property
    def probabilities(self) -> pd.Series:
        """The probability of each class for the whole piece, float32 (level `sequence`); none where it is a number.

        Raises:
            AttributeError: the model labels notes.
        """
        if self.level != "sequence":
            raise AttributeError("the model labels notes, not pieces: look at `notes` and `note_probabilities`")
        return pd.Series(self.scores[: len(self.classes)], index=list(self.classes), name="probability")

    @cached_property
    def note_probabilities(self) -> pd.DataFrame:
        """The probability of each class for each row of `notes` (level `note`); not a number for notes not seen.

        Raises:
            AttributeError: the model labels pieces.
        """
        if self.level != "note":
            raise AttributeError("the model labels pieces, not notes: look at `label` and `probabilities`")
        values = np.full((len(self.song), len(self.classes)), np.nan, dtype=np.float32)
        values[self.grid.source] = self.scores
        return pd.DataFrame(values[self.song.order], columns=list(self.classes))

    @cached_property
    def answers(self) -> NDArray[np.int64]:
        """The class of each note that the model saw, int64 [len(grid)], whether or not it abstains (level `note`)."""
        if self.favour is None:
            return self.scores.argmax(axis=1)
        name, least = self.favour
        column = self.classes.index(name)
        rest = self.scores.copy()
        rest[:, column] = -1
        return np.where(self.scores[:, column] >= least, column, rest.argmax(axis=1))

    def to_midi(self) -> pretty_midi.PrettyMIDI:
        """The piece with all its events, its notes in one track a label (and instrument, where there are several).

        Each track has the program, controllers and bends of the instrument that its notes came from, so that it sounds
        as before. Of a piece with one label as a whole, the tracks stay.
        """
        song, midi = self.song, self.song.frame()
        groups = [(name, self._labels == number) for number, name in enumerate((*self.classes, UNLABELLED))]
        if self.level != "note":
            groups = [("", np.ones(len(song), dtype=bool))]
        several = len(song.notes.tracks) > 1
        made = []
        for track, frame in enumerate(midi.instruments[: len(song.notes.tracks)]):
            for label, chosen in groups:
                rows = np.flatnonzero(chosen & (song.notes.track == track))
                if len(rows):
                    instrument = copy.copy(frame)
                    instrument.name = " ".join(filter(None, (frame.name if several or not label else "", label)))
                    instrument.notes = self._notes_of(rows)
                    made.append(instrument)
        keep_tempi(midi)
        midi.instruments = made + midi.instruments[len(song.notes.tracks) :]
        return midi

    def to_bytes(self) -> bytes:
        """`to_midi` as the bytes of a file."""
        return midi_bytes(self.to_midi())

    def to_html(self) -> str:
        """A page of HTML to look at and listen to, complete in itself."""
        from midibert_ray.inference.page import render

        return render(self)

    def _repr_html_(self) -> str:
        head = self.song.name or "a piece"
        said = [*([self.unfamiliar] if self.unfamiliar else []), *self.remarks]
        if self.level == "sequence":
            table, what = self.probabilities.to_frame(), self.label or "no label is probable enough"
        else:
            table = self.notes["label"].replace("", UNLABELLED).value_counts().to_frame("notes")
            what = f"{len(self.song):,} notes"
        lines = "".join(f"<p>{text}</p>" for text in map(_escaped, said))
        return f"<h4>{_escaped(head)}: {_escaped(what)}</h4>{lines}{table.to_html()}"

    @cached_property
    def _labels(self) -> NDArray[np.int64]:
        """[n] classes of the song's notes; the number behind the last where there is none."""
        labels = np.full(len(self.song), len(self.classes), dtype=np.int64)
        if self.level == "note":
            sure = self._probable >= self.abstain
            labels[self.grid.source[sure]] = self.answers[sure]
        return labels

    @property
    def _probable(self) -> NDArray[np.float32]:
        """[len(grid)] probabilities of the answers."""
        return np.take_along_axis(self.scores, self.answers[:, None], axis=1)[:, 0]

    def _reasons(self) -> NDArray[np.object_]:
        notes = self.song.notes
        drums = np.array([track.is_drum for track in notes.tracks])[notes.track] & (DRUM in self.grid.dropped)
        reasons = np.where(drums, DRUM, OUT_OF_RANGE).astype(object)
        reasons[notes.end <= notes.start] = ZERO_DURATION
        reasons[self.grid.source] = ""
        return reasons

    def _notes_of(self, rows: NDArray[np.int64]) -> list[pretty_midi.Note]:
        song = self.song
        columns: Sequence[NDArray] = (song.notes.velocity, song.notes.pitch, song.onset_s, song.offset_s)
        return [pretty_midi.Note(*row) for row in zip(*(column[rows].tolist() for column in columns), strict=True)]


def _spread(source: NDArray[np.int64], values: NDArray, n: int) -> pd.api.extensions.ExtensionArray:
    """Values of the seen notes as a column of all n; nothing where a note was not seen."""
    column = pd.array([pd.NA] * n, dtype="Int64")
    column[source] = values.astype(np.int64)
    return column


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
