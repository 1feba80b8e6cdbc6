"""The plan of a job that applies a model to files: which, with what model, to where, and what of it is done."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from midibert_ray import storage
from midibert_ray.inference.annotator import Annotator
from midibert_ray.inference.inputs import Inputs, list_inputs
from midibert_ray.inference.load import MLFLOW, load
from midibert_ray.inference.state import OtherSettingsError, Record, State, is_of, shown
from midibert_ray.inference.worker import JobSpec
from midibert_ray.settings.shipped import is_shipped
from midibert_ray.settings.validators import ConfigError, require, require_address
from midibert_ray.tokenizing.listing import File

FORMAT_VERSION = 1
FILES, MANIFEST, STATE = "files.csv", "manifest.json", "_job"

_TOLD = ("formats", "abstain", "layer", "pool", "precision")
_TASKS, _MOST_BYTES = 1024, 4 << 20  # a task's files are read ahead


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a job: what is done and what is open."""

    spec: JobSpec
    settings: Mapping[str, Any]
    """The settings that decide the outputs."""
    inputs: Inputs
    done: Mapping[str, Record] = field(default_factory=dict, repr=False)
    """Records of files as they stand now."""
    is_complete: bool = False
    """True where nothing is left to do."""

    @property
    def open(self) -> dict[str, File]:
        """Files that are still to be done, sorted by name."""
        return {name: file for name, file in self.inputs.files.items() if name not in self.done}

    @property
    def table(self) -> str:
        """URI of the table of files."""
        if self.spec.kind == "annotate":
            return storage.join(self.spec.output, FILES)
        return _beside(self.spec.output, f".{FILES}")

    @property
    def last(self) -> str:
        """URI of the file that is written last."""
        return storage.join(self.spec.output, MANIFEST) if self.spec.kind == "annotate" else self.spec.output

    def tasks(self) -> Iterator[dict[str, File]]:
        """The open files of each task: few, so that all actors have work to the end, and bounded in bytes."""
        count, size = len(self.open), 0
        most = max(1, min(count // 32, 8), -(-count // _TASKS))
        task: dict[str, File] = {}
        for name, file in self.open.items():
            if task and (len(task) == most or size + file.size > _MOST_BYTES):
                yield task
                task, size = {}, 0
            task[name] = file
            size += file.size
        if task:
            yield task

    def describe(self) -> str:
        """The text of `--dry-run`."""
        size = sum(file.size for file in self.open.values())
        lines = [
            ("model", f"{storage.without_query(self.spec.model)} ({self.spec.digest})"),
            ("input", f"{storage.without_query(self.inputs.uri)}: {len(self.inputs.files):,} files of music"),
            ("done", f"{len(self.done):,}"),
            ("open", f"{len(self.open):,}, {size / 2**20:.1f} MiB"),
            ("output", storage.without_query(self.spec.output)),
        ]
        lines += [(key, shown(value)) for key, value in self.settings.items() if key in _TOLD]
        return "\n".join(f"{key:<8} {value}" for key, value in lines)


def plan(spec: JobSpec, source: str) -> Plan:
    """The plan of a job; `spec` as it was asked for, `source` names the input.

    Raises:
        ConfigError: for an address that cannot be used, an output that another job has written, and a model without a
            head for `annotate`.
        FileNotFoundError: where there is no such model or input; ValueError for a folder without music.
        ModelFileError: for a damaged model.
    """
    require(bool(spec.model), "model", spec.model, "the folder of a model, such as model=exports/melody")
    ending = ".parquet" if spec.kind == "embed" else ""
    named = bool(spec.output) and spec.output.split("?")[0].endswith(ending)
    require(named, "output", spec.output, "a file, output=embeddings.parquet" if ending else "a folder, output=OUT")
    require_address("output", spec.output)
    storage.require_bucket("output", spec.output)
    inputs = list_inputs(source)
    # Where the package lies on a node, only that node knows.
    by_name = spec.model.startswith(MLFLOW) or is_shipped(spec.model)
    model = spec.model if by_name else storage.resolve(spec.model)
    digest = _check_model(spec, model)
    output = storage.resolve(spec.output)
    state = storage.join(output, STATE) if spec.kind == "annotate" else _beside(output, ".job")
    made = replace(spec, model=model, digest=digest, inputs=inputs.uri, output=output, state=state)
    settings = _settings(made, inputs)
    _check_output(made, settings, inputs)
    return look(Plan(spec=made, settings=settings, inputs=inputs))


def look(made: Plan) -> Plan:
    """The same plan with what is done by now."""
    files, state, stands = made.inputs.files, State(made.spec.state), storage.exists(made.last)
    records = state.records(made=made.spec.kind == "annotate" or stands)
    done = {name: row for name, row in current(records, made.inputs).items() if not row["may_pass"]}
    closed = state.is_closed and {row["file"] for row in records} == done.keys() == files.keys()
    return replace(made, done=done, is_complete=closed and stands)


def _beside(output: str, ending: str) -> str:
    """The URI of something that belongs to an output file, `embeddings.parquet` -> `embeddings<ending>`."""
    base = storage.without_query(output)
    return base.removesuffix(".parquet") + ending + output[len(base) :]


def _check_model(spec: JobSpec, model: str) -> str:
    """The digest of a model that can do the spec."""
    annotator = load(model, device="cpu")
    if spec.kind == "annotate" and annotator.level is None:
        raise ConfigError(
            f"model={storage.without_query(model)} is an encoder and has no head; embed it (midibert embed), or "
            "fine-tune it (midibert study) and annotate with the trial's export"
        )
    if spec.kind == "embed":
        count = annotator.config.num_hidden_layers + 1
        require(-count <= spec.layer < count, "layer", spec.layer, f"0 (embeddings) to {count - 1}, or -1 to {-count}")
    return model_digest(annotator)


def model_digest(annotator: Annotator) -> str:
    """Twelve hex digits that tell models apart: of weights, configuration and calibration."""
    found = hashlib.sha256(json.dumps(annotator.config.to_diff_dict(), sort_keys=True, default=str).encode())
    found.update(repr(annotator.calibration).encode())
    for name, tensor in sorted(annotator.model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return found.hexdigest()[:12]


def _settings(spec: JobSpec, inputs: Inputs) -> dict[str, Any]:
    own: dict[str, Any] = {"formats": list(spec.formats), "abstain": spec.abstain}
    if spec.kind == "embed":
        own = {"layer": spec.layer, "pool": spec.pool}
    named = storage.join(inputs.uri, *inputs.files) if inputs.alone else inputs.uri
    settings = {"job": spec.kind, "model": spec.digest, "input": storage.without_query(named), **own}
    return {**settings, "precision": spec.precision, "version": FORMAT_VERSION}


def _check_output(spec: JobSpec, settings: Mapping[str, Any], inputs: Inputs) -> None:
    """Refuse an output that is somebody else's, or would be read as music the next time."""
    shown, state = storage.without_query(spec.output), State(spec.state)
    if spec.kind == "annotate" and not inputs.alone and f"{shown}/".startswith(f"{storage.without_query(inputs.uri)}/"):
        raise OtherSettingsError(
            f"output={shown} lies in the folder of the input, where its files would be read as music the next "
            "time; name a folder outside"
        )
    state.require(settings, spec.output)
    there = storage.exists(spec.output) if spec.kind == "embed" else {*storage.names(spec.output)} - {STATE}
    if there and state.settings() is None:
        raise OtherSettingsError(f"output={shown} holds what no such job has written; name a new one")


def current(records: Sequence[Record], inputs: Inputs) -> dict[str, Record]:
    """The records of files as they stand now, by name; final ones before those whose reason may pass."""
    files = inputs.files
    fitting = [row for row in records if row["file"] in files and is_of(row, files[row["file"]])]
    return {row["file"]: row for row in sorted(fitting, key=lambda row: (row["file"], not row["may_pass"]))}
