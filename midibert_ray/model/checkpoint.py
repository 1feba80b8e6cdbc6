"""Weights in and out: the authors' .ckpt files and our checkpoints into models, models into Hugging Face folders."""

import json
import pickle
import re
import struct
import tempfile
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from midibert_ray.model.heads import MidiBertForNotes, MidiBertForSequences
from midibert_ray.model.midibert import (
    VOCABULARIES,
    MidiBertConfig,
    MidiBertForMaskedLM,
    MidiBertModel,
    MidiBertPreTrainedModel,
)

_LAYER = r"bert\.encoder\.layer\.(\d+)\."
_RENAMES = (
    (r"word_emb\.(\d+)\.lut\.", r"embeddings.tables.\1."),
    (r"word_emb\.lut\.", "embeddings.tables.0."),
    (r"in_linear\.", "embeddings.projection."),
    (r"bert\.embeddings\.token_type_embeddings\.", "token_type."),
    (r"bert\.embeddings\.LayerNorm\.", "norm."),
    (_LAYER + r"attention\.self\.", r"layers.\1.attention."),
    (_LAYER + r"attention\.output\.dense\.", r"layers.\1.attention_output."),
    (_LAYER + r"attention\.output\.LayerNorm\.", r"layers.\1.attention_norm."),
    (_LAYER + r"intermediate\.dense\.", r"layers.\1.feed_forward."),
    (_LAYER + r"output\.dense\.", r"layers.\1.feed_forward_output."),
    (_LAYER + r"output\.LayerNorm\.", r"layers.\1.feed_forward_norm."),
)
_HEAD_RENAMES = {
    "notes": {"classifier.1": "dense", "classifier.3": "output"},
    "sequences": {
        "attention.ws1": "attention_dense",
        "attention.ws2": "attention_output",
        "classifier.0": "dense",
        "classifier.2": "output",
    },
}
_NEVER_TRAINED = re.compile(r"bert\.(embeddings\.(word_embeddings|position_embeddings|position_ids)|pooler)\b")
"""Tables that the authors' models carry and that never got a gradient."""

_MODELS: dict[str, type[MidiBertPreTrainedModel]] = {
    "encoder": MidiBertModel,
    "notes": MidiBertForNotes,
    "sequences": MidiBertForSequences,
}
_CLASSES = {kind.__name__: kind for kind in _MODELS.values()} | {MidiBertForMaskedLM.__name__: MidiBertForMaskedLM}

_DAMAGES = (
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    MemoryError,
    struct.error,
)
"""What torch raises on damaged files, found by damaging some: flipped bytes make a pickle do odd things."""

WEIGHT_FILES = ("config.json", "model.safetensors")
"""What a folder must hold to be opened as a model."""


class CheckpointError(ValueError):
    """A file or folder that holds no model of ours or the authors'; the message names it and what is wrong."""


class OutputError(ValueError):
    """A folder that cannot be written to; the message names it and says what to do."""


@dataclass(frozen=True, kw_only=True)
class ReferenceInfo:
    """What the file says beside its weights."""

    kind: str
    """`encoder` (pre-trained), `notes` or `sequences` (fine-tuned)."""

    scores: dict[str, Any]
    """Epoch, losses and accuracies as the authors' code stored them."""

    dropped: tuple[str, ...]
    """Tensors of the file that our models do not have because they never got a gradient."""


def load_reference(path: str | Path) -> tuple[MidiBertPreTrainedModel, ReferenceInfo]:
    """Read a .ckpt of the authors' code into `MidiBertModel`, `MidiBertForNotes` or `MidiBertForSequences`,
    in eval mode.

    All sizes come from the shapes; names may carry `module.` and `midibert.`. The file is a pickle and is
    read with weights_only=True, so nothing in it is executed. Raises CheckpointError if it holds anything but
    such weights, and FileNotFoundError.
    """
    checkpoint = _read(path)
    weights = {name.removeprefix("module."): value for name, value in checkpoint["state_dict"].items()}
    kind = (
        "notes" if "classifier.1.weight" in weights else "sequences" if "attention.ws1.weight" in weights else "encoder"
    )
    head = {ours: weights.pop(name) for name, ours in _head_names(kind, weights).items()}
    weights = {name.removeprefix("midibert."): value for name, value in weights.items()}
    dropped = tuple(sorted(name for name in weights if _NEVER_TRAINED.match(name)))
    renamed = {_rename(name, path): value for name, value in weights.items() if name not in dropped}
    config = _config(renamed, head, path)
    prefix = "" if kind == "encoder" else "midibert."
    model = _MODELS[kind](config)
    try:
        model.load_state_dict({prefix + name: value for name, value in renamed.items()} | head)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not make a complete model: {_line(error)}") from error
    scores = {name: value for name, value in checkpoint.items() if name not in ("state_dict", "optimizer")}
    return model.eval(), ReferenceInfo(kind=kind, scores=scores, dropped=dropped)


