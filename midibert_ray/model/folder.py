"""Weights in and out: folders of ours into models, models into Hugging Face folders."""

import json
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from midibert_ray.model.heads import MidiBertForNotes, MidiBertForSequences
from midibert_ray.model.midibert import MidiBertForMaskedLM, MidiBertModel, MidiBertPreTrainedModel

_KINDS = (MidiBertModel, MidiBertForMaskedLM, MidiBertForNotes, MidiBertForSequences)
_CLASSES: dict[str, type[MidiBertPreTrainedModel]] = {kind.__name__: kind for kind in _KINDS}

WEIGHT_FILES = ("config.json", "model.safetensors")
"""Files that a folder must hold to be opened as a model."""

VOCABULARY = "vocabulary.json"


class ModelFileError(ValueError):
    """A file or folder that holds no model of ours or the authors'; the message names it and the problem."""


class OutputError(ValueError):
    """A folder that cannot be written to; the message names it and says what to do."""


def load_checkpoint(folder: str | Path) -> MidiBertPreTrainedModel:
    """The model in a folder such as a checkpoint of a run: of the class that wrote it, in fp32 and in eval mode.

    Raises FileNotFoundError, and ModelFileError where the folder does not hold all weights of such a model.
    """
    missing = [name for name in WEIGHT_FILES if not Path(folder, name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} is not a model's folder: {' and '.join(missing)} not found in it")
    try:
        written_by = json.loads(Path(folder, "config.json").read_bytes()).get("architectures") or [None]
        kind = _CLASSES[written_by[0]]
        # Never a pickle: without this a missing file would be looked for under older names.
        opened: Any = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32)
    except (SafetensorError, json.JSONDecodeError, AttributeError, RuntimeError) as error:
        raise ModelFileError(f"{folder}: damaged, or another model's: {_line(error)}") from error
    except KeyError as error:
        raise ModelFileError(f"{folder}: written by {error}; supported: {', '.join(_CLASSES)}") from error
    model: MidiBertPreTrainedModel = opened[0]
    wrong = {what: sorted(map(str, names)) for what, names in opened[1].items() if names}
    if wrong:
        raise ModelFileError(f"{folder}: its weights do not make a complete model: {_line(wrong)}")
    return model.eval()


def _line(error: object) -> str:
    return textwrap.shorten(str(error), 300, placeholder=" ...")


def check_free(directory: str | Path) -> Path:
    """The folder of a new export. Raises OutputError where something is there already."""
    final = Path(directory)
    if final.exists() and not (final.is_dir() and not any(final.iterdir())):
        raise OutputError(f"{final} is there already; nothing is overwritten: name a new folder, or remove it first")
    return final


def save_export(
    model: MidiBertPreTrainedModel, directory: str | Path, texts: Mapping[str, str] | None = None, weights: str = "fp32"
) -> Path:
    """Write config.json, model.safetensors, vocabulary.json and texts (file name -> content), such as a model card.

    weights: `fp32`, or `bf16` for half the size: they are rounded, and opened as fp32.

    A reader sees the whole folder or none; `AutoModel.from_pretrained(directory)` opens it after
    `import midibert_ray.model`. Returns the folder. Raises OutputError where something is there already.
    """
    final = check_free(directory)
    final.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, because only within one file system is a rename atomic.
    with tempfile.TemporaryDirectory(prefix=f".{final.name}-", dir=final.parent) as scratch:
        new = Path(scratch, "new")
        model.save_pretrained(new)
        if weights == "bf16":
            tensors = {name: tensor.bfloat16() for name, tensor in load_file(new / WEIGHT_FILES[1]).items()}
            save_file(tensors, new / WEIGHT_FILES[1], metadata={"format": "pt"})
        for name, text in {VOCABULARY: model.config.vocabulary.to_json() + "\n", **(texts or {})}.items():
            (new / name).write_text(text, encoding="utf-8")
        for path in new.iterdir():  # safetensors would leave the weights to their owner alone
            path.chmod((new / VOCABULARY).stat().st_mode)
        new.rename(final)
    return final
