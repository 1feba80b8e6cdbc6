"""The duration of a study, estimated: every kind of step is measured here and now, then counted."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from midibert_ray.data.format import PIECE_SCHEMA, find_manifest
from midibert_ray.data.hashing import row_keys
from midibert_ray.data.store import TokenStore, open_store
from midibert_ray.settings.config import Config, StorageConfig
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.text import counted
from midibert_ray.studies.plan import PretrainingSpec, TrialSpec
from midibert_ray.tokenizing.labelling import LabelPlan
from midibert_ray.tokenizing.plan import CorpusPlan
from midibert_ray.training import build
from midibert_ray.training.finetune import Finetuning, new_model
from midibert_ray.training.pretrain import PretrainData
from midibert_ray.training.recipes import recipe
from midibert_ray.training.step import MaskedStep
from midibert_ray.training.task_data import TaskData

MEASURED = 2
"""Segments of the step that is measured."""
BYTES_A_NOTE, NOTES_A_BAR = 7.5, 16
"""Bytes of a MIDI file by note, and notes by bar, in the music that ships with the project."""
FORWARD = 1 / 3
"""Cost of a segment that is only scored, beside one that is learned from."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Device-hours at most, as early stops are not foreseen."""

    pretraining: Mapping[str, float]
    trials: Mapping[str, float]
    """Both by key."""
    device: str
    guessed: tuple[str, ...] = ()
    """Corpora whose tokens are not there yet: their notes follow from the sizes of their files."""

    def __str__(self) -> str:
        runs, trials = sum(self.pretraining.values()), sum(self.trials.values())
        guess = f" and the sizes of the files of {', '.join(self.guessed)} (no tokens yet)" if self.guessed else ""
        return (
            f"{runs + trials:,.2f} device-hours at most ({counted(len(self.pretraining), 'pre-trainings')} "
            f"{runs:,.2f}, {counted(len(self.trials), 'trials')} {trials:,.2f}), "
            f"by a step measured on {self.device}{guess}"
        )


def estimate(
    pretrainings: Mapping[str, PretrainingSpec],
    trials: Mapping[str, TrialSpec],
    corpora: Mapping[str, CorpusPlan | LabelPlan],
    *,
    threads: int,
) -> Estimate:
    """Measure one step of every kind on this machine, a fraction of a second to some seconds each, and count.

    Of corpora, by address of their token stores, that are not tokenized yet the sizes of files are counted. `threads`
    are those of a CPU, where there is no GPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(max(1, threads))
    meter = _Meter(device, corpora)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return Estimate(
        pretraining={key: meter.pretraining(run) / 3600 for key, run in pretrainings.items()},
        trials={key: meter.trial(entry) / 3600 for key, entry in trials.items()},
        device=name,
        guessed=tuple(sorted(meter.guessed)),
    )


class _Meter:
    """Seconds of runs and trials; each kind of step is measured once."""

    def __init__(self, device: torch.device, corpora: Mapping[str, CorpusPlan | LabelPlan]) -> None:
        self.device, self.corpora = device, corpora
        self.guessed: set[str] = set()
        self._seconds: dict[tuple[object, ...], float] = {}
        self._data: dict[tuple[object, ...], TaskData] = {}
        self._stores: dict[str, TokenStore] = {}

    def pretraining(self, run: PretrainingSpec) -> float:
        config = run.config
        data = PretrainData(config, [self._open(store, config.storage) for store in run.stores])
        kind = ("pretrain", config.model, config.tokens, config.compute.precision, config.pretrain.roll > 0)
        a_segment = self._segment(kind, lambda: _pretraining_step(config, data, self.device))
        validations = config.pretrain.epochs / config.pretrain.valid_every
        learned = data.steps(config.pretrain.epochs) * config.pretrain.batch
        return a_segment * (learned + FORWARD * validations * len(data.valid_rows))

    def trial(self, entry: TrialSpec) -> float:
        config, settings = entry.config, entry.config.finetune
        source = (*entry.stores, settings.task, config.model.representation, config.tokens.segment)
        read = (*source, settings.train_segments, settings.valid_segments)
        if read not in self._data:
            self._data[read] = entry.data(self._open)
        data = self._data[read]
        learns = (settings.model, settings.freeze, settings.freeze_layers, settings.head)
        kind = ("trial", *source, config.model, config.compute.precision, learns)
        a_segment = self._segment(kind, lambda: _trial_step(config, data, self.device))
        epochs = recipe(config, entry.task).epochs
        scored = sum(len(segments) for split, segments in data.splits.items() if split not in ("train", "valid"))
        return a_segment * (epochs * (len(data.learned) + FORWARD * len(data.validated)) + FORWARD * scored)

    def _open(self, uri: str, config: StorageConfig) -> TokenStore:
        """A store, once for all tasks that read it: to divide 200,000 labelled pieces takes seconds."""
        if uri not in self._stores:
            self._stores[uri] = self._opened(uri, config)
        return self._stores[uri]

    def _opened(self, uri: str, config: StorageConfig) -> TokenStore:
        if uri not in self.corpora or find_manifest(uri) is not None:
            return open_store(uri, config)
        plan = self.corpora[uri]
        tokens, rows = (plan.tokens, plan.table()) if isinstance(plan, LabelPlan) else (plan, None)
        self.guessed.add(tokens.corpus.name)
        return _GuessedStore(uri, tokens, rows)

    def _segment(self, kind: tuple[object, ...], step: Callable[[], None]) -> float:
        if kind not in self._seconds:
            for _ in range(2):  # the first is always slower
                begin = time.perf_counter()
                step()
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                self._seconds[kind] = (time.perf_counter() - begin) / MEASURED
        return self._seconds[kind]


class _GuessedStore(TokenStore):
    """A corpus as it will be once it is tokenized: its pieces, and about as many notes."""

    def __init__(self, uri: str, plan: CorpusPlan, labels: pa.Table | None) -> None:
        self.uri, self.manifest = uri, {"corpus": plan.corpus.name}
        notes = [max(1, int(plan.files[piece.files[0]].size / BYTES_A_NOTE)) for piece in plan.there]
        self.offsets = np.concatenate([[0], np.cumsum(notes)])
        self.bars = np.array([-(-count // NOTES_A_BAR) for count in notes], np.int32)
        total = int(self.offsets[-1])
        self.tokens, self.onset = np.zeros((total, 4), np.uint8), np.zeros(total, np.int32)
        self.velocity, self.part = np.full(total, 64, np.uint8), np.ones(total, np.uint8)
        rows = [{"piece": each.piece, "split": each.split, "label": each.label} for each in plan.there]
        self._pieces = labels or pa.Table.from_pylist(rows, schema=PIECE_SCHEMA)


def _pretraining_step(config: Config, data: PretrainData, device: torch.device) -> None:
    model = build.new_model(config).to(device)  # type: ignore[arg-type]  # transformers' wrapper confuses its own
    raw, step = data.train.gather(data.train_rows[np.arange(MEASURED) % len(data.train_rows)]), MaskedStep(config)
    keys = row_keys(config.seed, 0, 0, torch.arange(MEASURED))
    batch = step.batch(raw.tokens, raw.length, keys, notes=0, augmented=False).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.compute.precision == "bf16"):
        sums = step(model, batch, augmented=False)
        (sums["loss"] + sums.get("roll", 0.0)).backward()


def _trial_step(config: Config, data: TaskData, device: torch.device) -> None:
    scratch = replace(config, {"finetune.init": "scratch"})
    job = Finetuning(scratch, data, new_model(scratch, data, ""), device)
    job.model.train()
    job.learn(np.arange(MEASURED) % len(data.splits["train"]))
