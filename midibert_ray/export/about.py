"""Facts about weights that the weights do not hold: their origin, corpora, settings and test scores."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from scipy.stats import binomtest

from midibert_ray import storage
from midibert_ray.corpora.catalogue import Corpus, corpus
from midibert_ray.data.format import MANIFEST
from midibert_ray.export.find import run_of
from midibert_ray.model.calibration import Calibration
from midibert_ray.model.reference import ReferenceInfo
from midibert_ray.music.protocol import PAPER, Protocol
from midibert_ray.music.tasks import TASKS, Kind, Metric, Task
from midibert_ray.settings.config import Config, FinetuneConfig
from midibert_ray.settings.overrides import flatten, from_flat, identity_fields
from midibert_ray.studies.plan import TRIAL_SECTIONS, task_corpora
from midibert_ray.studies.result import METRIC, METRIC_WORDS, Provenance, TrialResult
from midibert_ray.training import start
from midibert_ray.training.runs import INPUTS, SECTIONS
from midibert_ray.training.task_data import split_of

_REFERENCE_NOTE = (
    "The file does not say what it was trained on. These are the corpora of the paper, which the weights that its "
    "authors published were pre-trained on; weights that others trained with their code may come from other music."
)
_FROZEN = {"none": "", "backbone": " with the encoder frozen", "attention": " with the Transformer layers frozen"}


Stage = Mapping[str, Any]
"""An entry of a model's lineage; see `MidiBertConfig`."""


@dataclass(frozen=True, kw_only=True)
class About:
    """Facts about one model, for its card."""

    origin: str
    """Where they come from, as Markdown."""
    protocol: Protocol | None
    """None: not known."""
    corpora: tuple[Corpus, ...]
    """Corpora that the encoder was pre-trained on; empty: not known, or nothing where `labelled` is known."""
    labelled: tuple[Corpus, ...] = ()
    """Corpora that it was fine-tuned on; empty: told by the head's outputs, if at all."""
    task: Task | None = None
    """The task that it was fine-tuned for; None: told by the head's outputs, if at all."""
    classes: tuple[str, ...] = ()
    """Names of the head's outputs, in order; empty: told by their number, if at all."""
    corpora_note: str = ""
    """How the corpora are known, where that is in doubt."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metric -> value, in the spelling of MLflow."""
    measured_on: str = ""
    """The data that the metrics were measured on, as Markdown."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Dotted settings of the run, those that change its result."""
    calibration: Calibration | None = None
    """How far its probabilities can be trusted; None: not known, or it gives none."""
    stages: tuple[Stage, ...] = ()
    """Its own stages of training, for its `lineage` and those of models that start from it."""
    lineage: tuple[Stage, ...] = ()
    """The stages of the weights that it started from."""
    rounded: bool = False
    """True where its weights are written in bf16."""
    remarks: Mapping[str, int] = field(default_factory=dict)
    """Remarks of the manifests of the token stores that it was trained on, counted."""

    @property
    def earlier(self) -> list[Corpus] | None:
        """The corpora behind the weights that it started from; None where that is not known."""
        if any(stage.get("corpora") is None for stage in self.lineage):
            return None
        return [corpus(name) for stage in self.lineage for name in stage["corpora"]]


def _stage(words: str, corpora: Iterable[Corpus] | None) -> Stage:
    """A stage of training; of a folder of the user's the name is kept, not the address."""
    names = None if corpora is None else [re.sub("^folder-", "folder:", each.slug) for each in corpora]
    return {"stage": words, "corpora": names}


UNKNOWN = About(
    origin="Weights of whose training nothing is known.",
    protocol=None,
    corpora=(),
    stages=(_stage(start.UNKNOWN, None),),
)


