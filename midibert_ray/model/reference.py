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

_NAMES = {
    r"embeddings\.tables\.(\d+)\.": r"word_emb.\1.lut.",  # or word_emb.lut. where it is the only one
    r"embeddings\.projection\.": "in_linear.",
    r"token_type\.": "bert.embeddings.token_type_embeddings.",
    r"norm\.": "bert.embeddings.LayerNorm.",
    r"layers\.(\d+)\.attention\.": r"bert.encoder.layer.\1.attention.self.",
    r"layers\.(\d+)\.attention_output\.": r"bert.encoder.layer.\1.attention.output.dense.",
    r"layers\.(\d+)\.attention_norm\.": r"bert.encoder.layer.\1.attention.output.LayerNorm.",
    r"layers\.(\d+)\.feed_forward\.": r"bert.encoder.layer.\1.intermediate.dense.",
    r"layers\.(\d+)\.feed_forward_output\.": r"bert.encoder.layer.\1.output.dense.",
    r"layers\.(\d+)\.feed_forward_norm\.": r"bert.encoder.layer.\1.output.LayerNorm.",
}
"""Patterns of how our tensors' names start, and how the authors' do."""
_HEAD_NAMES = {
    "encoder": {},
    "notes": {r"head\.dense\.": "classifier.1.", r"head\.output\.": "classifier.3."},
    "sequences": {
        r"head\.attention_dense\.": "attention.ws1.",
        r"head\.attention_output\.": "attention.ws2.",
        r"head\.dense\.": "classifier.0.",
        r"head\.output\.": "classifier.2.",
    },
}
_NEVER_TRAINED = re.compile(r"bert\.(embeddings\.(word_embeddings|position_embeddings|position_ids)|pooler)\b")
"""Tables that the authors' models carry and that never got a gradient."""
_WRAPPERS = re.compile(r"(module\.|midibert\.)+")
"""Prefixes that DataParallel and the fine-tuning models put before the names, in any order and number."""
_DISTANCES = "bert.encoder.layer.0.attention.self.distance_embedding.weight"
_FEED_FORWARD = "bert.encoder.layer.0.intermediate.dense.weight"
_MODELS: dict[str, type[MidiBertPreTrainedModel]] = {
    "encoder": MidiBertModel,
    "notes": MidiBertForNotes,
    "sequences": MidiBertForSequences,
}
_DAMAGES = (RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError, AttributeError, AssertionError)
"""Errors that torch raises on damaged files, found by damaging some: flipped bytes make a pickle do odd things."""


@dataclass(frozen=True, kw_only=True)
class ReferenceInfo:
    """The contents of the file beside its weights."""

    kind: str
    """`encoder` (pre-trained), `notes` or `sequences` (fine-tuned)."""
    scores: dict[str, Any]
    """Epoch, losses and accuracies as the authors' code stored them."""
    dropped: tuple[str, ...]
    """Tensors of the file that our models do not have because they never got a gradient."""


def load_reference(path: str | Path) -> tuple[MidiBertPreTrainedModel, ReferenceInfo]:
    """A .ckpt of the authors' code as `MidiBertModel`, `MidiBertForNotes` or `MidiBertForSequences`, in eval mode.

    All sizes come from the shapes; names may carry `module.` and `midibert.`, repeated too. The file is a pickle and is
    read with weights_only=True, so nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ModelFileError: it holds anything but such weights.
    """
    checkpoint = _read(path)
    weights = _unwrapped(checkpoint["state_dict"], path)
    kind = (
        "notes" if "classifier.1.weight" in weights else "sequences" if "attention.ws1.weight" in weights else "encoder"
    )
    dropped = tuple(sorted(name for name in weights if _NEVER_TRAINED.match(name)))
    trained = {name: tensor for name, tensor in weights.items() if name not in dropped}
    for name, tensor in trained.items():
        _check_numbers(name, tensor, path)
    config = _config(trained, kind, path)
    with torch.device("meta"):  # small tensors can ask for a model of any size
        expected = _MODELS[kind](config)
    names = {ours: _their_name(ours.removeprefix("midibert."), kind, trained) for ours in expected.state_dict()}
    _check_shapes(expected, names, trained, path)
    model = _MODELS[kind](config)
    model.load_state_dict({ours: trained[name] for ours, name in names.items()})
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
        except (*_DAMAGES, MemoryError, struct.error) as error:
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


