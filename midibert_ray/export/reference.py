"""The authors' .ckpt files into our models: untrusted pickles, whose names and shapes are theirs."""

import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from midibert_ray.model.folder import ModelFileError
from midibert_ray.model.heads import MidiBertForNotes, MidiBertForSequences
from midibert_ray.model.midibert import VOCABULARIES, MidiBertConfig, MidiBertModel, MidiBertPreTrainedModel

_LAYER = "bert.encoder.layer.#."
_RENAMES = (
    ("word_emb.#.lut.", "embeddings.tables.#."),
    ("word_emb.lut.", "embeddings.tables.0."),
    ("in_linear.", "embeddings.projection."),
    ("bert.embeddings.token_type_embeddings.", "token_type."),
    ("bert.embeddings.LayerNorm.", "norm."),
    (_LAYER + "attention.self.", "layers.#.attention."),
    (_LAYER + "attention.output.dense.", "layers.#.attention_output."),
    (_LAYER + "attention.output.LayerNorm.", "layers.#.attention_norm."),
    (_LAYER + "intermediate.dense.", "layers.#.feed_forward."),
    (_LAYER + "output.dense.", "layers.#.feed_forward_output."),
    (_LAYER + "output.LayerNorm.", "layers.#.feed_forward_norm."),
)
"""Starts of the names of the authors' tensors, and of ours; # is a number."""

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
_WRAPPERS = re.compile(r"(module\.|midibert\.)+")
"""What DataParallel and the fine-tuning models put before the names, in any order and number."""
_DISTANCES = "layers.0.attention.distance_embedding.weight"
_FEED_FORWARD = "layers.0.feed_forward.weight"

_MODELS: dict[str, type[MidiBertPreTrainedModel]] = {
    "encoder": MidiBertModel,
    "notes": MidiBertForNotes,
    "sequences": MidiBertForSequences,
}
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

    All sizes come from the shapes; names may carry `module.` and `midibert.`, repeated too. The file is a pickle and is
    read with weights_only=True, so nothing in it is executed. Raises ModelFileError if it holds anything but
    such weights, and FileNotFoundError.
    """
    checkpoint = _read(path)
    weights = _unwrapped(checkpoint["state_dict"], path)
    kind = (
        "notes" if "classifier.1.weight" in weights else "sequences" if "attention.ws1.weight" in weights else "encoder"
    )
    dropped = tuple(sorted(name for name in weights if _NEVER_TRAINED.match(name)))
    names = {_rename(name, kind, path): name for name in weights if name not in dropped}
    for name in names.values():
        _check_numbers(name, weights[name], path)
    config = _config({ours: weights[name] for ours, name in names.items()}, kind, path)
    _check_shapes(kind, config, {ours: (name, weights[name]) for ours, name in names.items()}, path)
    model = _MODELS[kind](config)
    model.load_state_dict({ours: weights[names[ours.removeprefix("midibert.")]] for ours in model.state_dict()})
    scores = {name: value for name, value in checkpoint.items() if name not in ("state_dict", "optimizer")}
    return model.eval(), ReferenceInfo(kind=kind, scores=scores, dropped=dropped)


def _read(path: str | Path) -> dict[str, Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    # torch's own messages advise to read the file without weights_only, and would be shown as the cause.
    with Path(path).open("rb") as file, warnings.catch_warnings(action="ignore"):
        try:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ModelFileError(
                f"{path}: refused, it holds more than tensors and plain values{_foreign(error)} and could run code "
                "when opened; save its state_dict anew in the environment that wrote it"
            ) from None
        except _DAMAGES as error:
            problem = "not a file of torch.save, or a damaged one; copy or download it again"
            if "TorchScript" in str(error):
                problem = "a TorchScript program, not a checkpoint; give the .ckpt that the authors' code wrote"
            raise ModelFileError(f"{path}: {problem}") from None
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        raise ModelFileError(f"{path}: no `state_dict` of tensors in it; expected a checkpoint of the authors' code")
    return checkpoint


def _foreign(error: pickle.UnpicklingError) -> str:
    """The class or function that a refused pickle asks for, where torch names it."""
    found = re.search(r"GLOBAL ([\w.]{1,80})", str(error))
    return f" ({found[1]})" if found else ""


def _unwrapped(weights: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """Tensors without the prefixes of what they were wrapped in."""
    plain: dict[str, Tensor] = {}
    for name, value in weights.items():
        bare = name[found.end() :] if (found := _WRAPPERS.match(name)) else name
        if bare in plain:
            raise ModelFileError(f"{path}: tensor {bare!r} is there twice, under two prefixes; keep one of them")
        plain[bare] = value
    return plain


def _check_numbers(name: str, value: Tensor, path: str | Path) -> None:
    """Raise ModelFileError for a tensor that is no plain array of finite real numbers."""
    form = f"{value.layout} on {value.device}"
    if value.layout is torch.strided and value.device.type == "cpu":
        # A tensor larger than its storage repeats itself, and may claim to have any size.
        whole = value.numel() * value.element_size() <= value.untyped_storage().nbytes()
        form = "" if whole else "expanded from fewer numbers"
    if form or not value.is_floating_point():
        raise ModelFileError(
            f"{path}: tensor {name!r} is {value.dtype}{form and f' ({form})'}; weights must be dense, on the CPU and "
            "of a floating-point dtype: convert it, as with .cpu().float(), and save the file again"
        )
    # As the model will hold them: a float64 may be too large for it.
    bad = int((~value.float().isfinite()).sum())
    if bad:
        raise ModelFileError(
            f"{path}: tensor {name!r} ({value.dtype}) has {bad} values of {value.numel()} that are infinite or not a "
            "number; the training diverged or the file is damaged: take an earlier checkpoint, or copy it again"
        )


def _rename(name: str, kind: str, path: str | Path) -> str:
    """Our name of a tensor of theirs; the encoder's as in `MidiBertModel`, the head's below `head.`."""
    module, _, leaf = name.rpartition(".")
    if ours := _HEAD_RENAMES.get(kind, {}).get(module):
        return f"head.{ours}.{leaf}"
    for theirs, ours in _RENAMES:
        if renamed := _with_start(name, theirs, ours):
            return renamed
    raise ModelFileError(f"{path}: unknown tensor {name!r}; expected the names of the authors' CP or REMI model")


def _their_name(name: str, kind: str) -> str:
    """What a tensor of ours is called in the authors' files."""
    heads = ((f"head.{ours}.", f"{theirs}.") for theirs, ours in _HEAD_RENAMES.get(kind, {}).items())
    tables = [*heads, *((ours, theirs) for theirs, ours in _RENAMES)]
    return next((renamed for ours, theirs in tables if (renamed := _with_start(name, ours, theirs))), name)


