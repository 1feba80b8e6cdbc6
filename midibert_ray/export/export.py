"""Any model as a folder that transformers opens: a finished pre-training, a checkpoint, a trial, a file of the
authors' code.

    config.json  model.safetensors  vocabulary.json  README.md (the model card)

Readers of the folder need neither Ray nor DeepSpeed nor MLflow.
"""

import hashlib
import json
import logging
import math
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from midibert_ray import pipeline, storage, tracking
from midibert_ray.corpora.catalogue import corpus
from midibert_ray.export.card import CARD, About, output_names, render
from midibert_ray.export.reference import load_reference
from midibert_ray.model.folder import (
    VOCABULARY,
    WEIGHT_FILES,
    CheckpointError,
    OutputError,
    check_free,
    load_checkpoint,
    save_export,
)
from midibert_ray.model.midibert import MidiBertPreTrainedModel
from midibert_ray.music.tasks import TASKS
from midibert_ray.report.statistics import wilson
from midibert_ray.settings.config import Config, ConfigError, FinetuneConfig
from midibert_ray.settings.overrides import flatten, from_flat, identity_fields, replace
from midibert_ray.settings.validators import require, require_address, require_folder
from midibert_ray.studies import result as outcome
from midibert_ray.studies.plan import task_corpus
from midibert_ray.studies.result import Origin, Outcome
from midibert_ray.training import checkpoints
from midibert_ray.training.checkpoints import verify, weights
from midibert_ray.training.engine import PROGRESS_FILE
from midibert_ray.training.launch import SECTIONS

logger = logging.getLogger(__name__)

SETTINGS = {
    "output": "Folder to write, local or `s3://bucket/prefix`; it must be new or empty.",
    "run": "Address of a checkpoint to export, such as OUT/runs/pretrain-1a2b3c4d5e/step_000000120, or of a finished "
    "trial, such as OUT/studies/ablation-1a2b3c4d5e/melody-pretrained-seed2021; without it and without reference, the "
    "best checkpoint of the finished pre-training of these settings is exported.",
    "reference": "A .ckpt file of the authors' code (pre-trained, note-level or sequence-level) to export instead. "
    "It is a pickle, and is refused if it holds anything but tensors and plain values.",
}
"""What an export takes beside the configuration: name -> meaning."""

TRIAL_SECTIONS = ("seed", "tokens", "model", "optimizer", "finetune", "compute")
"""What changes the weights of a trial, beside its encoder."""

UPLOADED = (WEIGHT_FILES[1], VOCABULARY, CARD, WEIGHT_FILES[0])
"""What an export is in a bucket, in the order in which it is written: the last says that the others are there."""

FROZEN = {"none": "", "backbone": " with the encoder frozen", "attention": " with the Transformer layers frozen"}
"""What `finetune.freeze` is called on a card."""

PAPER_CORPORA = ("pop909", "pop1k7", "asap", "pianist8", "emopia")
REFERENCE_NOTE = (
    "The file does not say what it was trained on. These are the corpora of the paper, which the weights that its "
    "authors published were pre-trained on; weights that others trained with their code may come from other music."
)


def export(config: Config, *, output: str = "", run: str = "", reference: str = "") -> str:
    """Write a model as a folder, whole or not at all, and return the folder's address.

    In a bucket the folder is a model as soon as it has a config.json, which is written last.

    Args:
        config: describes the pre-training to export, where neither `run` nor `reference` is given.
        output: folder to write, local or in a bucket.
        run: address of a checkpoint, or of a finished trial, to export instead.
        reference: path of a file of the authors' code to export instead.

    Raises:
        ConfigError: for no output, an address that cannot be used, or two sources.
        OutputError: where something is at the output already.
        CheckpointError: for a source that is no whole model, or a pickle that holds more than tensors.
        FileNotFoundError: where the source is not there; MissingInputError where no such pre-training has finished.
    """
    final = _output(output)
    _check_free(final)
    if run and reference:
        raise ConfigError(f"run={run} and reference={reference} are two sources; give one of them")
    if reference:
        require_folder("reference", reference)
        model, about = _from_reference(Path(storage.resolve(reference)))
    elif run:
        require_address("run", run)
        model, about = _from_checkpoint(config, storage.resolve(run))
    else:
        model, about = _from_settings(config)
    if names := about.classes or output_names(model):
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}
    _write(model, final, {CARD: render(model, about)})
    return final