def of_reference(info: ReferenceInfo, families: Iterable[str], sha256: str) -> About:
    """A file of the authors' code, given its token types and digest."""
    epoch = info.scores.get("epoch")
    return About(
        origin="Converted by `midibert_ray` from a checkpoint of the "
        f"[authors' code](https://github.com/wazenmai/MIDI-BERT), kind: {info.kind}; sha256 of the file `{sha256}`. "
        f"Left out are {len(info.dropped)} tensors that never got a gradient (BERT's word table, absolute positions "
        "and pooler).",
        protocol=PAPER,
        corpora=tuple(map(corpus, Config().corpora.names)),
        corpora_note=_REFERENCE_NOTE,
        stages=(_stage(f"{start.AUTHORS}, sha256 of the file `{sha256}`", map(corpus, Config().corpora.names)),),
        metrics=_reference_metrics(info.scores, list(families)),
        measured_on="As the file states them" + (f", after epoch {epoch}." if isinstance(epoch, int) else "."),
    )


def _reference_metrics(scores: Mapping[str, Any], families: list[str]) -> dict[str, float]:
    """The losses and accuracies of an authors' file, a number or one a token type; whatever else it holds is left."""
    metrics: dict[str, Any] = {}
    for name in ("train_loss", "train_acc", "valid_loss", "valid_acc"):
        value = scores.get(name)
        each = value if isinstance(value, list) else []
        metrics |= {name: value} | {
            f"{name}/{family.lower()}": number for family, number in zip(families, each, strict=False)
        }
    return {
        name: float(value) for name, value in metrics.items() if isinstance(value, float | int) and math.isfinite(value)
    }


def remarks_on(root: str, key: str) -> dict[str, int]:
    """Remarks of the manifests of a pre-training run's token stores, as far as these are still there."""
    inputs = storage.join(storage.root.runs(root), key, INPUTS)
    total: Counter[str] = Counter()
    for store in storage.find_json(inputs) or {}:
        manifest = storage.find_json(storage.join(storage.root.tokens(root), store, MANIFEST)) or {}
        total.update(manifest.get("remarks", {}))
    return dict(total)


def of_pretraining(config: Config, root: str, *, key: str, step: int | None, metrics: Mapping[str, float]) -> About:
    """A checkpoint of a pre-training run below a storage root."""
    steps = "" if step is None else f" after {step:,} optimizer steps"
    unit = config.protocol_in_force.validates_by
    corpora = tuple(map(corpus, config.corpora.names))
    held_out = f"{config.pretrain.valid_fraction:.0%} of the {unit}s of the corpora, held out for validation"
    return About(
        origin=f"Pre-trained by masked language modelling with `midibert_ray`: run `{key}`{steps}.",
        protocol=config.protocol_in_force,
        corpora=corpora,
        stages=(_stage(f"pre-training `{key}`{steps}", corpora),),
        metrics={name: value for name, value in sorted(metrics.items()) if name != "valid/score"},
        measured_on=f"How well masked tokens ({config.mask.fraction:.0%} of the positions) are recovered in "
        f"{held_out}; not how well a downstream task is solved. Loss is cross-entropy in nats, accuracy a share, and "
        "totals weigh token types by their number of ids.",
        settings=_settings(config, SECTIONS),
        remarks=remarks_on(root, key),
    )


def of_trial(result: TrialResult, provenance: Provenance | None) -> About:
    """A finished trial; of one without its provenance only the metrics are known."""
    head = f"Fine-tuned for {result.task} with `midibert_ray`: trial `{result.trial}`"
    if provenance is None:
        text = f"{head}. Nothing is known of its settings."
        unknown = (_stage(f"trial `{result.trial}`", None),)
        return About(origin=text, protocol=None, corpora=(), stages=unknown, **_scores(result, "the test split"))
    config = from_flat({name: value for name, value in provenance.config.items() if name in flatten(Config())})
    pretrained = config.finetune.init == "pretrained" and not provenance.start
    labelled = tuple(map(corpus, task_corpora(config, result.task)))
    root, key, _ = run_of(provenance.encoder)
    begin = "random weights, without pre-training"
    if pretrained or provenance.start:
        begin = f"the encoder of pre-training `{key or 'unknown'}`" if pretrained else "the encoder of its lineage"
    epochs = f"{result.epoch} epoch{'s' * (result.epoch != 1)}"
    sections = {*TRIAL_SECTIONS} - {"rnn"} | ({"mask", "pretrain"} if pretrained else set())  # no RNN is exported
    corpora = tuple(map(corpus, config.corpora.names)) if pretrained else ()
    tested = " and ".join(each.slug for each in labelled)
    own = _stage(f"fine-tuning for {result.task}, trial `{result.trial}` of study `{provenance.study}`", labelled)
    return About(
        origin=f"{head} of study `{provenance.study}`, {epochs} from {begin}{_frozen(config.finetune)}. These are the "
        "weights of the epoch that was best in validation.",
        protocol=config.protocol_in_force,
        corpora=corpora,
        labelled=labelled,
        settings=_settings(config, sections),
        stages=(*((_stage(f"pre-training `{key or 'unknown'}`", corpora),) if pretrained else ()), own),
        remarks=remarks_on(root, key) if pretrained and key else {},
        **_scores(result, f"the test split of {tested}, protocol `{config.protocol_in_force.describe()}`", labelled),
    )


