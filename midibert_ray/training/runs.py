"""Pre-training runs as folders below `{root}/runs`: key, pinned tokens, result, best checkpoint."""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace

from midibert_ray import storage
from midibert_ray.data.format import read_manifest
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import flatten, from_flat, identity
from midibert_ray.training import start
from midibert_ray.training.checkpoints import PREFIX, CheckpointError, UnfinishedError, folders, problem, read_digests
from midibert_ray.training.engine import PROGRESS_FILE

logger = logging.getLogger(__name__)

SECTIONS = ("seed", "tokens", "mask", "augment", "model", "optimizer", "pretrain", "compute")
"""Sections of the configuration that make one pre-training run differ from another, beside its token stores."""

INPUTS = "inputs.json"

SETTINGS = "settings.json"

RESULT_FILE = "result.json"


@dataclass(frozen=True)
class PretrainRun:
    """A finished pre-training run."""

    key: str
    """Name and hash; the run's folder below `{root}/runs` and its key in MLflow."""
    checkpoint: str
    """URI of the best checkpoint, a folder that `MidiBertModel.from_pretrained` opens."""
    step: int
    """Optimizer steps taken by the best checkpoint."""
    metrics: dict[str, float]
    """Its validation metrics."""


def run_key(config: Config, stores: Sequence[str]) -> str:
    """The name of the run that a configuration's identity and some token stores (URIs, in order) describe."""
    made_from = start.inputs(config, start.PRETRAIN) | {"stores": list(map(storage.basename, stores))}
    return f"pretrain-{identity(config, SECTIONS, **made_from)}"


def run_uri(config: Config, key: str) -> str:
    """The folder of a run below the storage root."""
    return storage.join(storage.root.runs(config.storage.root), key)


def pin(folder: str, stores: Iterable[str]) -> None:
    """Note the digests of token stores in a run's or study's folder, or compare them with those noted before.

    A token store is made anew at its address when the files of its corpus change.
    Raises ValueError where one of them holds other tokens than at the first start.
    """
    found = {storage.basename(store): read_manifest(store)["digest"] for store in stores}
    inputs = storage.join(folder, INPUTS)
    noted = storage.find_json(inputs) or {}
    for name, digest in found.items():
        if noted.get(name, digest) != digest:
            raise ValueError(
                f"{folder} was started on other tokens: those of {name} had digest {noted[name][:16]} and have "
                f"{digest[:16]} now, as files of the corpus have changed; bring the old files back and tokenize again, "
                "or remove that folder to start from the beginning"
            )
    if not found.keys() <= noted.keys():
        storage.write_json(inputs, noted | found)


def note_settings(folder: str, config: Config) -> None:
    """Note the configuration that a run was first started with in its folder, for the card of its exports."""
    if not storage.exists(file := storage.join(folder, SETTINGS)):
        storage.write_json(file, flatten(config))


def settings(root: str, key: str) -> Config | None:
    """The configuration that the run of a key below a storage root was first started with, if it is known."""
    found = storage.find_json(storage.join(storage.root.runs(root), key, SETTINGS))
    return None if found is None else from_flat({name: found[name] for name in found if name in flatten(Config())})


def finished(config: Config, key: str) -> PretrainRun | None:
    """The run of a key, if it has ended well; a result that is damaged is logged, and is none.

    Raises CheckpointError where the best checkpoint is another run's.
    """
    run = run_uri(config, key)
    result = storage.join(run, RESULT_FILE)
    content = storage.find_json(result)
    if content is None:
        return None
    if content.keys() != {field.name for field in fields(PretrainRun)}:
        logger.warning("%s is damaged: it is no result of a run, and is made again", storage.without_query(result))
        return None
    done = PretrainRun(**content)
    # A storage root may have moved since, or its bucket be reached by another server; the folder's name stays.
    checkpoint = storage.join(run, storage.basename(done.checkpoint))
    try:
        writer = read_digests(*storage.filesystem(checkpoint)).run
    except UnfinishedError:
        writer = None
    if writer not in (None, key):
        raise CheckpointError(
            f"{checkpoint} was written by the run {writer}, not by {key}; bring the run's own back from a copy, or "
            f"remove it and {result}, then start the run again"
        )
    return replace(done, checkpoint=checkpoint)


def finish(config: Config, key: str) -> PretrainRun:
    """Write the result of a run that has ended: its best sound checkpoint, and of equals the first.

    Raises CheckpointError where none is sound.
    """
    run = run_uri(config, key)
    system, path = storage.filesystem(run)
    problems, sound = [], []
    for name in folders(system, path, PREFIX):
        if reason := problem(system, f"{path}/{name}", run=key):
            problems.append(reason)
            logger.warning("a checkpoint of %s is passed over: %s", key, reason)
            continue
        progress = json.loads(storage.read_bytes(storage.join(run, name, PROGRESS_FILE)))
        sound.append((-progress["reports"][-1]["valid/score"], name, progress))
    if not sound:
        raise CheckpointError(
            f"no checkpoint of {key} is whole ({'; '.join(problems)}); remove its folder and run it again"
        )
    _, name, progress = min(sound, key=lambda entry: entry[:2])
    metrics = {name: value for name, value in progress["reports"][-1].items() if name.startswith("valid/")}
    done = PretrainRun(key, storage.join(run, name), progress["step"], metrics)
    storage.write_json(storage.join(run, RESULT_FILE), asdict(done))
    return done
