"""Tiny models of every kind, with random weights, as folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import midibert_ray as mb
from midibert_ray.inference.annotator import Annotator
from midibert_ray.model.folder import save_export
from midibert_ray.model.heads import MidiBertForNotes, MidiBertForSequences
from midibert_ray.model.midibert import MidiBertConfig, MidiBertModel

KINDS: dict[str, Any] = {"note": MidiBertForNotes, "sequence": MidiBertForSequences, "encoder": MidiBertModel}
CLASSES = {"note": ("melody", "bridge", "accompaniment"), "sequence": ("Q1", "Q2", "Q3", "Q4"), "encoder": ()}

MakeModel = Callable[..., Path]


def write_model(
    folder: Path, kind: str = "note", classes: tuple[str, ...] = (), answers: str = "classes", **config: Any
) -> Path:
    """A folder as an export is one."""
    torch.manual_seed(3)
    names = classes or CLASSES[kind]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    made = MidiBertConfig(
        **{"max_length": 64, "num_classes": len(names) or None, "protocol": {"name": "clean"}} | sizes | config
    )
    if names:
        made.name_classes(names, answers)
    return save_export(KINDS[kind](made), folder)


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    count = iter(range(100))
    return lambda kind="note", **config: write_model(tmp_path / f"model-{next(count)}", kind, **config)


@pytest.fixture(scope="session")
def note_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "note")


@pytest.fixture(scope="session")
def note_model(note_folder: Path) -> Annotator:
    return mb.load(note_folder, device="cpu")


@pytest.fixture(scope="session")
def sequence_model(tmp_path_factory: pytest.TempPathFactory) -> Annotator:
    return mb.load(write_model(tmp_path_factory.mktemp("models") / "sequence", "sequence"), device="cpu")


@pytest.fixture(scope="session")
def songs() -> list[Path]:
    """Files of the sample, by name."""
    import midibert_ray

    return sorted(Path(midibert_ray.__file__).parent.glob("corpora/sample/POP909/*/*.mid"))
