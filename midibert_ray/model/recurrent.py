"""The paper's recurrent baselines (§VI): Bi-LSTM for notes, Bi-LSTM with attentive pooling for sequences."""

import json
from pathlib import Path
from typing import Self

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from midibert_ray.model.heads import SequenceHead
from midibert_ray.model.inputs import require_inputs
from midibert_ray.model.midibert import VOCABULARIES, TokenEmbeddings
from midibert_ray.music.vocabulary import REMI

EMBEDDED = 768


class _Recurrent(nn.Module):
    """Embeddings, and a folder to be written to and opened from, as the Hugging Face models have it."""

    trusted = False
    """See `MidiBertModel.trusted`."""

    def __init__(self, *, num_classes: int, representation: str = "cp") -> None:
        super().__init__()
        if representation not in VOCABULARIES:
            allowed = ", ".join(VOCABULARIES)
            raise ValueError(f"representation={representation!r} is not possible; allowed: {allowed}")
        self.num_classes, self.representation = num_classes, representation
        # REMI has one plain table, as in the authors' code.
        compound = representation == "cp"
        self.embeddings = TokenEmbeddings("cp", 256, EMBEDDED) if compound else nn.Embedding(REMI.sizes[0], EMBEDDED)

    def _read(self, lstm: nn.LSTM, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Run over tokens -> [b, t, 2 * hidden]; with a mask [b, t], true at the front, padding is not read."""
        if not self.trusted:
            require_inputs(tokens, VOCABULARIES[self.representation], attention_mask=mask)
        embedded = self.embeddings(tokens.long())
        if mask is None:
            return lstm(embedded)[0]
        lengths = mask.bool().sum(1).clamp_min(1).cpu()
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(lstm(packed)[0], batch_first=True, total_length=embedded.shape[1])[0]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into a folder, which is made where it is not there."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        sizes = {"num_classes": self.num_classes, "representation": self.representation}
        Path(folder, "config.json").write_text(json.dumps({"architectures": [type(self).__name__], **sizes}, indent=1))
        # On a GPU the weights of an LSTM lie in one block, which safetensors does not take.
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self.state_dict().items()}
        save_file(weights, Path(folder, "model.safetensors"), metadata={"format": "pt"})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The model that `save_pretrained` wrote, in eval mode; ValueError where another class wrote the folder."""
        settings = json.loads(Path(folder, "config.json").read_bytes())
        if settings.pop("architectures", None) != [cls.__name__]:
            raise ValueError(f"{folder} does not hold a {cls.__name__}; its config.json names another class")
        model = cls(**settings)
        model.load_state_dict(load_file(Path(folder, "model.safetensors")))
        return model.eval()


class BiLstmNotes(_Recurrent):
    """Note-level baseline: three bidirectional layers of 256, dropout .5, one dense layer."""

    def __init__(self, *, num_classes: int, representation: str = "cp") -> None:
        super().__init__(num_classes=num_classes, representation=representation)
        self.lstm = nn.LSTM(EMBEDDED, 256, num_layers=3, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(512, num_classes)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """tokens: int64 [b, t, 4] or [b, t]; attention_mask: [b, t] -> logits [b, t, num_classes].

        Without a mask padding is read like music, as in the authors' code.
        """
        return self.output(self.dropout(self._read(self.lstm, tokens, attention_mask)))


class BiLstmSequences(_Recurrent):
    """Sequence-level baseline (Bi-LSTM-Attn): one bidirectional layer of 128 and MidiBERT's pooling head."""

    def __init__(self, *, num_classes: int, representation: str = "cp") -> None:
        super().__init__(num_classes=num_classes, representation=representation)
        self.lstm = nn.LSTM(EMBEDDED, 128, batch_first=True, bidirectional=True)
        self.head = SequenceHead(256, num_classes)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [b, num_classes]; tokens and attention_mask: see `BiLstmNotes`."""
        return self.head(self._read(self.lstm, tokens, attention_mask), attention_mask)
