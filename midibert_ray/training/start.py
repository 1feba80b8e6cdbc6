"""Weights to start from, `pretrain.start` and `finetune.start`: any export, a model that ships, or a .ckpt file of the
authors' code.

They count in the names of runs and trials by the digest of their bytes, wherever they lie. Their origin stands
in the `lineage` of their config.json, and goes on into the models that are made from them.
"""

import functools
import hashlib
from typing import Any, cast

from pyarrow import fs
from torch import Tensor

from midibert_ray import storage
from midibert_ray.model.folder import WEIGHT_FILES, ModelFileError, load_checkpoint
from midibert_ray.model.midibert import MidiBertConfig, MidiBertForMaskedLM, MidiBertPreTrainedModel
from midibert_ray.model.reference import load_reference
from midibert_ray.settings import shipped
from midibert_ray.settings.config import Config, ConfigError, require
from midibert_ray.training.build import EMBEDDING, encoder_config
from midibert_ray.training.checkpoints import CheckpointError, weights

REFERENCE = ".ckpt"
"""End of the names of the authors' files."""

AUTHORS, UNKNOWN = "a checkpoint of the authors' code", "weights of whose training nothing is known"
"""Stages of a lineage; the corpora of the first are those of the paper, as far as one can know."""

PRETRAIN, FINETUNE = "pretrain.start", "finetune.start"

_SHAPE = {
    "model.representation": "representation",
    "model.attention": "attention",
    "model.layers": "num_hidden_layers",
    "model.hidden": "hidden_size",
    "model.heads": "num_attention_heads",
    "model.feed_forward": "intermediate_size",
}
"""Settings that must be those of the weights, and their names in a model's config.json."""


def inputs(config: Config, *keys: str) -> dict[str, str]:
    """The weights that a run, trial or study starts from, for its identity: setting -> digest, of those that are set.

    Raises:
        ConfigError: where there are no weights.
    """
    given = {PRETRAIN: config.pretrain.start, FINETUNE: config.finetune.start}
    return {key: digest(key, given[key]) for key in keys if given[key]}


def digest(key: str, uri: str) -> str:
    """SHA-256 of the weights of a setting, hexadecimal. Raises ConfigError where there are none."""
    uri = shipped.located(uri)
    file = uri if uri.endswith(REFERENCE) else storage.join(uri, WEIGHT_FILES[-1])
    storage.require_bucket(key, uri)
    system, path = storage.filesystem(file)
    info = system.get_file_info(path)
    allowed = (
        f"the folder of an export ({' and '.join(WEIGHT_FILES)}), a model that ships with midibert_ray "
        f"({', '.join(shipped.names())}), or a local {REFERENCE} file of the authors' code"
    )
    there = info.type is fs.FileType.File and (storage.is_local(uri) or not uri.endswith(REFERENCE))
    require(there, key, uri, allowed)
    return _digest(file, info.size, info.mtime_ns)


@functools.lru_cache(maxsize=32)
def _digest(file: str, size: int, changed: int) -> str:
    """Read once, as long as size and time of change stay."""
    system, path = storage.filesystem(file)
    with system.open_input_stream(path, compression=None, buffer_size=4 << 20) as stream:
        return hashlib.file_digest(cast(Any, stream), "sha256").hexdigest()


def require_fit(key: str, uri: str, config: Config) -> None:
    """Refuse weights of another shape than the settings describe.

    Raises:
        ConfigError: naming the setting, its value and that of the weights; or the problem of the weights.
    """
    theirs = _config(key, uri, digest(key, uri))
    values: dict[str, object] = {name: getattr(encoder_config(config), field) for name, field in _SHAPE.items()}
    for name, value in values.items():
        _same(name, value, getattr(theirs, _SHAPE[name]), key, uri)
    if theirs.attention == "relative_key_query":  # which has a vector for every distance
        _same("tokens.segment", config.tokens.segment, theirs.max_length, key, uri)
    size = theirs.embedding_size
    require(size == EMBEDDING, key, uri, f"weights whose tokens are embedded in {EMBEDDING} numbers, not in {size}")


def _same(name: str, value: object, theirs: object, key: str, uri: str) -> None:
    require(value == theirs, name, value, f"{theirs!r}, as the weights of {key}={uri} have it")


def open_start(key: str, uri: str, expected: str = "") -> MidiBertPreTrainedModel:
    """The model whose weights a setting names, with a lineage that ends with it.

    Raises:
        ConfigError: where it is no whole model, or its weights have another digest than is expected.
    """
    try:
        if uri.endswith(REFERENCE):
            model, _ = load_reference(storage.resolve(uri))
        else:
            with weights(shipped.located(uri)) as folder:
                model = load_checkpoint(folder)
    except (ModelFileError, FileNotFoundError, CheckpointError) as error:
        raise ConfigError(f"{key}={uri} cannot be used: {error}") from error
    found = digest(key, uri)
    if expected not in ("", found):
        raise ConfigError(f"{key}={uri} cannot be used: its weights have changed since the job began; start it again")
    stages = model.config.lineage or [{"stage": UNKNOWN, "corpora": None}]
    if uri.endswith(REFERENCE):
        stages = [{"stage": AUTHORS, "corpora": list(Config().corpora.names)}]
    model.config.lineage = [*stages[:-1], stages[-1] | {"sha256": found}]
    return model


@functools.lru_cache(maxsize=8)
def _config(key: str, uri: str, found: str) -> MidiBertConfig:
    """The shape of weights with a digest; opening them shows that they are whole."""
    config: Any = open_start(key, uri).config
    return config


def encoder_weights(model: MidiBertPreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a model's encoder."""
    encoder: Any = getattr(model, "midibert", model)
    return encoder.state_dict()


def begin(model: MidiBertForMaskedLM, config: Config, expected: str = "") -> MidiBertForMaskedLM:
    """A new model for pre-training, with the weights of `pretrain.start` if it is set; for `expected` see `open_start`.

    Of an export with other heads, or none, the encoder is taken.
    """
    if not config.pretrain.start:
        return model
    start = open_start(PRETRAIN, config.pretrain.start, expected)
    model.midibert.load_state_dict(encoder_weights(start))
    if isinstance(start, MidiBertForMaskedLM):
        model.heads.load_state_dict(start.heads.state_dict())
    model.config.lineage = start.config.lineage
    return model
