"""The configuration of every job: frozen dataclasses, checked when they are made.

A field is spelled the same on the command line (`optimizer.lr=1e-4`), in a study's search space, in
MLflow and in `config.json`. Three kinds of field exist:

* *identity* fields change the result (corpora, model, seed ...). They are hashed into artifact names.
* fields *by content* say where an input lies (weights to start from): its digest is hashed, not where it lies.
* *runtime* fields change only where and how fast it is computed, or which cells of a study. They never change a
  name: a run started on a laptop goes on on a cluster, and a study that asks for more seeds keeps those it has.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from midibert_ray.music.protocol import PROTOCOLS, Protocol, ProtocolName
from midibert_ray.music.tasks import PAPER_TASKS, TASKS, Kind
from midibert_ray.settings import validators as checks
from midibert_ray.settings.augment import AugmentConfig
from midibert_ray.settings.compute import ComputeConfig
from midibert_ray.settings.protocol import ProtocolConfig
from midibert_ray.settings.validators import ConfigError, by_content, optional, require, require_some_of, runtime

__all__ = ["Config", "ConfigError", "require", "require_some_of"]

Freeze = Literal["none", "backbone", "attention"]
Variant = Literal[
    "pretrained",
    "freeze-backbone",
    "freeze-attention",
    "probe",
    "scratch",
    "rnn",
    "remi",
    "rnn-remi",
    "train-splits",
    "pop1k7-asap",
    "pretrained-by-pitch",
    "scratch-by-pitch",
    "rnn-by-pitch",
    "mask-30",
    "noise",
    "noise-roll",
    "noise-roll-transpose",
    "segment-1024",
    "constant-rate",
    "layer-decay",
    "average-3",
]
TableName = Literal["1", "2", "3", "4", "leak", "levers"]


@dataclass(frozen=True, kw_only=True)
class CorporaConfig:
    names: tuple[str, ...] = ("pop909", "asap", "pop1k7", "pianist8", "emopia")
    """Corpora to tokenize and to pre-train on; `folder:/path` or `folder:s3://bucket/prefix` is any folder of music."""
    notes: tuple[str, ...] = runtime(())
    """Classes of notes in folders of one's own, for the task `notes`: MIDI tracks, or labels in NAME.notes.csv."""
    root: str = runtime("")
    """Folder or bucket (`s3://bucket/prefix`) that holds the publishers' folders (POP909, asap-dataset, ...)."""

    def __post_init__(self) -> None:
        checks.require_address("corpora.root", self.root)
        checks.require_corpora("corpora.names", self.names)
        require(len(set(self.notes)) == len(self.notes) < 255, "corpora.notes", self.notes, "each name once, below 255")


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    protocol: ProtocolName = "clean"
    """`paper` repeats the authors' code, flaws included; `clean` repairs them; `protocol.*` switches one alone."""
    segment: int = 512
    """Time steps (super tokens) in a segment."""

    def __post_init__(self) -> None:
        require(8 <= self.segment <= 8192, "tokens.segment", self.segment, "a length from 8 to 8192")


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    fraction: float = 0.15
    """Share of a segment's positions chosen for prediction: with `pretrain.objective=mask` 80 % of them become MASK,
    10 % random, 10 % stay; with `noise` all are changed a little (M2BERT: 0.3)."""

    def __post_init__(self) -> None:
        require(0 < self.fraction < 1, "mask.fraction", self.fraction, "a share between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    representation: Literal["cp", "remi"] = "cp"
    """`cp`: one super token of four ids a note; `remi`: a flat sequence of single ids."""
    attention: Literal["relative_key_query", "rope"] = "relative_key_query"
    """`relative_key_query` is the paper's; `rope` is faster and just as good on short runs."""
    layers: int = 12
    """Transformer layers."""
    hidden: int = 768
    """Width of the hidden states."""
    heads: int = 12
    """Attention heads; must divide `model.hidden`."""
    feed_forward: int = 3072
    """Width of the feed-forward layers."""
    dropout: float = 0.1
    """Dropout of hidden states and of attention weights."""
    attention_dropout: float = optional(-1.0)
    """Dropout of attention weights where it is another one; -1: `model.dropout`. `compute.attention=flex` needs 0."""

    def __post_init__(self) -> None:
        checks.require_positive(self, "model.", "layers", "hidden", "heads", "feed_forward")
        require(self.hidden % self.heads == 0, "model.heads", self.heads, f"a divisor of model.hidden={self.hidden}")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "a share from 0 to below 1")
        share, allowed = self.attention_dropout, "a share from 0 to below 1, or -1"
        require(share == -1 or 0 <= share < 1, "model.attention_dropout", share, allowed)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    lr: float = 2e-5
    """Peak learning rate of AdamW in pre-training."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    decay: Literal["all", "matrices"] = "all"
    """`all` decays every parameter as the authors do; `matrices` spares biases and LayerNorm."""
    eps: float = 1e-6
    """AdamW's epsilon."""
    clip: float = 3.0
    """Largest norm of the gradient; 0 turns clipping off."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the rate after the warm-up; `linear` and `cosine` fall to 0 at the last step."""
    warmup_steps: int = 0
    """Steps over which the rate rises from 0."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "optimizer.lr", self.lr, "a positive rate")
        checks.require_not_negative(self, "optimizer.", "weight_decay", "clip", "warmup_steps")
        require(self.eps > 0, "optimizer.eps", self.eps, "a positive number")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    objective: Literal["mask", "noise"] = optional("mask")
    """`mask`: find masked tokens (the paper); `noise`: find the notes behind ones that were changed a little (M2BERT,
    with `mask.fraction=0.3`)."""
    roll: float = optional(0.0)
    """Weight of a second loss: at every note, the squared error of a predicted piano roll of its bar and of the chroma
    of its moment, over all 17 x 98 numbers (M2BERT: 1/176); 0: none. Exports have no head for it."""
    batch: int = 12
    """Global batch in segments (the authors' REMI code: 16); micro-batches are derived from it and the workers."""
    epochs: int = 500
    """Largest number of epochs."""
    patience: int = 30
    """Validations without a better score before the run stops early; 0 never stops early."""
    valid_every: int = 1
    """Epochs between two validations, each of which saves a checkpoint."""
    splits: Literal["all", "train"] = "all"
    """`train` leaves the validation and test pieces of labelled corpora out (paper, Table IV), under both protocols."""
    valid_fraction: float = 0.15
    """Share held out for validation, of the segments or the pieces (`protocol.validates_by`)."""
    start: str = by_content("")
    """Weights to begin with: an export (a folder, on a disk or in a bucket), the name of a model that ships, or the
    authors' .ckpt; empty: random."""

    def __post_init__(self) -> None:
        checks.require_address("pretrain.start", self.start)
        checks.require_positive(self, "pretrain.", "batch", "epochs", "valid_every")
        require(self.patience >= 0, "pretrain.patience", self.patience, "0 or more")
        require(self.roll >= 0, "pretrain.roll", self.roll, "a weight from 0")
        require(0 < self.valid_fraction < 1, "pretrain.valid_fraction", self.valid_fraction, "between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    task: str = PAPER_TASKS[0].name
    """Downstream task of one trial; a study varies it."""
    corpus: str = ""
    """Labelled corpus, or several as one, as in pop909,lieder; empty takes the task's own."""
    fold: int = runtime(0)
    """Fold that is tested, from 1; 0 where nothing is divided into folds. It is told by the address of the labels."""
    model: Literal["midibert", "rnn", "probe"] = "midibert"
    """`rnn`: the paper's Bi-LSTM baselines (§VI), from random weights by the settings of `rnn.*`; `probe`: a linear
    layer on hidden states of the frozen encoder, of the layer that is best in validation."""
    init: Literal["pretrained", "scratch"] = "pretrained"
    """Start from the pre-trained encoder or from random weights."""
    start: str = by_content("")
    """Weights whose encoder takes the place of a pre-training: as in `pretrain.start`; empty: the study pre-trains."""
    freeze: Freeze = "none"
    """`backbone`: only the head learns; `attention`: the head and the token embeddings learn (paper, Table III)."""
    freeze_layers: int = 0
    """With `finetune.freeze=none`: so many of the lowest layers, and the embeddings before them, do not learn."""
    head: Literal["paper", "linear"] = "paper"
    """`paper`: two dense layers (behind attentive pooling for sequences); `linear`: one (behind the mean)."""
    lr: float = 2e-5
    """Learning rate of AdamW; with `finetune.warmup` or `finetune.layer_decay` the highest one."""
    weight_decay: float = 0.01
    """Decoupled weight decay, of every parameter."""
    warmup: float = 0.0
    """Share of all steps over which the rate rises from 0 before it falls to 0; 0: a constant rate, as in the paper."""
    layer_decay: float = 1.0
    """Factor by which each layer below the head learns more slowly than the one above it; 1: all alike."""
    label_smoothing: float = 0.0
    """Share of a target that is spread over all classes."""
    class_balance: bool = False
    """Weigh each class by the inverse of its frequency in the training split."""
    train_segments: int = 0
    """Learn from so many segments of the training split, the same for all models and seeds; 0: from all."""
    valid_segments: int = optional(0)
    """Validate on so many segments of the validation split, the same for all models and seeds; 0: on all."""
    octave: float = optional(0.0)
    """Share of the segments whose melody moves an octave up or down against the rest, drawn anew each time; of tasks
    that tell a melody from other notes."""
    average: int = optional(1)
    """Validate and keep the mean of the weights after each of the last so many epochs (not of RNNs); 1: of one."""
    batch: int = 12
    """Segments a step."""
    epochs: int = 10
    """Largest number of epochs."""
    patience: int = 3
    """Epochs without a better validation accuracy before a trial stops; 0 never stops early."""

    def __post_init__(self) -> None:
        checks.require_task("finetune.task", self.task, self.corpus, tuple(TASKS))
        checks.require_corpora("finetune.corpus", checks.corpora_of(self.corpus) or ("",))
        checks.require_address("finetune.start", self.start)
        checks.require_positive(self, "finetune.", "batch", "epochs", "lr", "average")
        checks.require_not_negative(
            self, "finetune.", "patience", "weight_decay", "freeze_layers", "train_segments", "valid_segments"
        )
        for name in ("warmup", "label_smoothing"):
            require(0 <= getattr(self, name) < 1, f"finetune.{name}", getattr(self, name), "a share from 0 to below 1")
        require(0 <= self.octave <= 1, "finetune.octave", self.octave, "a share from 0 to 1")
        require(0 < self.layer_decay <= 1, "finetune.layer_decay", self.layer_decay, "a factor above 0, up to 1")


@dataclass(frozen=True, kw_only=True)
class RnnConfig:
    """How the recurrent baselines are trained: by SGD with momentum, as in the authors' code."""

    lr: float = 0.0
    """Learning rate; 0 takes the authors' for the task."""
    batch: int = 0
    """Segments a step; 0 takes the authors': 16."""
    epochs: int = 500
    """Largest number of epochs."""
    patience: int = 20
    """Epochs without a lower validation loss before the rate falls; see `protocol.rnn_returns_to_best`."""
    factor: float = 0.2
    """The rate is multiplied with it then."""
    stops: int = 5
    """Such falls after which training ends."""

    def __post_init__(self) -> None:
        checks.require_positive(self, "rnn.", "epochs", "patience", "stops")
        checks.require_not_negative(self, "rnn.", "lr", "batch")
        require(0 < self.factor < 1, "rnn.factor", self.factor, "between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    name: str = "ablation"
    """Name of the study: its experiment in MLflow and the prefix of its address."""
    tasks: tuple[str, ...] = runtime(tuple(task.name for task in PAPER_TASKS if task.level == "note"))
    """Downstream tasks, a column each of the result table: of the paper, or columns of the labelled corpus's table."""
    corpus: str = runtime("")
    """Labelled corpus of all tasks, such as folder:/music, or several; empty takes that of `finetune.corpus`."""
    tests: tuple[str, ...] = runtime(())
    """Corpora on whose test pieces every trial is tested besides, a column each; trials that are differ in name."""
    folds: int = runtime(0)
    """Parts into which a labelled corpus is divided, each to be tested once; 0: train, validation and test, once."""
    kinds: tuple[str, ...] = runtime(())
    """Kinds of tasks other than their labels look, as in year:classes; there are classes, number and tags."""
    variants: tuple[str, ...] = runtime(("pretrained", "freeze-backbone", "freeze-attention", "scratch"))
    """Rows of the result table: how each trial starts, what it freezes, what it was pre-trained on. On a folder of your
    own these and `probe`."""
    tables: tuple[str, ...] = runtime(())
    """Tables of the paper (`1` to `4`) and ours: all of their rows, or those that `study.variants` names."""
    protocols: tuple[str, ...] = runtime(())
    """Protocols under which every cell is computed; none takes that of `tokens.protocol`."""
    seeds: int = runtime(1)
    """Seeds a cell: seed, seed + 1, ..."""
    draws: int = runtime(0)
    """Random settings that a sweep tries, in place of tables, variants and seeds."""

    def __post_init__(self) -> None:
        checks.require_name("study.name", self.name)
        require(self.seeds > 0, "study.seeds", self.seeds, "a positive number")
        require(self.draws >= 0, "study.draws", self.draws, "0 or more")
        checks.require_corpora("study.corpus", checks.corpora_of(self.corpus) or ("",))
        checks.require_corpora("study.tests", self.tests or ("",))
        alone = "none with study.folds or study.draws, which test each piece once or none at all"
        require(not (self.tests and (self.folds or self.draws)), "study.tests", self.tests, alone)
        checks.require_kinds("study.kinds", self.kinds, self.tasks, get_args(Kind))
        if self.tables:
            require_some_of("study.tables", self.tables, get_args(TableName))
        if self.protocols:
            require_some_of("study.protocols", self.protocols, tuple(PROTOCOLS))
        if self.variants or not self.tables:
            require_some_of("study.variants", self.variants, get_args(Variant))


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    root: str = runtime("~/midibert")
    """Folder, `s3://bucket/prefix` or `gs://bucket/prefix` below which every artifact is written: tokens, runs,
    studies. Behind it may stand which server of your own has the bucket: `?endpoint_override=HOST:PORT&scheme=http`."""
    cache: str = runtime("~/.cache/midibert_ray")
    """Folder on each node's own disk for memory-mapped copies of token stores, shared by the node's processes."""
    cache_gib: float = runtime(50.0)
    """GiB that these copies may take: before one is made, those go that lay unused for longest; 0 sets no bound."""

    def __post_init__(self) -> None:
        checks.require_address("storage.root", self.root)
        checks.require_folder("storage.cache", self.cache)
        require(self.cache_gib >= 0, "storage.cache_gib", self.cache_gib, "0 or more")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    uri: str = runtime("")
    """MLflow server (http://HOST:5000; work goes on while it is away) or database; empty: sqlite in `storage.root`."""
    register: str = runtime("")
    """Name under which the model of a pre-training, or the best of a study by validation, is registered in MLflow; with
    several tasks or protocols theirs are put behind it. Empty registers none."""

    def __post_init__(self) -> None:
        if self.register:
            checks.require_name("tracking.register", self.register)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of every job. `config.optimizer.lr` is `optimizer.lr` everywhere else."""

    seed: int = 2021
    """Seed from which every random draw descends."""
    corpora: CorporaConfig = CorporaConfig()
    tokens: TokensConfig = TokensConfig()
    protocol: ProtocolConfig = field(default=ProtocolConfig())
    mask: MaskConfig = MaskConfig()
    augment: AugmentConfig = field(default=AugmentConfig())
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    rnn: RnnConfig = RnnConfig()
    study: StudyConfig = StudyConfig()
    compute: ComputeConfig = field(default=ComputeConfig())
    storage: StorageConfig = StorageConfig()
    tracking: TrackingConfig = TrackingConfig()

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**31, "seed", self.seed, "0 to 2147483647")
        _ = self.protocol_in_force  # raises on a contradiction
        ours = (self.study.corpus or self.finetune.corpus) in checks.OURS  # others' columns are known once it is listed
        require_some_of("study.tasks", self.study.tasks, tuple(TASKS) if ours else self.study.tasks)
        checks.require_folds("study.folds", self.study.folds, possible=not (ours or self.study.draws))
        dropped = self.model.dropout if self.model.attention_dropout < 0 else self.model.attention_dropout
        allowed = "dense, or flex with model.attention_dropout=0, as FlexAttention knows no dropout"
        require(self.compute.attention == "dense" or not dropped, "compute.attention", self.compute.attention, allowed)
        allowed = "0 where notes of one onset come track by track, or are no tokens; set protocol.order=pitch for CP"
        octave = self.model.representation == "cp" and self.protocol_in_force.order == "pitch"
        require(octave or not self.finetune.octave, "finetune.octave", self.finetune.octave, allowed)
        whole = self.compute.compile == "step" and self.pretrain.roll > 0
        allowed = "off or layers with pretrain.roll, whose shapes depend on the notes"
        require(not whole, "compute.compile", self.compute.compile, allowed)
        if self.model.representation != "cp":
            what = "with model.representation=cp alone, whose tokens are notes"
            require(self.pretrain.objective == "mask", "pretrain.objective", self.pretrain.objective, f"noise {what}")
            require(not self.pretrain.roll, "pretrain.roll", self.pretrain.roll, f"it {what}")
            for name in ("transpose", "shift", "scale", "thin"):
                value = getattr(self.augment, name)
                require(not value, f"augment.{name}", value, f"it {what}")

    @property
    def begins_with(self) -> str:
        """The weights that all encoders of a study begin with; empty: random ones."""
        return self.finetune.start or self.pretrain.start

    @property
    def protocol_in_force(self) -> Protocol:
        """The protocol that `tokens.protocol` names, with the fields that `protocol.*` switches."""
        return self.protocol.upon(PROTOCOLS[self.tokens.protocol])