def load_checkpoint(folder: str | Path) -> MidiBertPreTrainedModel:
    """Open a folder with config.json and model.safetensors, such as a checkpoint of a run, in eval mode.

    The model's class is the one that wrote the folder. Raises CheckpointError if the folder does not hold all
    weights of such a model, and FileNotFoundError.
    """
    missing = [name for name in WEIGHT_FILES if not Path(folder, name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} is not a model's folder: {' and '.join(missing)} not found in it")
    try:
        written_by = json.loads(Path(folder, "config.json").read_bytes()).get("architectures") or [None]
        kind = _CLASSES[written_by[0]]
        # Never a pickle: without this a missing file would be looked for under older names.
        opened: Any = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except (SafetensorError, json.JSONDecodeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: damaged, or another model's: {_line(error)}") from error
    except KeyError as error:
        raise CheckpointError(f"{folder}: written by {error}; supported: {', '.join(_CLASSES)}") from error
    model: MidiBertPreTrainedModel = opened[0]
    wrong = {what: sorted(map(str, names)) for what, names in opened[1].items() if names}
    if wrong:
        raise CheckpointError(f"{folder}: its weights do not make a complete model: {_line(wrong)}")
    return model.eval()


def _line(error: object) -> str:
    """The message of a library's error, which may run over many lines, as one short line."""
    return textwrap.shorten(str(error), 300, placeholder=" ...")


def _read(path: str | Path) -> dict[str, Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    with Path(path).open("rb") as file:
        try:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path}: refused, it holds more than tensors and plain values and could run code when "
                "opened; save its state_dict anew in the environment that wrote it"
            ) from error
        except _DAMAGES as error:
            raise CheckpointError(f"{path}: not a file of torch.save, or a damaged one: {_line(error)}") from error
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        raise CheckpointError(f"{path}: no `state_dict` of tensors in it; expected a checkpoint of the authors' code")
    return checkpoint


def _head_names(kind: str, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of the head's tensors in the file -> in our models."""
    modules = _HEAD_RENAMES.get(kind, {})
    found = ((name, *name.rpartition(".")[::2]) for name in weights)
    return {name: f"head.{modules[module]}.{leaf}" for name, module, leaf in found if module in modules}


def _rename(name: str, path: str | Path) -> str:
    for pattern, ours in _RENAMES:
        renamed, hits = re.subn("^" + pattern, ours, name)
        if hits:
            return renamed
    raise CheckpointError(f"{path}: unknown tensor {name!r}; expected the names of the authors' CP or REMI model")


def _config(weights: Mapping[str, Tensor], head: Mapping[str, Tensor], path: str | Path) -> MidiBertConfig:
    """Sizes from shapes. Raises CheckpointError where they are those of another model."""
    try:
        return MidiBertConfig(**_sizes(weights, head))
    except KeyError as error:
        hint = "; transformers 5 silently builds this model without its distance tables: use a file written with 4"
        raise CheckpointError(f"{path}: tensor {error} is missing{hint if 'distance' in str(error) else ''}") from error
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path}: its shapes are not MidiBERT's: {_line(error)}") from error


def _sizes(weights: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> dict[str, Any]:
    tables = [weights[f"embeddings.tables.{i}.weight"] for i in range(sum(".tables." in name for name in weights))]
    distances = weights["layers.0.attention.distance_embedding.weight"]
    intermediate, hidden = weights["layers.0.feed_forward.weight"].shape
    ids, known = tuple(len(table) for table in tables), {v.sizes: name for name, v in VOCABULARIES.items()}
    if ids not in known:
        raise ValueError(f"its token types have {ids} ids; supported: {known}")
    return {
        "representation": known[ids],
        "hidden_size": hidden,
        # Counted, not read off the largest number, which a file could make as large as it likes.
        "num_hidden_layers": len({name.split(".")[1] for name in weights if name.startswith("layers.")}),
        "num_attention_heads": hidden // distances.shape[1],
        "intermediate_size": intermediate,
        "max_length": (len(distances) + 1) // 2,
        "embedding_size": tables[0].shape[1],
        "num_classes": len(head["head.output.bias"]) if head else None,
    }


def check_free(directory: str | Path) -> Path:
    """The folder of a new export. Raises OutputError where something is there already."""
    final = Path(directory)
    if final.exists() and not (final.is_dir() and not any(final.iterdir())):
        raise OutputError(f"{final} is there already; nothing is overwritten: name a new folder, or remove it first")
    return final


def save_export(model: MidiBertPreTrainedModel, directory: str | Path, texts: Mapping[str, str] | None = None) -> Path:
    """Write config.json, model.safetensors, vocabulary.json and other text files; a reader sees the whole
    folder or none.

    `AutoModel.from_pretrained(directory)` opens it after `import midibert_ray.model`. Returns the folder.
    Raises OutputError where something is there already.

    texts: file name -> content, such as a model card.
    """
    final = check_free(directory)
    final.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, because only within one file system is a rename atomic.
    with tempfile.TemporaryDirectory(prefix=f".{final.name}-", dir=final.parent) as scratch:
        new = Path(scratch, "new")
        model.save_pretrained(new)
        for name, text in {"vocabulary.json": model.config.vocabulary.to_json() + "\n", **(texts or {})}.items():
            (new / name).write_text(text, encoding="utf-8")
        for path in new.iterdir():  # safetensors would leave the weights to their owner alone
            path.chmod((new / "vocabulary.json").stat().st_mode)
        new.rename(final)
    return final