def _settings(config: Config, sections: Iterable[str]) -> dict[str, object]:
    """The settings of some sections that change weights.

    The card has a section for corpora, which in the settings may be addresses of the machine.
    """
    return {name: value for name, value in identity_fields(config, sections).items() if name != "finetune.corpus"}


def _frozen(settings: FinetuneConfig) -> str:
    if settings.freeze == "none" and settings.freeze_layers:
        return f" with the embeddings and the lowest {settings.freeze_layers} of the Transformer layers frozen"
    return _FROZEN[settings.freeze]


def _task(result: TrialResult, labelled: Sequence[Corpus]) -> Task:
    """The task of a trial; one of somebody's own labels as its result tells it."""
    of_notes = result.kind == "classes" and "test/piece_accuracy" not in result.metrics
    padding = of_notes and result.classes[:1] == ["padding"]
    classes = tuple(result.classes[padding:])
    known = TASKS.get(result.task)
    if known and known.classes == classes:
        return known
    return Task(
        name=result.task,
        level="note" if of_notes else "sequence",
        kind=cast(Kind, result.kind),
        classes=classes,
        corpus=labelled[0].name if labelled else "",
        column="part" if of_notes else "label",
        metric="f1" if of_notes else cast(Metric, METRIC[result.kind]),
        melody=result.melody,
    )


def _scores(result: TrialResult, where: str, labelled: Sequence[Corpus] = ()) -> dict[str, Any]:
    """The fields of `About` that tell of a trial's head and of its metrics."""
    told = {
        "classes": "Accuracy is a share, F1 the mean over classes, loss cross-entropy in nats",
        "number": "R² is the share of the variance that is explained, mae the mean absolute error and loss the mean "
        "squared one, in the units of the labels, spearman a correlation of ranks",
        "tags": "Average precision and F1 are means over the tags, accuracy the share of right decisions, loss "
        "cross-entropy in nats",
    }
    unit = "pieces" if result.kind != "classes" else "segments" if "test/piece_accuracy" in result.metrics else "notes"
    certain = _certainty(result) if result.kind == "classes" else ""
    task = _task(result, labelled)
    chosen = METRIC_WORDS[result.kind] if task.metric == METRIC[result.kind] else "mean of F1 over classes"
    besides = {
        name.replace("test", split_of(corpus(other).slug), 1): value
        for other, found in result.besides.items()
        for name, value in found["metrics"].items()
    }
    also = " `test/NAME/`: the same of the test pieces of another corpus." if besides else ""
    return {
        "task": task,
        "classes": tuple(result.classes),
        "metrics": {name: value for name, value in sorted((result.metrics | besides).items()) if math.isfinite(value)},
        "measured_on": f"`test/`: {result.scored:,} {unit} of {where}, scored once.{certain} {told[result.kind]}; "
        f"`valid/best` is the {chosen} on the validation split by which the epoch was chosen.{also}",
    }


def _certainty(result: TrialResult) -> str:
    right = round(result.metrics["test/accuracy"] * result.scored)
    low, high = binomtest(right, result.scored).proportion_ci(0.95, method="wilson")
    return (
        f" The 95 % interval of the accuracy, as if they were independent, is {low:.4f} to {high:.4f}; always "
        f"answering their most frequent class would score {result.majority:.4f}."
    )
