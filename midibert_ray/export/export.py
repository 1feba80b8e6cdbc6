"""Any model as a folder that transformers opens: a finished pre-training, a checkpoint, a trial, a file of the
authors' code.

    config.json  model.safetensors  vocabulary.json  README.md (the model card)  calibration.json (of trials)

Readers of the folder need neither Ray nor DeepSpeed nor MLflow.
"""

import dataclasses
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from midibert_ray import storage
from midibert_ray.export import about
from midibert_ray.export.about import About
from midibert_ray.export.card import CARD, render, told_by_head
from midibert_ray.export.find import find, run_of
from midibert_ray.model import folder as models
from midibert_ray.model.calibration import CALIBRATION, Calibration
from midibert_ray.model.folder import VOCABULARY, WEIGHT_FILES, ModelFileError, OutputError
from midibert_ray.model.midibert import MidiBertPreTrainedModel
from midibert_ray.model.reference import load_reference
from midibert_ray.settings.config import Config, ConfigError
from midibert_ray.settings.validators import require, require_address, require_folder, require_one_of
from midibert_ray.storage import digests
from midibert_ray.studies import result as results
from midibert_ray.training import checkpoints, runs
from midibert_ray.training.engine import PROGRESS_FILE
from midibert_ray.training.runs import PretrainRun

logger = logging.getLogger(__name__)

UPLOADED = (WEIGHT_FILES[1], VOCABULARY, CARD, CALIBRATION, WEIGHT_FILES[0])
"""An export in a bucket, in the order in which it is written: the last file says that the others are there."""

WEIGHTS = ("fp32", "bf16")
"""Number formats of the weights in a file."""

Pretrained = Callable[[Config], PretrainRun]
"""Gives the finished pre-training of a configuration, such as `pipeline.pretrained`."""


def export(
    config: Config,
    pretrained: Pretrained,
    *,
    output: str = "",
    run: str = "",
    reference: str = "",
    weights: str = "fp32",
) -> str:
    """Write a model as a folder, whole or not at all, and return the folder's URI.

    In a bucket the folder is a model as soon as it has a config.json, which is written last.

    Args:
        config: describes the pre-training to export, where neither `run` nor `reference` is given.
        pretrained: finds that pre-training.
        output: folder to write, local or in a bucket; new or empty.
        run: name or URI of a trial, run or checkpoint to export instead; see `find`, also for its errors.
        reference: path of a file of the authors' code to export instead.
        weights: number format in the file, `fp32` or `bf16`.

    Raises:
        ConfigError: for no output, an address that cannot be used, or two sources.
        OutputError: where something is at the output already.
        ModelFileError: for a source that is no whole model, or a pickle that holds more than tensors.
    """
    final = _output(output)
    require_one_of("weights", weights, WEIGHTS)
    _check_free(final)
    if run and reference:
        raise ConfigError(f"run={run} and reference={reference} are two sources; give one of them")
    if reference:
        model, known = _from_reference(reference)
    elif run:
        model, known = _from_checkpoint(find(config, run))
    else:
        done = pretrained(config)
        model = _open(done.checkpoint)
        known = about.of_pretraining(config, config.storage.root, key=done.key, step=done.step, metrics=done.metrics)
    if known.task:
        model.config.task = known.task.name
        model.config.name_classes(known.classes, known.task.kind)
    elif names := told_by_head(model)[1]:
        model.config.name_classes(names)
    if known.protocol:
        model.config.protocol = known.protocol.to_dict()
    known = dataclasses.replace(known, lineage=tuple(model.config.lineage or ()), rounded=weights == "bf16")
    model.config.lineage = [*known.lineage, *known.stages]
    texts = {CARD: render(model, known)}
    if known.calibration:
        texts[CALIBRATION] = known.calibration.to_json()
    _write(model, final, texts, weights)
    return final


