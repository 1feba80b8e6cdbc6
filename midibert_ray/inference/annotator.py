"""A trained model applied to whole pieces.

Windows of one piece are computed together, and those of different pieces never: so a result depends on nothing but the
piece and the model, down to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from midibert_ray.inference import windows
from midibert_ray.inference.annotation import Annotation
from midibert_ray.inference.sources import Song, Source, read_song
from midibert_ray.model.calibration import FAMILIAR, Calibration, softmax
from midibert_ray.model.heads import MidiBertForNotes, MidiBertForSequences
from midibert_ray.model.midibert import PROBLEMS, MidiBertConfig, MidiBertModel, MidiBertPreTrainedModel
from midibert_ray.music.events import ZERO_DURATION
from midibert_ray.music.grid import DRUM_CHANNEL_PIANO, OFF_GRID, GridNotes, quantize
from midibert_ray.music.protocol import Protocol
from midibert_ray.music.smf import NoNotesError
from midibert_ray.music.tokens import encode, remi_from_cp

PADDING = "padding"
"""Name of the first output of note-level heads under the protocol of the paper."""

_KINDS = {problem: kind for kind, problem in PROBLEMS.items()}
_ROWS = {"cpu": 4, "cuda": 32}
"""Windows that are computed at once."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A piece as a model reads it."""

    song: Song
    grid: GridNotes
    ids: NDArray[np.int64]
    """[steps, 4] (CP) or [steps] (REMI)."""
    note_at: NDArray[np.int64]
    """[n] the time step of each note of the grid; REMI: of its Pitch."""


def protocol_of(config: MidiBertConfig) -> Protocol:
    """The protocol that a model was trained under, with the repairs of reading files that change no token's meaning.

    Models that do not say it are of the paper's where they have a class for padding, else clean.
    """
    trained = Protocol.from_dict(config.protocol or {"name": "paper" if _has_padding(config) else "clean"})
    return replace(trained, ticks_per_beat="file", keeps_unreleased=True, drops_drums=True, shifts_last_onset=False)


def _has_padding(config: MidiBertConfig) -> bool:
    named: Any = config.id2label or {}
    return bool(named.get(0) == PADDING)