def _output(output: str) -> str:
    require(bool(output), "output", output, "the folder to write, such as output=exports/mine")
    require_address("output", output)
    return storage.resolve(output)


def _check_free(final: str) -> None:
    """Make sure that an export may be written; what one that was broken off left in a bucket is overwritten."""
    if storage.is_local(final):
        check_free(final)
        return
    storage.require_bucket("output", final)
    found = storage.names(final)
    broken_off = UPLOADED[0] in found and set(found) <= set(UPLOADED[:-1])
    if found and not broken_off:
        raise OutputError(f"{final} is there already; nothing is overwritten: name a new folder, or remove it first")


def _write(model: MidiBertPreTrainedModel, final: str, texts: Mapping[str, str]) -> None:
    if storage.is_local(final):
        save_export(model, final, texts)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_export(model, Path(scratch, "export"), texts)
        storage.upload(folder, final, UPLOADED)


def plan(config: Config, *, output: str = "", run: str = "", reference: str = "") -> str:
    """What `--dry-run` prints: where the weights come from, and where the folder goes."""
    source = reference or run or pipeline.pretrained(config).checkpoint
    return f"{'from':<8}{source}\n{'to':<8}{_output(output)}"


def _from_reference(path: Path) -> tuple[MidiBertPreTrainedModel, About]:
    model, info = load_reference(path)
    epoch = info.scores.get("epoch")
    about = About(
        origin="Converted by `midibert_ray` from a checkpoint of the "
        f"[authors' code](https://github.com/wazenmai/MIDI-BERT), kind: {info.kind}; sha256 of the file "
        f"`{_sha256(path)}`. Left out are {len(info.dropped)} tensors that never got a gradient (BERT's word table, "
        "absolute positions and pooler).",
        protocol="paper",
        corpora=tuple(map(corpus, PAPER_CORPORA)),
        corpora_note=REFERENCE_NOTE,
        figures=_numbers(info.scores, model.config.vocabulary.families),
        measured_on="As the file states them" + (f", after epoch {epoch}." if isinstance(epoch, int) else "."),
    )
    return model, about


def _numbers(scores: Mapping[str, Any], families: Mapping[str, Any]) -> dict[str, float]:
    """The losses and accuracies of an authors' file; whatever else it holds is left out."""
    figures: dict[str, float] = {}
    for name in ("train_loss", "train_acc", "valid_loss", "valid_acc"):
        value = scores.get(name)
        parts = value if isinstance(value, list) else []
        spread = {f"{name}/{family.lower()}": part for family, part in zip(families, parts, strict=False)}
        known = {key: part for key, part in ({name: value} | spread).items() if isinstance(part, float | int)}
        figures |= {key: float(part) for key, part in known.items() if math.isfinite(part)}
    return figures


def _from_settings(config: Config) -> tuple[MidiBertPreTrainedModel, About]:
    done = pipeline.pretrained(config)
    return _open(done.checkpoint), _about(config, key=done.key, step=done.step, figures=done.metrics)


def _from_checkpoint(config: Config, address: str) -> tuple[MidiBertPreTrainedModel, About]:
    if trial := _trial_checkpoint(address):
        return _from_trial(trial)
    model, step = _open(address), _step(address)
    root, key = _run_of(address)
    recorded = _recorded(config, root, key, step)
    if recorded:
        trained, figures = recorded
        return model, _about(trained, key=key, step=step, figures=figures)
    logger.warning("MLflow has no run of %s: the model card will say that its training is not known", address)
    return model, About(origin="Weights of whose training nothing is known.", protocol=None, corpora=())