def plan(
    config: Config,
    pretrained: Pretrained,
    *,
    output: str = "",
    run: str = "",
    reference: str = "",
    weights: str = "fp32",
) -> str:
    """The text of `--dry-run`: where the weights come from, and where the folder goes."""
    require_one_of("weights", weights, WEIGHTS)
    source = reference or (find(config, run) if run else pretrained(config).checkpoint)
    return f"{'from':<8}{source}\n{'to':<8}{_output(output)}"


def _output(output: str) -> str:
    require(bool(output), "output", output, "the folder to write, such as output=exports/mine")
    require_address("output", output)
    return storage.resolve(output)


def _check_free(final: str) -> None:
    """Make sure that an export may be written; what one that was broken off left in a bucket is overwritten."""
    if storage.is_local(final):
        models.check_free(final)
        return
    storage.require_bucket("output", final)
    found = storage.names(final)
    broken_off = UPLOADED[0] in found and set(found) <= set(UPLOADED[:-1])
    if found and not broken_off:
        raise OutputError(f"{final} is there already; nothing is overwritten: name a new folder, or remove it first")


def _write(model: MidiBertPreTrainedModel, final: str, texts: Mapping[str, str], weights: str) -> None:
    if storage.is_local(final):
        models.save_export(model, final, texts, weights)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = models.save_export(model, Path(scratch, "export"), texts, weights)
        storage.upload(folder, final, [name for name in UPLOADED if (folder / name).exists()])


def _from_reference(reference: str) -> tuple[MidiBertPreTrainedModel, About]:
    require_folder("reference", reference)
    path = Path(storage.resolve(reference))
    model, info = load_reference(path)
    return model, about.of_reference(info, model.config.vocabulary.families, digests.of_file(path)["sha256"])


def _from_checkpoint(uri: str) -> tuple[MidiBertPreTrainedModel, About]:
    if storage.exists(storage.join(uri, results.OUTCOME)):
        return _from_trial(uri)
    model = _open(uri)
    root, key, checkpoint = run_of(uri)
    progress = storage.find_json(storage.join(uri, PROGRESS_FILE))
    if checkpoint and progress and (trained := runs.settings(root, key)):
        last = (progress.get("reports") or [{}])[-1]
        metrics = {name: value for name, value in last.items() if name.startswith("valid/")}
        return model, about.of_pretraining(trained, root, key=key, step=int(progress["step"]), metrics=metrics)
    logger.warning("no %s beside %s: the model card will say that its training is not known", runs.SETTINGS, uri)
    return model, about.UNKNOWN


def _from_trial(uri: str) -> tuple[MidiBertPreTrainedModel, About]:
    try:
        checkpoints.verify(*storage.filesystem(uri))
    except checkpoints.CheckpointError as error:
        raise ModelFileError(f"{error}; bring it back from a copy, or export another trial") from error
    result = results.TrialResult.from_json(storage.read_bytes(storage.join(uri, results.OUTCOME)))
    place, provenance = storage.join(uri, results.ORIGIN), None
    if storage.exists(place):
        provenance = results.Provenance.from_json(storage.read_bytes(place))
    else:
        logger.warning("%s has no %s: the model card will say that its training is not known", uri, results.ORIGIN)
    known, place = about.of_trial(result, provenance), storage.join(uri, CALIBRATION)
    if storage.exists(place):  # trials of earlier versions have none
        known = dataclasses.replace(known, calibration=Calibration.from_json(storage.read_bytes(place)))
    return _open(uri), known


def _open(uri: str) -> MidiBertPreTrainedModel:
    if not storage.exists(storage.join(uri, WEIGHT_FILES[-1])):
        raise FileNotFoundError(
            f"no model in {uri}: it has no {WEIGHT_FILES[-1]}; give the checkpoint of a pre-training, such as "
            "OUT/runs/pretrain-1a2b3c4d5e/step_000000120, or a finished trial, such as "
            "OUT/studies/ablation-1a2b3c4d5e/melody-pretrained-clean-seed2021-1a2b3c4d5e"
        )
    try:
        with checkpoints.weights(uri) as folder:
            return models.load_checkpoint(folder)
    except checkpoints.CheckpointError as error:
        raise ModelFileError(f"{error}; export another of its checkpoints") from error