def _their_name(name: str, kind: str, weights: Mapping[str, Tensor]) -> str:
    """The name that a tensor of ours has in the authors' file."""
    table = (_NAMES | _HEAD_NAMES[kind]).items()
    found, theirs = next((found, theirs) for ours, theirs in table if (found := re.match(ours, name)))
    renamed = found.expand(theirs) + name[found.end() :]
    return renamed if renamed in weights else renamed.replace("word_emb.0.lut.", "word_emb.lut.")


def _config(weights: Mapping[str, Tensor], kind: str, path: str | Path) -> MidiBertConfig:
    """Sizes from shapes. Raises ModelFileError where they are those of another model."""
    try:
        return MidiBertConfig(**_sizes(weights, kind))
    except KeyError as error:
        name = error.args[0]
        hint = "; transformers 5 silently builds this model without its distance tables: use a file written with 4"
        raise ModelFileError(f"{path}: tensor {name!r} is missing{hint if 'distance' in name else ''}") from error
    except ValueError as error:
        raise ModelFileError(f"{path}: its shapes are not MidiBERT's: {error}") from error


def _sizes(weights: Mapping[str, Tensor], kind: str) -> dict[str, Any]:
    names = [name for name in weights if re.fullmatch(r"word_emb\.(\d+\.)?lut\.weight", name)]
    tables = [_matrix(weights, name) for name in sorted(names)]
    rows, width = _matrix(weights, _DISTANCES)
    intermediate, hidden = _matrix(weights, _FEED_FORWARD)
    ids, known = tuple(table[0] for table in tables), {v.sizes: name for name, v in VOCABULARIES.items()}
    if ids not in known:
        raise ValueError(f"its token types have {ids} ids; supported: {known}")
    if hidden % width or rows % 2 == 0:
        raise ValueError(
            f"tensor {_DISTANCES!r} has shape {(rows, width)}; expected (2 * max length - 1, hidden size / heads): an "
            f"odd number, and a divisor of the hidden size {hidden}"
        )
    return {
        "representation": known[ids],
        "hidden_size": hidden,
        # Counted, not read off the largest number, which a file could make as large as it likes.
        "num_hidden_layers": len({name.split(".")[3] for name in weights if name.startswith("bert.encoder.layer.")}),
        "num_attention_heads": hidden // width,
        "intermediate_size": intermediate,
        "max_length": (rows + 1) // 2,
        "embedding_size": tables[0][1],
        "num_classes": None if kind == "encoder" else weights[_HEAD_NAMES[kind][r"head\.output\."] + "bias"].numel(),
    }


def _matrix(weights: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """Rows and columns of a matrix that sizes are read from."""
    shape = tuple(weights[name].shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"tensor {name!r} has shape {shape}; expected a matrix")
    return shape


def _check_shapes(
    model: MidiBertPreTrainedModel, names: Mapping[str, str], weights: Mapping[str, Tensor], path: str | Path
) -> None:
    """Raise ModelFileError unless the weights are all those of the model, given their names there, and no others."""
    if missing := [name for name in names.values() if name not in weights]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelFileError(f"{path}: its weights do not make a complete model: no tensor {missing[0]!r}{more}")
    if surplus := weights.keys() - names.values():
        raise ModelFileError(
            f"{path}: unknown tensor {min(surplus)!r} has no place in this model; expected the names of the authors' "
            "CP or REMI model"
        )
    for ours, tensor in model.state_dict().items():
        name, found, expected = names[ours], tuple(weights[names[ours]].shape), tuple(tensor.shape)
        if found != expected:
            config = model.config
            raise ModelFileError(
                f"{path}: tensor {name!r} has shape {found}; expected {expected}, as the hidden size is "
                f"{config.hidden_size} and the feed-forward size {config.intermediate_size} (from {_FEED_FORWARD!r}), "
                f"with {config.num_attention_heads} heads and max length {config.max_length} (from {_DISTANCES!r})"
            )
