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
from midibert_ray.model.heads import MidiBertForNotes, MidiBertForSequences
from midibert_ray.model.midibert import MidiBertConfig, MidiBertModel, MidiBertPreTrainedModel
from midibert_ray.music.events import ZERO_DURATION
from midibert_ray.music.grid import DRUM_CHANNEL_PIANO, OFF_GRID, GridNotes, quantize
from midibert_ray.music.protocol import Protocol
from midibert_ray.music.smf import NoNotesError
from midibert_ray.music.tokens import encode, remi_from_cp

PADDING = "padding"
"""Name of the first output of note-level heads under the protocol of the paper."""

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
    return bool((config.id2label or {}).get(0) == PADDING)


class Annotator:
    """A model, ready for anybody's music; `midibert_ray.load` opens one."""

    def __init__(
        self, model: MidiBertPreTrainedModel, *, device: str | torch.device | None = None, calibration: Any = None
    ) -> None:
        """Put a model on a device.

        Args:
            model: an encoder or a fine-tuned model.
            device: None takes a GPU where there is one.
            calibration: as `model.calibration` reads it from the model's folder, or None.
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model: Any = model.eval().to(self.device)  # type: ignore[arg-type]
        self.config: MidiBertConfig = model.config
        self.calibration = calibration
        self.protocol = protocol_of(self.config)
        levels: dict[type, Literal["note", "sequence"]] = {MidiBertForNotes: "note", MidiBertForSequences: "sequence"}
        self.level = levels.get(type(model))
        """`note`, `sequence`, or None for an encoder."""
        named = self.config.id2label or {}
        names = [str(named.get(k, k)) for k in range(self.config.num_classes or 0)] if self.level else []
        self._skipped = int(self.level == "note" and _has_padding(self.config))
        self.classes = tuple(names[self._skipped :])
        """Names of the classes, without padding."""
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
                f"this model ({type(self.model).__name__}) has no head, so it has no labels to give; embed it, or "
                "fine-tune it"
            )
        if not 0 <= abstain <= 1:
            raise ValueError(f"abstain={abstain} is not possible; allowed: a probability, 0 to 1")
        reading = self.read(source)
        logits = self._logits(reading)
        return Annotation(
            song=reading.song,
            grid=reading.grid,
            level=self.level,
            classes=self.classes,
            scores=_softmax(logits / self._temperature),
            abstain=abstain,
            remarks=_remarks(reading),
            unfamiliar=self._unfamiliar(reading, logits),
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
        states = (self._states(self.read(source), layer, pool) for source in given)
        if pool is None:
            return list(states)
        return np.stack([*states]) if given else np.zeros((0, self.config.hidden_size), dtype=np.float32)

    def read(self, source: Source | Song) -> Reading:
        """A piece as the model reads it: under its protocol, in its representation; errors as from `read_song`."""
        song = read_song(source)
        grid, ids, note_at = read_grid(song, self.config.representation, self.protocol)
        return Reading(song=song, grid=grid, ids=ids, note_at=note_at)

    @property
    def _temperature(self) -> float:
        return 1.0 if self.calibration is None else float(self.calibration.temperature)

    def _unfamiliar(self, reading: Reading, logits: NDArray[np.float32]) -> str:
        return ""

    def _logits(self, reading: Reading) -> NDArray[np.float32]:
        """[notes, classes] (level `note`) or [classes]."""
        if self.level == "sequence":
            values, begins = self._run(reading, lambda tokens, mask: self.model(tokens, mask)[:, None])
            ends = begins + self.config.max_length
            notes = np.searchsorted(reading.note_at, ends) - np.searchsorted(reading.note_at, begins)
            return np.asarray(np.average(values[:, 0], axis=0, weights=notes), dtype=np.float32)
        values, begins = self._run(reading, self.model)
        return windows.average(values, begins, len(reading.ids))[reading.note_at, self._skipped :]

    def _states(self, reading: Reading, layer: int, pool: str | None) -> NDArray[np.float32]:
        def states(tokens: Tensor, mask: Tensor | None) -> Tensor:
            return self.encoder(tokens, mask, output_hidden_states=True).hidden_states[layer]

        values, begins = self._run(reading, states)
        seen = windows.average(values[:, : len(reading.ids)], begins, len(reading.ids))[reading.note_at]
        if pool == "mean":
            return np.asarray(seen.mean(axis=0, dtype=np.float64), dtype=np.float32)
        song = reading.song
        rows = np.full((len(song), seen.shape[1]), np.nan, dtype=np.float32)
        rows[reading.grid.source] = seen
        return rows[np.lexsort((song.notes.track, song.notes.pitch, song.onset_s))]

    @torch.inference_mode()
    def _run(
        self, reading: Reading, compute: Callable[[Tensor, Tensor | None], Tensor]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """What is computed of each window of a piece, [windows, ...], and where the windows begin, [windows]."""
        ids, length, protocol = reading.ids, self.config.max_length, self.protocol
        begins = windows.starts(len(ids), length)
        if self.level == "sequence" and protocol.attends_padding and len(ids) < length:
            padding = np.broadcast_to(np.array(self.config.vocabulary.pad), (length - len(ids), ids[0].size))
            ids = np.concatenate([ids, padding.reshape(-1, *ids.shape[1:])])
        length = min(length, len(ids))
        cut = ids[begins[:, None] + np.arange(length)]
        labelled = None
        if self.level == "note" and protocol.attends_labelled and len(ids) > len(reading.note_at):
            is_note = np.zeros(len(ids), dtype=bool)
            is_note[reading.note_at] = True
            labelled = is_note[begins[:, None] + np.arange(length)]
        results = []
        for start in range(0, len(cut), rows := _ROWS.get(self.device.type, 8)):
            tokens = torch.from_numpy(cut[start : start + rows]).to(self.device)
            mask = None if labelled is None else torch.from_numpy(labelled[start : start + rows]).to(self.device)
            results.append(compute(tokens, mask).float().cpu().numpy())
        return np.concatenate(results), begins


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


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True), dtype=np.float32)
