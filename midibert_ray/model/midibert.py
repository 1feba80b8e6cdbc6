"""MidiBERT: CP or REMI tokens -> a bidirectional Transformer encoder, and its heads for masked tokens.

The paper's model (paper §V): BERT-base fed with the concatenated embeddings of the token types, relative
positions, and one linear layer a token type on top while pre-training. BERT's word table, absolute positions
and pooler, which the authors' code carries along although they never get a gradient, do not exist here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from midibert_ray.model.attention import ATTENTIONS, Mask, SelfAttention
from midibert_ray.model.chosen import Chosen
from midibert_ray.model.cpu import Dropout, GeluLinear
from midibert_ray.model.flex import BlockedMask
from midibert_ray.model.inputs import require_inputs
from midibert_ray.model.onednn import Linear
from midibert_ray.model.packing import Packing
from midibert_ray.music.vocabulary import CP, REMI, Vocabulary

VOCABULARIES = {vocabulary.name: vocabulary for vocabulary in (CP, REMI)}
"""Name of the representation -> meaning of a model's tokens."""

HEADS = ("paper", "linear")
"""Kinds of fine-tuning heads."""

PROBLEMS: dict[str, Any] = {
    "classes": "single_label_classification",
    "tags": "multi_label_classification",
    "number": "regression",
}
"""Kind of a task -> transformers' word for it."""

IGNORE = -100
"""Label of a position that is not scored, as torch and transformers have it."""


