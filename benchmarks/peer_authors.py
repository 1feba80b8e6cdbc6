"""A pre-training step as the authors take it, for pretrain_step.py: transformers' BertModel, fp32.

    ENVIRONMENT/bin/python benchmarks/peer_authors.py --layers 4 --hidden 256 --heads 4 --feed-forward 1024

Runs where `transformers==4.40.2` and torch are, and prints one line of JSON: seconds of each step, and the
process's largest memory in GiB. What is repeated here is how the authors' code works: the masks are drawn row by row in
Python, every position passes through every head, and the loss is masked at the end.
"""

import argparse
import json
import random

import torch
import torch.nn.functional as F
from harness import peak_gib, resident_gib
from steps import SIZES, Updater, largest_live, random_batch, timed
from torch import Tensor, nn
from transformers import BertConfig, BertModel

PAD = [size - 2 for size in SIZES]
MASK = [size - 1 for size in SIZES]


class Authors(nn.Module):
    """Four embeddings, a projection, BERT, four heads."""

    def __init__(self, *, layers: int, hidden: int, heads: int, feed_forward: int, length: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, 256) for size in SIZES)
        self.projection = nn.Linear(1024, hidden)
        config = BertConfig(
            max_position_embeddings=length,
            position_embedding_type="relative_key_query",
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=feed_forward,
        )
        self.bert = BertModel(config)
        self.heads = nn.ModuleList(nn.Linear(hidden, size) for size in SIZES)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """tokens: int64 [b, t, 4]; attention_mask: float [b, t] -> four logits [b, t, n_f]."""
        looked_up = [table(tokens[..., column]) * 16 for column, table in enumerate(self.tables)]
        embedded = self.projection(torch.cat(looked_up, dim=-1))
        output = self.bert(inputs_embeds=embedded, attention_mask=attention_mask, output_hidden_states=True)
        return [head(output.hidden_states[-1]) for head in self.heads]


def masked(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs int64 [b, t, 4] and where to score, float [b, t]: 77 of 512 positions a row, 80 / 10 / 10."""
    inputs, where = tokens.clone(), torch.zeros(tokens.shape[:2])
    length = tokens.shape[1]
    for row in range(len(tokens)):
        chosen = random.sample(range(length), round(length * 0.15))
        to_mask, to_random = round(len(chosen) * 0.8), round(len(chosen) * 0.1)
        for place, position in enumerate(chosen):
            if place < to_mask:
                inputs[row][position] = torch.tensor(MASK)
            elif place < to_mask + to_random:
                inputs[row][position] = torch.tensor([random.randrange(size) for size in SIZES])
            where[row][position] = 1
    return inputs, where


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 4), ("hidden", 256), ("heads", 4), ("feed-forward", 1024), ("length", 512)):
        options.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("batch", 12), ("threads", 2), ("warmup", 1), ("steps", 2)):
        options.add_argument(f"--{name}", type=int, default=default)
    options.add_argument("--memory", action="store_true", help="also by what is held")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    random.seed(0)
    shape = {name: getattr(given, name) for name in ("layers", "hidden", "heads", "feed_forward", "length")}
    model = Authors(**shape).train()
    updater, tokens = Updater(model.parameters()), random_batch(given.batch, given.length)

    def step(_: int) -> None:
        inputs, where = masked(tokens)
        logits = model(inputs, (inputs[..., 0] != PAD[0]).float())
        loss = torch.zeros(())
        for column, (scores, size) in enumerate(zip(logits, SIZES, strict=True)):
            entropy = F.cross_entropy(scores.permute(0, 2, 1), tokens[..., column], reduction="none")
            loss = loss + size / sum(SIZES) * (entropy * where).sum() / where.sum()
            ((scores.argmax(-1) == tokens[..., column]) * where).sum()  # their accuracy of each step
        loss.backward()
        updater.step()

    before = resident_gib()
    found = {"seconds": timed(step, warmup=given.warmup, steps=given.steps), "peak_gib": peak_gib()}
    if given.memory:
        found |= {"before_gib": before, "state_gib": updater.state_gib(), "live_gib": largest_live(step)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