def _run_of(address: str) -> tuple[str, str]:
    """Storage root and key of the run that a checkpoint `{root}/runs/<key>/<checkpoint>` belongs to, or nothing."""
    place = storage.without_query(address)
    found = re.fullmatch(r"(.+)/runs/([\w.-]+)/[^/]+/?", place)
    return (found[1] + address.removeprefix(place), found[2]) if found else ("", "")


def _recorded(config: Config, root: str, key: str, step: int | None) -> tuple[Config, dict[str, float]] | None:
    """The configuration of a run, and its validation figures at a step, as MLflow holds them."""
    if not key or not (config.tracking.uri or storage.is_local(root)):
        return None
    where = tracking.address(replace(config, {"storage.root": root}))
    if where.uri.startswith("sqlite:///") and not Path(where.uri.removeprefix("sqlite:///")).exists():
        return None  # looking would make an empty database
    tracker = tracking.Tracker(where)
    run = tracker.find(tracking.PRETRAINING, key)
    if run is None:
        return None
    known = flatten(Config()).keys() & run.data.params.keys()
    trained = from_flat({name: value for name, value in run.data.params.items() if name in known})
    names = sorted(name for name in run.data.metrics if name.startswith("valid/"))
    points = {name: dict(tracker.curve(run.info.run_id, name)) for name in names}
    return trained, {name: curve[step] for name, curve in points.items() if step in curve}


def _about(config: Config, *, key: str, step: int | None, figures: Mapping[str, float]) -> About:
    steps = "" if step is None else f" after {step:,} optimizer steps"
    unit = f"{config.protocol_in_force.validates_by}s"
    part = f"{config.pretrain.valid_fraction:.0%} of the {unit} of the corpora, held out for validation"
    return About(
        origin=f"Pre-trained by masked language modelling with `midibert_ray`: run `{key}`{steps}.",
        protocol=config.tokens.protocol,
        corpora=tuple(map(corpus, config.corpora.names)),
        figures={name: value for name, value in sorted(figures.items()) if name != "valid/score"},
        measured_on=f"How well masked tokens ({config.mask.fraction:.0%} of the positions) are recovered in {part}; "
        "not how well a downstream task is solved. Loss is cross-entropy in nats, accuracy a share, and totals weigh "
        "token types by their number of ids.",
        settings=_settings(config, SECTIONS),
    )


def _settings(config: Config, sections: Iterable[str]) -> dict[str, object]:
    """The settings of some sections that change weights.

    The card has a section for corpora, which in the settings may be addresses of the machine.
    """
    return {name: value for name, value in identity_fields(config, sections).items() if name != "finetune.corpus"}


def _trial_checkpoint(address: str) -> str | None:
    """The checkpoint with the outcome of a trial, given its address or that of the trial; None where it is no trial.

    Raises FileNotFoundError where the trial has not finished.
    """
    if storage.exists(storage.join(address, outcome.OUTCOME)):
        return address
    name = outcome.newest(address)
    if name is None:
        return None
    found = storage.join(address, name)
    if not storage.exists(storage.join(found, outcome.OUTCOME)):
        raise FileNotFoundError(
            f"the trial in {address} has not finished: no whole checkpoint in it holds {outcome.OUTCOME}; start its "
            "study again, with the same settings, which goes on where it stopped"
        )
    return found