def _with_start(name: str, start: str, new: str) -> str:
    """A name with another start, its number kept; empty where it does not start so."""
    found = re.match(re.escape(start).replace(r"\#", r"(\d+)"), name)
    return new.replace("#", "".join(found.groups())) + name[found.end() :] if found else ""


def _config(weights: Mapping[str, Tensor], kind: str, path: str | Path) -> MidiBertConfig:
    """Sizes from shapes. Raises ModelFileError where they are those of another model."""
    try:
        return MidiBertConfig(**_sizes(weights, kind))
    except KeyError as error:
        name = _their_name(error.args[0], kind)
        hint = "; transformers 5 silently builds this model without its distance tables: use a file written with 4"
        raise ModelFileError(f"{path}: tensor {name!r} is missing{hint if 'distance' in name else ''}") from error
    except ValueError as error:
        raise ModelFileError(f"{path}: its shapes are not MidiBERT's: {error}") from error


def _sizes(weights: Mapping[str, Tensor], kind: str) -> dict[str, Any]:
    tables = [_matrix(weights, f"embeddings.tables.{i}.weight") for i in range(sum(".tables." in n for n in weights))]
    rows, width = _matrix(weights, _DISTANCES)
    intermediate, hidden = _matrix(weights, _FEED_FORWARD)
    ids, known = tuple(table[0] for table in tables), {v.sizes: name for name, v in VOCABULARIES.items()}
    if ids not in known:
        raise ValueError(f"its token types have {ids} ids; supported: {known}")
    if hidden % width or rows % 2 == 0:
        raise ValueError(
            f"tensor {_their_name(_DISTANCES, kind)!r} has shape {(rows, width)}; expected (2 * max length - 1, hidden "
            f"size / heads): an odd number, and a divisor of the hidden size {hidden}"
        )
    return {
        "representation": known[ids],
        "hidden_size": hidden,
        # Counted, not read off the largest number, which a file could make as large as it likes.
        "num_hidden_layers": len({name.split(".")[1] for name in weights if name.startswith("layers.")}),
        "num_attention_heads": hidden // width,
        "intermediate_size": intermediate,
        "max_length": (rows + 1) // 2,
        "embedding_size": tables[0][1],
        "num_classes": None if kind == "encoder" else weights["head.output.bias"].numel(),
    }


def _matrix(weights: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """Rows and columns of a matrix that sizes are read from."""
    shape = tuple(weights[name].shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"tensor {_their_name(name, 'encoder')!r} has shape {shape}; expected a matrix")
    return shape


def _check_shapes(
    kind: str, config: MidiBertConfig, weights: Mapping[str, tuple[str, Tensor]], path: str | Path
) -> None:
    """Raise ModelFileError unless the weights are all those of a model of these sizes, and no others.

    weights: our name -> the authors', and the tensor.
    """
    with torch.device("meta"):
        empty = _MODELS[kind](config)
    expected = {name.removeprefix("midibert."): tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    if missing := [_their_name(name, kind) for name in expected if name not in weights]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelFileError(f"{path}: its weights do not make a complete model: no tensor {missing[0]!r}{more}")
    if surplus := [name for ours, (name, _) in weights.items() if ours not in expected]:
        raise ModelFileError(f"{path}: tensor {surplus[0]!r} has no place in this model")
    for ours, shape in expected.items():
        name, tensor = weights[ours]
        if tuple(tensor.shape) != shape:
            raise ModelFileError(
                f"{path}: tensor {name!r} has shape {tuple(tensor.shape)}; expected {shape}, as the hidden size is "
                f"{config.hidden_size} and the feed-forward size {config.intermediate_size} (from "
                f"{_their_name(_FEED_FORWARD, kind)!r}), with {config.num_attention_heads} heads and max length "
                f"{config.max_length} (from {_their_name(_DISTANCES, kind)!r})"
            )
