"""Files of strangers, read and written in a child process: see `midibert_ray.tokenizing.sandbox`.

The child turns bytes into notes, and bytes and labels into the bytes of a MIDI file; this process never parses them.
No torch is imported here, so that a child is small.
"""

import dataclasses
from typing import Any, NoReturn

import numpy as np

from midibert_ray.inference.annotation import Annotation
from midibert_ray.inference.sources import Song, read_song
from midibert_ray.music.events import Track
from midibert_ray.music.grid import GridNotes, quantize
from midibert_ray.music.midi import Notes
from midibert_ray.music.protocol import Protocol
from midibert_ray.tokenizing.sandbox import Message, Sandbox
from midibert_ray.tokenizing.shard import UnusableError

HANDLER = "midibert_ray.inference.sandboxed:respond"
"""The function that the child calls, as module:function."""
TIME_LIMIT_S = 60.0
"""Wall time for reading or for writing one piece, seconds: pretty_midi takes 40 microseconds a note for each."""

_NOTE = {"start": np.int64, "end": np.int64, "pitch": np.uint8, "velocity": np.uint8, "track": np.int32}
_REST = {"tempo_ticks": np.int64, "seconds_per_tick": np.float64, "metre": np.int64}
_SECONDS = {"onset_s": np.float64, "offset_s": np.float64}
_COLUMNS: dict[str, Any] = {**_NOTE, **_REST, **_SECONDS}


class Reader:
    """A child that reads and writes the pieces of strangers; not to be shared by threads."""

    def __init__(self, protocol: Protocol) -> None:
        """A reader for models that read pieces under a protocol."""
        self._sandbox = Sandbox(handler=HANDLER, time_limit_s=TIME_LIMIT_S)
        self._protocol = protocol.to_dict()

    def start(self) -> None:
        """Start the child, without waiting until it is ready."""
        self._sandbox.start()

    def close(self) -> None:
        """End the child."""
        self._sandbox.close()

    def read(self, data: bytes, name: str) -> Song:
        """The piece in a MIDI file, without its `frame`.

        Raises:
            UnusableError: it cannot be read, or holds no note that a model could see.
        """
        header = {"do": "read", "name": name, "protocol": self._protocol}
        return self._ask((header, [data]), _unpack_song)

    def write(self, data: bytes, annotation: Annotation) -> bytes:
        """`Annotation.to_midi` of a piece that `read` gave, as the bytes of a file.

        Raises:
            UnusableError: it cannot be written.
        """
        header = {
            "do": "write",
            "level": annotation.level,
            "classes": annotation.classes,
            "abstain": annotation.abstain,
            "favour": annotation.favour,
        }
        source, scores = annotation.grid.source.astype(np.int64), annotation.scores.astype(np.float32)
        return self._ask((header, [data, source.tobytes(), scores.tobytes()]), _unpack_file)

    def _ask(self, message: Message, unpack: Any) -> Any:
        answer = self._sandbox.ask(message, unpack)
        if isinstance(answer, str):
            raise UnusableError(answer)
        return answer


def _unpack_song(header: dict[str, Any], blobs: list[bytes]) -> Song | str:
    if header["reason"] is not None:
        return str(header["reason"])
    columns: dict[str, Any] = {
        name: np.frombuffer(blob, dtype) for (name, dtype), blob in zip(_COLUMNS.items(), blobs, strict=True)
    }
    tracks = tuple(Track(**track) for track in header["tracks"])
    sizes = {len(columns[name]) for name in (*_NOTE, *_SECONDS)}
    if len(sizes) != 1 or not 0 <= columns["track"].min() <= columns["track"].max() < len(tracks):
        raise ValueError("columns of notes that do not fit together")
    counts: dict[str, Any] = {
        name: {str(reason): int(count) for reason, count in header[name].items()} for name in ("dropped", "ignored")
    }
    notes = Notes(
        **{name: columns[name] for name in (*_NOTE, *_REST)} | {"metre": columns["metre"].reshape(-1, 3)},
        tracks=tracks,
        ticks_per_beat=int(header["ticks_per_beat"]),
        **counts,
    )
    seconds = {name: columns[name] for name in _SECONDS}
    return Song(name=str(header["name"]), notes=notes, frame=_no_frame, **seconds)


def _unpack_file(header: dict[str, Any], blobs: list[bytes]) -> bytes | str:
    if header["reason"] is not None:
        return str(header["reason"])
    (content,) = blobs
    return content


def _no_frame() -> NoReturn:
    raise NotImplementedError("the file is read in a child process: `Reader.write` writes it")


# ------------------------------------------------------------------------------------------- in the child


def respond(header: dict[str, Any], blobs: list[bytes]) -> Message:
    """The child's answer to a message."""
    if header["do"] == "write":
        return {}, [_written(header, *blobs)]
    song = read_song(blobs[0], header["name"])
    notes = song.notes
    quantize(notes.take(np.flatnonzero(notes.end > notes.start)), Protocol.from_dict(header["protocol"]))
    columns = {name: getattr(notes, name) for name in (*_NOTE, *_REST)} | {
        name: getattr(song, name) for name in _SECONDS
    }
    answer = {
        "name": song.name,
        "tracks": [dataclasses.asdict(track) for track in notes.tracks],
        "ticks_per_beat": int(notes.ticks_per_beat),
        "dropped": {reason: int(count) for reason, count in notes.dropped.items()},
        "ignored": {kind: int(count) for kind, count in notes.ignored.items()},
    }
    return answer, [np.ascontiguousarray(columns[name], dtype).tobytes() for name, dtype in _COLUMNS.items()]


def _written(header: dict[str, Any], data: bytes, source: bytes, scores: bytes) -> bytes:
    """The piece with a track a label, as a MIDI file."""
    classes, seen = tuple(header["classes"]), np.frombuffer(source, np.int64)
    values = np.frombuffer(scores, np.float32)
    columns: dict[str, Any] = {item.name: np.zeros(0) for item in dataclasses.fields(GridNotes)}
    columns |= {"source": seen, "dropped": {}, "remarks": {}}
    annotation = Annotation(
        song=read_song(data),
        grid=GridNotes(**columns),
        level=header["level"],
        classes=classes,
        scores=values.reshape(-1, len(classes)) if header["level"] == "note" else values,
        abstain=header["abstain"],
        favour=header["favour"] and tuple(header["favour"]),
    )
    return annotation.to_bytes()