def _from_trial(address: str) -> tuple[MidiBertPreTrainedModel, About]:
    try:
        verify(*storage.filesystem(address))
    except checkpoints.CheckpointError as error:
        raise CheckpointError(f"{error}; bring it back from a copy, or export another trial") from error
    result = Outcome.from_json(storage.read_bytes(storage.join(address, outcome.OUTCOME)))
    place = storage.join(address, outcome.ORIGIN)
    if storage.exists(place):
        return _open(address), _about_trial(result, Origin.from_json(storage.read_bytes(place)))
    logger.warning("%s has no %s: the model card will say that its training is not known", address, outcome.ORIGIN)
    about = About(
        origin=f"Fine-tuned for {result.task} with `midibert_ray`: trial `{result.trial}`. Nothing is known of its "
        "settings.",
        protocol=None,
        corpora=(),
        **_scores(result, "the test split"),
    )
    return _open(address), about


def _about_trial(result: Outcome, origin: Origin) -> About:
    config = from_flat({name: value for name, value in origin.config.items() if name in flatten(Config())})
    pretrained = config.finetune.init == "pretrained"
    labelled = corpus(task_corpus(config, result.task))
    encoder = f"the encoder of pre-training `{_run_of(origin.encoder)[1] or 'unknown'}`"
    start = encoder if pretrained else "random weights, without pre-training"
    epochs = f"{result.epoch} epoch{'s' * (result.epoch != 1)}"
    return About(
        origin=f"Fine-tuned for {result.task} with `midibert_ray`: trial `{result.trial}` of study `{origin.study}`, "
        f"{epochs} from {start}{_frozen(config.finetune)}. These are the weights of the epoch that was best in "
        "validation.",
        protocol=config.tokens.protocol,
        corpora=tuple(map(corpus, config.corpora.names)) if pretrained else (),
        labelled=(labelled,),
        settings=_settings(config, TRIAL_SECTIONS + (("mask", "pretrain") if pretrained else ())),
        **_scores(result, f"the test split of {labelled.slug}, protocol `{config.tokens.protocol}`"),
    )


def _frozen(settings: FinetuneConfig) -> str:
    if settings.freeze == "none" and settings.freeze_layers:
        return f" with the embeddings and the lowest {settings.freeze_layers} of the Transformer layers frozen"
    return FROZEN[settings.freeze]


def _scores(result: Outcome, where: str) -> dict[str, Any]:
    """What a card says of a trial's head and of its figures."""
    task, accuracy = TASKS[result.task], result.figures["test/accuracy"]
    unit, (low, high) = "notes" if task.level == "note" else "segments", wilson(accuracy * result.scored, result.scored)
    return {
        "task": task,
        "classes": tuple(result.classes),
        "figures": {name: value for name, value in sorted(result.figures.items()) if math.isfinite(value)},
        "measured_on": f"`test/`: {result.scored:,} {unit} of {where}, scored once. The 95 % interval of the accuracy, "
        f"as if they were independent, is {low:.4f} to {high:.4f}; always answering their most frequent class would "
        f"score {result.majority:.4f}. Accuracy is a share, F1 the mean over classes, loss cross-entropy in nats; "
        "`valid/best` is the accuracy on the validation split by which the epoch was chosen.",
    }


def _open(address: str) -> MidiBertPreTrainedModel:
    if not storage.exists(storage.join(address, WEIGHT_FILES[-1])):
        raise FileNotFoundError(
            f"no model in {address}: it has no {WEIGHT_FILES[-1]}; give the checkpoint of a pre-training, such as "
            "OUT/runs/pretrain-1a2b3c4d5e/step_000000120, or a finished trial, such as "
            "OUT/studies/ablation-1a2b3c4d5e/melody-pretrained-seed2021"
        )
    try:
        with weights(address) as folder:
            return load_checkpoint(folder)
    except checkpoints.CheckpointError as error:
        raise CheckpointError(f"{error}; export another of its checkpoints") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _step(address: str) -> int | None:
    """Optimizer steps behind a checkpoint, if it says so."""
    place = storage.join(address, PROGRESS_FILE)
    return int(json.loads(storage.read_bytes(place))["step"]) if storage.exists(place) else None
