"""Fine-tuning heads of the paper (§V-B, Fig. 2b, 2c) and plainer ones, and what learns beside them (§VIII-B2)."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import ClassVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from midibert_ray.model.midibert import IGNORE, MidiBertConfig, MidiBertModel, MidiBertPreTrainedModel
from midibert_ray.model.onednn import Linear
from midibert_ray.model.packing import Packing
from midibert_ray.settings.config import Freeze


class NoteHead(nn.Module):
    """Classify every position: two dense layers behind 10 % dropout."""

    def __init__(self, hidden_size: int, classes: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)
        self.dense = Linear(hidden_size, 256)
        self.output = Linear(256, classes)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: float [b, t, hidden_size] -> logits float [b, t, classes]."""
        return self.output(torch.relu(self.dense(self.dropout(hidden))))


class SequenceHead(nn.Module):
    """Classify a segment: four learned weighted averages (Lin et al., 2017), then two dense layers."""

    def __init__(self, hidden_size: int, classes: int) -> None:
        super().__init__()
        self.attention_dense = Linear(hidden_size, 128, bias=False)
        self.attention_output = Linear(128, 4, bias=False)
        self.dense = Linear(4 * hidden_size, 256)
        self.output = Linear(256, classes)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """hidden: float [b, t, hidden_size]; mask: [b, t], true or 1 = counts -> logits float [b, classes].

        Without a mask PAD positions enter the averages, as they do in the authors' code.
        """
        scores = self.attention_output(torch.tanh(self.attention_dense(hidden)))
        if mask is not None:
            scores = scores.masked_fill(~mask.bool()[..., None], torch.finfo(scores.dtype).min)
        averaged = scores.softmax(dim=1).transpose(1, 2) @ hidden
        return self.output(torch.relu(self.dense(averaged.flatten(1))))


class LinearNoteHead(nn.Module):
    """Classify every position: one dense layer behind 10 % dropout."""

    def __init__(self, hidden_size: int, classes: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)
        self.output = Linear(hidden_size, classes)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: float [b, t, hidden_size] -> logits float [b, t, classes]."""
        return self.output(self.dropout(hidden))


class LinearSequenceHead(nn.Module):
    """Classify a segment: one dense layer behind the mean of its hidden states."""

    def __init__(self, hidden_size: int, classes: int) -> None:
        super().__init__()
        self.output = Linear(hidden_size, classes)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """hidden: float [b, t, hidden_size]; mask: [b, t], true or 1 = counts -> logits float [b, classes]."""
        return self.output(mean_over(hidden, mask))


def mean_over(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over time of hidden states [b, t, hidden_size], where a mask [b, t] is true or 1: [b, hidden_size]."""
    if mask is None:
        return hidden.mean(1)
    weights = mask.to(hidden.dtype)[..., None]
    return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)


class _Classifier(MidiBertPreTrainedModel):
    head_classes: ClassVar[dict[str, type[nn.Module]]]
    """By `MidiBertConfig.head`."""

    def __init__(self, config: MidiBertConfig) -> None:
        super().__init__(config)
        if config.num_classes is None:
            raise ValueError(
                f"MidiBertConfig.num_classes=None; {type(self).__name__} needs the number of its outputs (num_labels)"
            )
        self.midibert = MidiBertModel(config)
        self.head = self.head_classes[config.head](config.hidden_size, config.num_classes)
        self.post_init()

    @staticmethod
    def _loss(logits: Tensor, labels: Tensor | None) -> Tensor | None:
        """Mean loss of logits float [..., num_classes] over all that has a label; 0 where nothing has one.

        Cross-entropy of classes; of labels that are floating-point squared errors, where there is one output, else the
        binary cross-entropy of tags.
        """
        if labels is None:
            return None
        if labels.is_floating_point():
            if logits.shape[-1] == 1:
                return F.mse_loss(logits.flatten().float(), labels.flatten().float())
            return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        total = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum")
        return total / (labels != IGNORE).sum().clamp_min(1)


class MidiBertForNotes(_Classifier):
    """The encoder with a note-level head; where class 0 is padding, `num_classes` counts it too."""

    head_classes: ClassVar = {"paper": NoteHead, "linear": LinearNoteHead}

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        packing: Packing | None = None,
        output_hidden_states: bool = False,
    ) -> TokenClassifierOutput:
        """Logits float [b, t, num_classes], and with labels (int64 [b, t], IGNORE is not scored) their loss.

        For all else see `MidiBertModel`.
        """
        encoded = self.midibert(tokens, attention_mask, packing=packing, output_hidden_states=output_hidden_states)
        logits = self.head(encoded.last_hidden_state)
        return TokenClassifierOutput(
            loss=self._loss(logits, labels), logits=logits, hidden_states=encoded.hidden_states
        )


class MidiBertForSequences(_Classifier):
    """The encoder with a sequence-level head."""

    head_classes: ClassVar = {"paper": SequenceHead, "linear": LinearSequenceHead}

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        packing: Packing | None = None,
        output_hidden_states: bool = False,
    ) -> SequenceClassifierOutput:
        """Logits float [b, num_classes], and with labels their loss; for all else see `MidiBertModel`.

        labels: int64 [b], classes; or float, numbers [b] of a model with one output, or tags [b, num_classes], 0 or 1.

        Masked positions do not enter the averages over time either.
        """
        encoded = self.midibert(tokens, attention_mask, packing=packing, output_hidden_states=output_hidden_states)
        logits = self.head(encoded.last_hidden_state, attention_mask)
        return SequenceClassifierOutput(
            loss=self._loss(logits, labels), logits=logits, hidden_states=encoded.hidden_states
        )


def stages(model: MidiBertForNotes | MidiBertForSequences) -> Iterator[list[nn.Parameter]]:
    """The parameters from bottom to top: of what stands before the layers, of each layer, of the head."""
    encoder = model.midibert
    before = (encoder.embeddings, encoder.token_type, encoder.norm)
    yield [parameter for part in before for parameter in part.parameters()]
    for part in (*encoder.layers, model.head):
        yield list(part.parameters())


def freeze(model: MidiBertForNotes | MidiBertForSequences, what: str, layers: int = 0) -> None:
    """Choose the parameters that learn while fine-tuning (paper §VIII-B2, Table III).

    "none": everything learns, but for the lowest `layers` layers and, where there are such, the embeddings.
    "backbone" ("freeze BERT"): only the head learns.
    "attention" ("freeze self-attn layers"): the head and the token embeddings learn. The paper freezes "only
    the 12 self-attention layers, so that the token embedding layer will still be fine-tuned", and by such a
    layer it means a whole Transformer layer. The authors' code freezes its BERT module: the layers, and the
    norm and token type before them. So does this.

    Frozen parts keep their dropout, as in the authors' code. No graph is recorded below the lowest part that learns.
    Raises ValueError on any other word.
    """
    if what not in get_args(Freeze):
        raise ValueError(f"freeze={what!r} is not possible; allowed: {', '.join(get_args(Freeze))}")
    model.requires_grad_(True)
    if what != "none":
        model.midibert.requires_grad_(False)
        model.midibert.embeddings.requires_grad_(what == "attention")
    elif layers > 0:
        for parameter in chain(*islice(stages(model), layers + 1)):
            parameter.requires_grad_(False)


AutoModelForTokenClassification.register(MidiBertConfig, MidiBertForNotes, exist_ok=True)
AutoModelForSequenceClassification.register(MidiBertConfig, MidiBertForSequences, exist_ok=True)
