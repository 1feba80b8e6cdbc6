"""The work of one actor: files in, outputs written, a record a file. Knows nothing of Ray.

While the model computes a piece, a thread reads the next one and another writes the last one, each with a child
process of its own.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from midibert_ray import storage
from midibert_ray.inference import formats
from midibert_ray.inference.annotation import Annotation
from midibert_ray.inference.load import load
from midibert_ray.inference.sandboxed import Reader
from midibert_ray.inference.sources import Song
from midibert_ray.inference.state import Record, State
from midibert_ray.music.smf import MidiError
from midibert_ray.tokenizing.listing import File
from midibert_ray.tokenizing.shard import UnusableError, read_file

_RECORD_S = 30.0  # work that is lost at most where an actor is killed


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """A job, as its actors know it."""

    kind: Literal["annotate", "embed"]
    model: str
    """URI."""
    digest: str = ""
    """Of the model; this and the next are the plan's to fill in."""
    inputs: str = ""
    """URI of the folder."""
    output: str
    """URI of the folder of outputs (`annotate`), or of the one file (`embed`)."""
    state: str = ""
    """URI of the folder of the job's state; the plan's to fill in."""
    formats: tuple[str, ...] = ()
    abstain: float = 0.0
    layer: int = -1
    pool: Literal["mean"] | None = "mean"
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the model."""
    threads: int = 1
    """Of torch, where there is no GPU."""
    gpus: float = 0
    """Share of a GPU; of its memory no more is taken."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of one file: columns of its record, and outputs by the ending of their name, or vectors."""

    columns: dict[str, Any]
    outputs: dict[str, bytes] = field(default_factory=dict)
    vectors: bytes = b""


Finish = Callable[[], Result]
"""Renders the outputs of a file, in the thread that writes them."""


class Worker:
    """A model, and two readers of files."""

    def __init__(self, spec: JobSpec) -> None:
        """Open the model of a job."""
        torch.set_num_threads(spec.threads)
        if 0 < spec.gpus < 1 and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(spec.gpus)
        self._spec = spec
        self._model = load(spec.model)
        if spec.precision == "bf16":
            self._model.model.to(torch.bfloat16)
        self._reads, self._writes = Reader(self._model.protocol), Reader(self._model.protocol)
        self._reads.start()
        self._state = State(spec.state)

    def close(self) -> None:
        """End the child processes."""
        self._reads.close()
        self._writes.close()

    def do(self, files: Mapping[str, File]) -> list[Record]:
        """Write the outputs of some files, and their records, and give these.

        Raises:
            FileNotFoundError: this machine does not see the folder of inputs or of outputs.
            OSError: for a problem of the storage; that of one file is a reason in its record.
        """
        for key, uri in (("input", self._spec.inputs), ("output", self._spec.state)):
            if storage.is_local(uri) and not Path(uri).is_dir():
                raise FileNotFoundError(f"{uri} is not on this node; {key} must be visible from every node")
        records: list[Record] = []
        pending: list[tuple[Record, bytes]] = []
        since = time.monotonic()
        for finished in self._finished(files):
            records.append(finished[0])
            pending.append(finished)
            if time.monotonic() - since > _RECORD_S or len(records) == len(files):
                made, vectors = zip(*pending, strict=True)
                self._state.add(made, vectors if self._spec.kind == "embed" else None)
                pending, since = [], time.monotonic()
        return records

    def _finished(self, files: Mapping[str, File]) -> Iterator[tuple[Record, bytes]]:
        """Records and vectors, file by file, once the outputs are written."""
        with ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(1) as writing:
            ahead: list[tuple[str, Future[Any]]] = [
                (name, reading.submit(self._read, name, files[name])) for name in files
            ]
            behind: list[Future[tuple[Record, bytes]]] = []
            for name, future in ahead:
                behind.append(writing.submit(self._write, name, files[name], self._compute(name, future)))
                if len(behind) > 2:  # outputs that wait are held in memory
                    yield behind.pop(0).result()
            for waiting in behind:
                yield waiting.result()

    def _read(self, name: str, file: File) -> tuple[bytes, Song]:
        data = read_file(self._spec.inputs, name, file)
        return data, self._reads.read(data, Path(name).stem)

    def _compute(self, name: str, read: "Future[tuple[bytes, Song]]") -> Finish:
        """Apply the model; what is left to do is given, the reason where a file gives nothing included."""
        try:
            data, song = read.result()
            if self._spec.kind == "embed":
                return self._embedded(song)
            annotation = self._model.annotate(song, abstain=self._spec.abstain)
        except UnusableError as error:
            return _nothing(str(error), may_pass=error.may_pass)
        except MidiError as error:
            return _nothing(str(error))
        return lambda: self._rendered(name, data, annotation)

    def _embedded(self, song: Song) -> Finish:
        (vectors,) = self._model.embed([song], layer=self._spec.layer, pool=self._spec.pool)
        content = np.ascontiguousarray(vectors, dtype=np.float32).tobytes()
        return lambda: Result(columns={"notes": len(song)}, vectors=content)

    def _rendered(self, name: str, data: bytes, annotation: Annotation) -> Result:
        spec = self._spec
        try:
            outputs = formats.render(
                annotation,
                spec.formats,
                name=name,
                model=spec.digest,
                midi=lambda: self._writes.write(data, annotation),
            )
        except UnusableError as error:
            return Result(columns={"reason": f"it can be read but not be written again: {error}"})
        return Result(columns=_columns(annotation), outputs=outputs)

    def _write(self, name: str, file: File, finish: Finish) -> tuple[Record, bytes]:
        result = finish()
        digest = hashlib.sha256(result.vectors)
        for ending, content in result.outputs.items():
            storage.write_bytes(storage.join(self._spec.output, name + ending), content)
            digest.update(content)
        made = not result.columns.get("reason")
        nothing = Record(
            file=name,
            size=file.size,
            mtime_ns=-1 if file.mtime_ns is None else file.mtime_ns,
            notes=0,
            unseen=0,
            label="",
            probability=0.0,
            labels="{}",
            remark="",
            reason="",
            may_pass=False,
            digest=digest.hexdigest() if made else "",
        )
        return Record(**{**nothing, **result.columns}), result.vectors  # type: ignore[typeddict-item]


def _nothing(reason: str, *, may_pass: bool = False) -> Finish:
    return lambda: Result(columns={"reason": reason, "may_pass": may_pass})


def _columns(annotation: Annotation) -> dict[str, Any]:
    """The columns of a record that tell of an annotation."""
    notes = annotation.notes
    columns: dict[str, Any] = {
        "notes": len(notes),
        "unseen": int((notes["unseen"] != "").sum()),
        "remark": " ".join(filter(None, (annotation.unfamiliar, *annotation.remarks))),
    }
    if annotation.level == "note":
        counts = notes["label"].value_counts()
        return columns | {"labels": json.dumps({label: int(counts.get(label, 0)) for label in annotation.classes})}
    highest = annotation.probabilities.max() if annotation.classes else math.nan  # a number has none
    return columns | {"label": annotation.label, "probability": round(float(highest), 6)}
