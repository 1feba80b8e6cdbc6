"""Fine-tuning heads of the paper (§V-B, Fig. 2b, 2c), and which parameters learn beside them (§VIII-B2)."""

from typing import get_args

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from midibert_ray.config import Freeze
from midibert_ray.model.midibert import MidiBertConfig, MidiBertModel, MidiBertPreTrainedModel
from midibert_ray.model.packing import Packing


class NoteHead(nn.Module):
    """Classify every position: two dense layers behind 10 % dropout."""

    def __init__(self, hidden_size: int, classes: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)
        self.dense = nn.Linear(hidden_size, 256)
        self.output = nn.Linear(256, classes)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: float [b, t, hidden_size] -> logits float [b, t, classes]."""
        return self.output(torch.relu(self.dense(self.dropout(hidden))))


class SequenceHead(nn.Module):
    """Classify a segment: four learned weighted averages (Lin et al., 2017), then two dense layers."""

    def __init__(self, hidden_size: int, classes: int, averages: int = 4) -> None:
        super().__init__()
        self.attention_dense = nn.Linear(hidden_size, 128, bias=False)
        self.attention_output = nn.Linear(128, averages, bias=False)
        self.dense = nn.Linear(averages * hidden_size, 256)
        self.output = nn.Linear(256, classes)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """hidden: float [b, t, hidden_size]; mask: [b, t], true or 1 = counts -> logits float [b, classes].

        Without a mask PAD positions enter the averages, as they do in the authors' code.
        """
        scores = self.attention_output(torch.tanh(self.attention_dense(hidden)))
        if mask is not None:
            scores = scores.masked_fill(~mask.bool()[..., None], torch.finfo(scores.dtype).min)
        averaged = scores.softmax(dim=1).transpose(1, 2) @ hidden
        return self.output(torch.relu(self.dense(averaged.flatten(1))))


class _Classifier(MidiBertPreTrainedModel):
    head_class: type[nn.Module]

    def __init__(self, config: MidiBertConfig) -> None:
        super().__init__(config)
        if config.num_classes is None:
            raise ValueError(f"MidiBertConfig.num_classes=None; {type(self).__name__} needs the number of its outputs")
        self.midibert = MidiBertModel(config)
        self.head = self.head_class(config.hidden_size, config.num_classes)
        self.post_init()


class MidiBertForNotes(_Classifier):
    """The encoder with a note-level head; where class 0 is padding, `num_classes` counts it too."""

    head_class = NoteHead

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, packing: Packing | None = None) -> Tensor:
        """Logits float [b, t, num_classes]; tokens, attention_mask and packing: see `MidiBertModel`."""
        return self.head(self.midibert(tokens, attention_mask, packing=packing).last_hidden_state)


class MidiBertForSequences(_Classifier):
    """The encoder with a sequence-level head."""

    head_class = SequenceHead

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, packing: Packing | None = None) -> Tensor:
        """Logits float [b, num_classes]; tokens, attention_mask and packing: see `MidiBertModel`.

        Masked positions do not enter the averages over time either.
        """
        hidden = self.midibert(tokens, attention_mask, packing=packing).last_hidden_state
        return self.head(hidden, attention_mask)


def freeze(model: MidiBertForNotes | MidiBertForSequences, what: str) -> None:
    """Choose the parameters that learn while fine-tuning (paper §VIII-B2, Table III).

    "none": everything learns.
    "backbone" ("freeze BERT"): only the head learns; no graph is recorded below it.
    "attention" ("freeze self-attn layers"): the head and the token embeddings learn. The paper freezes "only
    the 12 self-attention layers, so that the token embedding layer will still be fine-tuned", and by such a
    layer it means a whole Transformer layer. The authors' code freezes its BERT module: the layers, and the
    norm and token type before them. So does this.

    Frozen parts keep their dropout, as in the authors' code. Raises ValueError on any other word.
    """
    if what not in get_args(Freeze):
        raise ValueError(f"freeze={what!r} is not possible; allowed: {', '.join(get_args(Freeze))}")
    model.requires_grad_(True)
    if what != "none":
        model.midibert.requires_grad_(False)
    if what == "attention":
        model.midibert.embeddings.requires_grad_(True)


AutoModelForTokenClassification.register(MidiBertConfig, MidiBertForNotes, exist_ok=True)
AutoModelForSequenceClassification.register(MidiBertConfig, MidiBertForSequences, exist_ok=True)