class MidiBertConfig(PreTrainedConfig):
    """Sizes of a MidiBERT; the defaults are the paper's. Raises ValueError on a value that cannot work.

    `attention_probs_dropout_prob` and `hidden_dropout_prob` are BERT's names. `num_classes` (or `num_labels`, as
    transformers calls it) and `head` (`paper` or `linear`) belong to the fine-tuning heads. `task` and `protocol` (its
    `name`, and the fields that were switched) say what it was trained for and how; None: not known. `lineage` lists
    what the weights come from, first to last, each with the `stage` in words, the `corpora` that it learned from, and
    the `sha256` of the weights that it ended with; None: from random weights.
    """

    model_type = "midibert"
    attribute_map: ClassVar[dict[str, str]] = {"num_labels": "num_classes"}

    representation: str = "cp"
    attention: str = "relative_key_query"
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_length: int = 512
    embedding_size: int = 256
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    num_classes: int | None = None
    head: str = "paper"
    task: str | None = None
    protocol: dict[str, Any] | None = None
    lineage: list[dict[str, Any]] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        classes = kwargs.pop("num_labels", self.num_classes)
        super().__post_init__(**kwargs)
        self.num_classes = classes  # transformers takes 2 where nothing is said
        if len(self.id2label or ()) != classes:  # the names are those of another head
            self.id2label = self.label2id = None
        for name, allowed in (("representation", VOCABULARIES), ("attention", ATTENTIONS), ("head", HEADS)):
            self._check(name, getattr(self, name) in allowed, f"one of {sorted(allowed)}")
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        for name in (*sizes, "max_length", "embedding_size"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            self._check(name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        divides = self.hidden_size % self.num_attention_heads == 0
        self._check("num_attention_heads", divides, f"a divisor of hidden_size={self.hidden_size}")
        if self.attention == "rope":
            even = self.hidden_size // self.num_attention_heads % 2 == 0
            self._check("num_attention_heads", even, f"even hidden_size={self.hidden_size} / heads (rope)")
        self._check("num_classes", self.num_classes is None or self.num_classes >= 1, "None or at least 1")

    def _check(self, name: str, fine: bool, allowed: str) -> None:
        if not fine:
            value = getattr(self, name)
            raise ValueError(f"MidiBertConfig.{name}={value!r} is not possible; allowed: {allowed}")

    def name_classes(self, names: Sequence[str], kind: str = "classes") -> None:
        """Tell what the outputs of a fine-tuning head are, in transformers' own fields.

        names: of the classes, in order; none for a number. kind: of the task, see `PROBLEMS`.
        """
        self.problem_type = PROBLEMS[kind]
        if not names:
            return
        self.id2label = dict(enumerate(names))
        self.label2id = {name: number for number, name in enumerate(names)}

    @property
    def vocabulary(self) -> Vocabulary:
        """The meaning of the ids that the model takes."""
        return VOCABULARIES[self.representation]


class TokenTable(nn.Embedding):
    """Embeddings of one token type, drawn from N(0, 1) as in the authors' code and not from BERT's normal."""


class TokenEmbeddings(nn.Module):
    """Look up every token type, scale by sqrt(embedding_size), concatenate, project (paper §V-A, Fig. 2a)."""

    def __init__(self, representation: str, embedding_size: int, hidden_size: int) -> None:
        super().__init__()
        self.sizes = sizes = VOCABULARIES[representation].sizes
        self.scale = math.sqrt(embedding_size)
        self.tables = nn.ModuleList(TokenTable(size, embedding_size) for size in sizes)
        self.projection = Linear(embedding_size * len(sizes), hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [b, t, 4] (CP) or [b, t] (REMI) -> float [b, t, hidden_size]."""
        return self._multi_hot(tokens) @ self.projection(self._rows())

    def _rows(self) -> Tensor:
        """Input of the projection for every single id: its vector where its token type stands, 0 elsewhere.

        Projecting these few rows, and adding up those of a super token, is the same sum as projecting every super
        token of a batch, for a thirtieth of the arithmetic. The last row is 0: it takes back superfluous biases.
        """
        # Through the modules, not their weights: a sharded optimizer gathers weights when modules run.
        device = self.projection.weight.device
        blocks = [table(torch.arange(size, device=device)) for table, size in zip(self.tables, self.sizes, strict=True)]
        return F.pad(torch.block_diag(*blocks) * self.scale, (0, 0, 0, 1))

    def _multi_hot(self, tokens: Tensor) -> Tensor:
        """Number of times that a super token takes each of those rows: float [b, t, ids of all types + 1]."""
        types, weight = len(self.sizes), self.projection.weight
        columns = tokens.reshape(*tokens.shape[:2], types).long().unbind(-1)
        # Number by number, as a tensor of starts would be copied to the device in every step.
        ids = [column + start for column, start in zip(columns, (0, *accumulate(self.sizes[:-1])), strict=True)]
        counts = torch.zeros(*tokens.shape[:2], sum(self.sizes) + 1, dtype=weight.dtype, device=weight.device)
        counts.scatter_(-1, torch.stack(ids, dim=-1), 1)
        counts[..., -1] = 1 - types
        return counts


class EncoderLayer(GradientCheckpointingLayer):
    """A post-norm Transformer layer, as BERT's."""

    def __init__(self, config: MidiBertConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.layer_norm_eps
        self.attention = SelfAttention(
            hidden_size=hidden,
            heads=config.num_attention_heads,
            attention=config.attention,
            max_length=config.max_length,
            dropout=config.attention_probs_dropout_prob,
        )
        self.attention_output = Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=eps)
        self.feed_forward = Linear(hidden, config.intermediate_size)
        self.feed_forward_output = GeluLinear(config.intermediate_size, hidden)
        self.feed_forward_norm = nn.LayerNorm(hidden, eps=eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, mask: Mask, where: Chosen | None = None) -> Tensor:
        """hidden: float [b, t, hidden_size] -> float [b, t, hidden_size]; mask and where: see `SelfAttention`."""
        attended = self.attention(hidden, mask, where)
        hidden = hidden if where is None else hidden[where.rows, where.positions]
        hidden = self.attention_norm(hidden + self.dropout(self.attention_output(attended)))
        expanded = self.dropout(self.feed_forward_output(self.feed_forward(hidden)))
        return self.feed_forward_norm(hidden + expanded)


class MidiBertPreTrainedModel(PreTrainedModel):
    """Initialisation and naming shared by the encoder and the models around it."""

    config_class = MidiBertConfig
    base_model_prefix = "midibert"
    main_input_name = "tokens"
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, TokenTable):
            init.normal_(module.weight, mean=0.0, std=1.0)
        else:
            super()._init_weights(module)


class MidiBertModel(MidiBertPreTrainedModel):
    """The encoder."""

    trusted = False
    """True where whoever calls has made sure that tokens and masks fit, as our own loops have."""

    kernel = "dense"
    """`flex`: by FlexAttention where it can (`model.flex`), without dense masks."""

    # A folder may hold a whole model; the encoder is opened from it without a word about the heads left behind.
    _keys_to_ignore_on_load_unexpected = [r"^heads?\.", r"^roll\."]  # noqa: RUF012 (an instance variable to transformers)

    def __init__(self, config: MidiBertConfig) -> None:
        super().__init__(config)
        self.embeddings = TokenEmbeddings(config.representation, config.embedding_size, config.hidden_size)
        # BERT's table of sentence types. Only row 0 is used; row 1 stays for the paper's parameter count.
        self.token_type = nn.Embedding(2, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        *,
        where: Tensor | Chosen | None = None,
        packing: Packing | None = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutput:
        """Hidden states of a batch of segments.

        tokens: int64 [b, t, 4] (CP) or [b, t] (REMI), t <= config.max_length.
        attention_mask: bool or int [b, t], true or 1 = attend. Without a mask everything is attended and,
        with rope on a GPU, the fastest kernel can be used.
        where: bool [b, t] with m true: the positions asked for; the last layer spares itself the others. As `Chosen`
        nothing waits for the device.
        packing: a layout that spares work on padding and takes the place of the mask: segments attend to themselves.

        Returns last_hidden_state float [b, t, hidden_size], or [m, hidden_size] with `where`, and if asked
        for hidden_states, a tuple of num_hidden_layers + 1 such states, the embeddings first.
        Raises ValueError naming tokens or a mask that do not fit (of those only too long ones, where `trusted`).
        """
        if not self.trusted:
            asked = None if isinstance(where, Chosen) else where
            require_inputs(tokens, self.config.vocabulary, attention_mask=attention_mask, where=asked)
        t, limit = tokens.shape[1], self.config.max_length
        if t > limit:
            raise ValueError(f"segments of {t} time steps exceed max_length={limit} of this model")
        mask = self._mask(attention_mask, packing, tokens.device)
        tokens = packing.pack(tokens) if packing else tokens
        chosen = Chosen.of(where.bool(), packing) if isinstance(where, Tensor) else where
        token_type = self.token_type(torch.zeros(1, dtype=torch.int64, device=tokens.device))
        hidden = self.dropout(self.norm(self.embeddings(tokens) + token_type))
        states = [hidden] if output_hidden_states else []
        for layer in self.layers[:-1]:
            hidden = layer(hidden, mask)
            if output_hidden_states:
                states.append(hidden)
        hidden = self.layers[-1](hidden, mask, chosen)
        if chosen is not None:
            hidden = hidden if chosen.order is None else hidden[chosen.order]
        elif packing:
            hidden, states = packing.unpack(hidden), [packing.unpack(state) for state in states]
        all_states = (*states, hidden) if output_hidden_states else None
        return BaseModelOutput(last_hidden_state=hidden, hidden_states=all_states)

    def _mask(self, attention_mask: Tensor | None, packing: Packing | None, device: torch.device) -> Mask:
        drops = self.training and self.config.attention_probs_dropout_prob > 0
        if self.kernel == "flex" and not drops and not (device.type == "cpu" and torch.is_grad_enabled()):
            return BlockedMask.of(packing.segment if packing else attention_mask, shared=packing is not None)
        return packing.pairs() if packing else attention_mask


@dataclass
class PretrainingOutput(MaskedLMOutput):
    """The output of a model that also predicts piano rolls."""

    roll: Tensor | None = None
    """float [n, outputs of the roll head], of the n real notes."""


class MidiBertForMaskedLM(MidiBertPreTrainedModel):
    """The encoder with one linear layer a token type that recovers masked tokens (paper §V-A)."""

    _keys_to_ignore_on_load_unexpected = [r"^roll\."]  # noqa: RUF012 (an instance variable to transformers)

    def __init__(self, config: MidiBertConfig) -> None:
        super().__init__(config)
        self.midibert = MidiBertModel(config)
        self.heads = nn.ModuleList(Linear(config.hidden_size, size) for size in config.vocabulary.sizes)
        self.roll: nn.Linear | None = None
        """A head for every real note, which learns along in pre-training and is left behind when a folder is opened."""
        self.post_init()

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        where: Tensor | Chosen | None = None,
        packing: Packing | None = None,
        labels: Tensor | None = None,
        real: Tensor | None = None,
    ) -> PretrainingOutput:
        """Logits float [m, n_f] of each token type at the m positions where `where` (bool [b, t], or `Chosen`) is true.

        tokens, attention_mask, packing: see `MidiBertModel`. Positions are in row-major order, as in tokens[where].
        labels: int64, of the shape of tokens, the true ids; IGNORE where a position is not scored. With them the output
        has the `loss` of `mlm_loss`, and `where` is a tensor. Without `where` the positions are those that have labels,
        and without labels all: logits are float [b, t, n_f] then.
        real: bool [b, t], n true: the notes whose roll a model with a roll head predicts; that waits for the device.
        """
        if where is None and labels is not None:
            where = (labels if labels.dim() == 2 else labels[..., 0]) != IGNORE
        asked = where if self.roll is None else None  # else the last layer is needed at all notes
        hidden = self.midibert(tokens, attention_mask, where=asked, packing=packing).last_hidden_state
        roll = None if self.roll is None else self.roll(hidden[real])
        if asked is not where:
            hidden = hidden[where.rows, where.positions] if isinstance(where, Chosen) else hidden[where]
        logits = tuple(head(hidden) for head in self.heads)
        loss = None if labels is None else mlm_loss(logits, labels[cast(Tensor, where)])["loss"]
        return PretrainingOutput(loss=loss, logits=logits, roll=roll)  # type: ignore[arg-type]  # a tensor a token type


def mlm_loss(
    logits: tuple[Tensor, ...], targets: Tensor, reduction: Literal["sum", "mean"] = "mean"
) -> dict[str, Tensor]:
    """Cross-entropy at the masked positions, token types weighted by their number of ids (of 176 in CP).

    logits: float [m, n_f] of each token type; targets: int64 [m, 4] (CP) or [m] (REMI), the true ids there.

    Returns scalars: "loss" (the weighted one, to be differentiated), "count" (m) and, detached, of each token
    type "<type>/loss" and "<type>/correct" (a count). With "sum" the losses are sums over positions: added up
    over workers and divided by the added counts they are exact means for any layout.

    Raises ValueError on another reduction.

    Source: paper §V-A. For REMI the authors' code takes the plain cross-entropy; so does this, as a single
    token type has the weight 1.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction={reduction!r} is not possible; allowed: 'sum', 'mean'")
    columns = targets.unbind(-1) if targets.dim() == 2 else (targets,)
    sizes = tuple(x.shape[-1] for x in logits)
    names = next(tuple(v.families) for v in VOCABULARIES.values() if v.sizes == sizes)
    count = max(len(targets), 1) if reduction == "mean" else 1
    scores: dict[str, Tensor] = {"count": torch.full((), len(targets), device=targets.device)}
    loss = logits[0].new_zeros((), dtype=torch.float32)
    for name, x, target in zip(names, logits, columns, strict=True):
        entropy = F.cross_entropy(x.float(), target, reduction="sum") / count
        loss = loss + entropy * (x.shape[-1] / sum(sizes))
        scores[f"{name}/loss"] = entropy.detach()
        scores[f"{name}/correct"] = (x.argmax(-1) == target).sum()
    return {"loss": loss} | scores


AutoConfig.register(MidiBertConfig.model_type, MidiBertConfig, exist_ok=True)
AutoModel.register(MidiBertConfig, MidiBertModel, exist_ok=True)
AutoModelForMaskedLM.register(MidiBertConfig, MidiBertForMaskedLM, exist_ok=True)