class Annotator:
    """A model, ready for anybody's music; `midibert_ray.load` opens one."""

    def __init__(
        self,
        model: MidiBertPreTrainedModel,
        *,
        device: str | torch.device | None = None,
        calibration: Calibration | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        overlap: float = windows.OVERLAP,
    ) -> None:
        """Put a model on a device.

        Args:
            model: an encoder or a fine-tuned model.
            device: None takes a GPU where there is one.
            calibration: None takes probabilities as they come, and no piece for unlike the training music.
            precision: of the model's arithmetic; `bf16` is faster and rounds probabilities to some two digits.
            overlap: share of a window that the next one sees again, 0 to below 1: more is more context, and slower.

        Raises:
            ValueError: another precision or overlap.
        """
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision={precision!r} is not possible; allowed: 'fp32', 'bf16'")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap={overlap} is not possible; allowed: 0 to below 1")
        self.precision, self.overlap = precision, overlap
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model: Any = model.eval().to(self.device)
        config: Any = model.config
        self.config: MidiBertConfig = config
        self.calibration = calibration
        self.protocol = protocol_of(self.config)
        levels: dict[type, Literal["note", "sequence"]] = {MidiBertForNotes: "note", MidiBertForSequences: "sequence"}
        self.level = levels.get(type(model))
        """`note`, `sequence`, or None for an encoder."""
        self.kind = _KINDS.get(self.config.problem_type, "classes")
        """Of the answers: see `Annotation.kind`."""
        named: Any = self.config.id2label or {}
        names = [str(named.get(k, k)) for k in range(self.config.num_classes or 0)] if self.level else []
        self._skipped = int(self.level == "note" and _has_padding(self.config))
        self.classes = () if self.kind == "number" else tuple(names[self._skipped :])
        """Names of the classes, without padding; none where answers are numbers."""
        self.encoder: MidiBertModel = model if isinstance(model, MidiBertModel) else self.model.midibert

    def annotate(self, source: Source | Song, *, abstain: float = 0.0) -> Annotation:
        """Labels of a piece.

        Args:
            source: a path, the bytes of a MIDI file, a `pretty_midi.PrettyMIDI`, a symusic `Score`, or a `Song`.
            abstain: labels of a lower probability are left out.

        Raises:
            ValueError: the model has no head, or `abstain` is no probability.
            MidiError: the piece cannot be used, or has no notes; FileNotFoundError, TypeError: see `read_song`.
        """
        if self.level is None:
            raise ValueError(
                f"this model ({type(self.model).__name__}) is an encoder: it has no head, and no labels to give; embed "
                "it, or fine-tune it"
            )
        if not 0 <= abstain <= 1:
            raise ValueError(f"abstain={abstain} is not possible; allowed: a probability, 0 to 1")
        reading = self.read(source)
        logits, hidden = self._answers(reading)
        favour = self.calibration and self.calibration.favour
        return Annotation(
            song=reading.song,
            grid=reading.grid,
            level=self.level,
            classes=self.classes,
            scores=self._scores(logits),
            kind=self.kind,
            abstain=abstain,
            favour=(favour.name, favour.least) if favour else None,
            remarks=_remarks(reading),
            unfamiliar=self._unfamiliar(hidden),
        )

    def annotate_many(self, sources: Iterable[Source | Song], *, abstain: float = 0.0) -> Iterator[Annotation]:
        """Labels of one piece after the other, as `annotate` gives them."""
        return (self.annotate(source, abstain=abstain) for source in sources)

    def embed(
        self, sources: Sequence[Source | Song], *, layer: int = -1, pool: Literal["mean"] | None = "mean"
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Hidden states of pieces.

        Args:
            sources: pieces, as for `annotate`.
            layer: as in transformers' `hidden_states`: 0 are the embeddings, -1 is the last layer.
            pool: `mean`: over the notes of the whole piece; None: each note.

        Returns:
            float32 [pieces, hidden], or with `pool=None` a list of float32 [notes, hidden], in the order of
            `Annotation.notes`; not a number for notes that the model cannot see.

        Raises:
            ValueError: there is no such layer or pool; MidiError and others as from `annotate`.
        """
        count = self.config.num_hidden_layers + 1
        if not -count <= layer < count:
            raise ValueError(f"layer={layer} is not there; allowed: 0 (embeddings) to {count - 1}, or -1 to {-count}")
        if pool not in ("mean", None):
            raise ValueError(f"pool={pool!r} is not possible; allowed: 'mean', None")
        given = sources if isinstance(sources, list | tuple) else [sources]
        if pool is None:
            return [self._every_note(reading, self._states(reading, layer)) for reading in map(self.read, given)]
        pooled = [_pooled(self._states(reading, layer)) for reading in map(self.read, given)]
        return np.array(pooled, dtype=np.float32).reshape(len(given), self.config.hidden_size)

    def read(self, source: Source | Song) -> Reading:
        """A piece as the model reads it: under its protocol, in its representation; errors as from `read_song`."""
        song = read_song(source)
        grid, ids, note_at = read_grid(song, self.config.representation, self.protocol)
        return Reading(song=song, grid=grid, ids=ids, note_at=note_at)

    def _every_note(self, reading: Reading, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values of the notes that were seen, for all notes of the song in the order of `Annotation.notes`."""
        rows = np.full((len(reading.song), values.shape[1]), np.nan, dtype=np.float32)
        rows[reading.grid.source] = values
        return rows[reading.song.order]

    def _answers(self, reading: Reading) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits [notes, classes] (level `note`) or [classes], and hidden states of the last layer, [notes, hidden].

        A piece's logits are the mean of its windows', weighted by their notes.
        """
        begins, (logits, states) = self._run(reading, self._label)
        hidden = windows.average(states, begins, len(reading.ids))[reading.note_at]
        if self.level == "note":
            return windows.average(logits, begins, len(reading.ids))[reading.note_at, self._skipped :], hidden
        at, ends = reading.note_at, begins + self.config.max_length
        notes = np.searchsorted(at, ends) - np.searchsorted(at, begins)
        return np.average(logits, axis=0, weights=notes).astype(np.float32), hidden

    def _label(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden = self.encoder(tokens, mask).last_hidden_state
        return self.model.head(hidden, *([mask] if self.level == "sequence" else [])), hidden

    def _states(self, reading: Reading, layer: int) -> NDArray[np.float32]:
        """Hidden states of the notes, [notes, hidden]."""

        def states(tokens: Tensor, mask: Tensor | None) -> tuple[Tensor]:
            return (self.encoder(tokens, mask, output_hidden_states=True).hidden_states[layer],)

        begins, (hidden,) = self._run(reading, states)
        return windows.average(hidden, begins, len(reading.ids))[reading.note_at]

    @torch.inference_mode()
    def _run(
        self, reading: Reading, compute: Callable[[Tensor, Tensor | None], tuple[Tensor, ...]]
    ) -> tuple[NDArray[np.int64], list[NDArray[np.float32]]]:
        """Where the windows of a piece begin, [windows], and what is computed of each, [windows, ...]."""
        begins = windows.starts(len(reading.ids), self.config.max_length, self.overlap)
        tokens, mask = self._inputs(reading, begins)
        rows = _ROWS.get(self.device.type, 8)
        results = []
        for start in range(0, len(tokens), rows):
            own = None if mask is None else mask[start : start + rows].to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                made = compute(tokens[start : start + rows].to(self.device), own)
            results.append([values.float().cpu().numpy() for values in made])
        return begins, [np.concatenate(parts) for parts in zip(*results, strict=True)]

    def _inputs(self, reading: Reading, begins: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """Tokens of windows, [windows, time, 4] or [windows, time], and their mask; None: all are attended to.

        There is no padding but for models that were trained to attend to it.
        """
        ids, length = reading.ids, self.config.max_length
        if self.level == "sequence" and self.protocol.attends_padding and len(ids) < length:
            padding = np.array(self.config.vocabulary.pad).reshape(1, *ids.shape[1:])
            ids = np.concatenate([ids, padding.repeat(length - len(ids), axis=0)])
        where = begins[:, None] + np.arange(min(length, len(ids)))
        mask = None
        if self.level == "note" and self.protocol.attends_labelled and len(ids) > len(reading.note_at):
            mask = torch.from_numpy(np.isin(where, reading.note_at))
        return torch.from_numpy(ids[where]), mask

    def _scores(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities, but of numbers, which are the model's output itself."""
        if self.kind == "number":
            return logits
        scaled = logits.astype(np.float64) / (self.calibration.temperature if self.calibration else 1.0)
        return (softmax(scaled) if self.kind == "classes" else 1 / (1 + np.exp(-scaled))).astype(np.float32)

    def _unfamiliar(self, hidden: NDArray[np.float32]) -> str:
        """A sentence, where the piece is unlike the training music; see `model.calibration`."""
        known = self.calibration and self.calibration.familiarity
        pooled = _pooled(hidden)
        if not known or known.knows(pooled):
            return ""
        return (
            f"This piece is unlike the music that the model was trained on (distance {known.distance(pooled):.2f}; "
            f"{FAMILIAR:.0%} of the validation pieces lie below {known.threshold:.2f}): its labels may mean little."
        )


def _pooled(hidden: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of hidden states [notes, hidden] over notes."""
    return hidden.mean(axis=0, dtype=np.float64).astype(np.float32)


def read_grid(
    song: Song, representation: str, protocol: Protocol
) -> tuple[GridNotes, NDArray[np.int64], NDArray[np.int64]]:
    """The notes of a piece that have a token, their ids, and the time step of each: see `Reading`.

    Raises:
        MidiError: there is no such note.
    """
    sounding = np.flatnonzero(song.notes.end > song.notes.start)
    if len(sounding) == 0:
        raise NoNotesError({ZERO_DURATION: len(song)})
    notes = song.notes if len(sounding) == len(song) else song.notes.take(sounding)
    grid = quantize(notes, protocol)
    grid = replace(grid, source=sounding[grid.source])
    cp = encode(grid).tokens
    if representation == "cp":
        return grid, cp.astype(np.int64), np.arange(len(cp))
    remi = remi_from_cp(cp)
    return grid, remi.ids.astype(np.int64), remi.pitch_at


def _remarks(reading: Reading) -> tuple[str, ...]:
    """Sentences on how a piece was read."""
    notes, remarks = reading.song.notes, dict(reading.grid.remarks)
    said = [
        f"{count:,} note-on event{'s are' if count > 1 else ' is'} no note: {reason}."
        for reason, count in notes.dropped.items()
    ]
    said += [f"{count:,} damaged event{'s' * (count > 1)} ignored: {kind}." for kind, count in notes.ignored.items()]
    if OFF_GRID in remarks:
        said.append(
            "The notes keep to no beat of the file, so that bars and positions say little: align it to beats first."
        )
    if DRUM_CHANNEL_PIANO in remarks:
        said.append("The notes of the drum channel were read as piano.")
    return tuple(said)
