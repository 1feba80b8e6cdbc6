"""The piano roll around each note, a second target of pre-training; from tokens alone, on the device.

Source: Wang and Su, "Improving BERT for symbolic music understanding using token denoising and pianoroll prediction"
(M2BERT, 2025). There a note is carried over one bar line at most, and a thirty-second sounds nowhere; here notes last
as long as their tokens say, a sixteenth at least.
"""

import torch
from torch import Tensor

from midibert_ray.data.augment import onsets
from midibert_ray.music.vocabulary import DURATIONS, PITCH_LOW, PITCHES, POSITIONS

ROWS, COLUMNS = POSITIONS + 1, PITCHES + 12
"""Of a target: each sixteenth of the bar, then the moment of the note; pitches, then pitch classes."""


def roll_targets(tokens: Tensor, real: Tensor) -> Tensor:
    """The sound of the bar and of the moment of each real note: float32 [n, ROWS, COLUMNS], in row-major order.

    A row holds the share that each pitch has of the notes that sound in a sixteenth, and the share of each pitch class:
    both sum to 1, or are 0 in silence. Bars have sixteen sixteenths, and those without notes do not count.

    tokens: int64 [b, t, 4] (CP); real: bool [b, t], no padding.
    """
    row = real.nonzero()[:, 0]
    onset, pitch, duration = onsets(tokens, real)[real], *tokens[real][:, 2:].unbind(-1)
    bar = onset // POSITIONS
    # Notes begin where a count goes up and end where it goes down: behind the last bar, where a long one may.
    times = (int(bar.max()) + 1) * POSITIONS + (DURATIONS + 1) // 2
    change = torch.zeros(len(tokens), times + 1, PITCHES, device=tokens.device)
    one = torch.ones(len(onset), device=tokens.device)
    change.index_put_((row, onset, pitch), one, accumulate=True)
    change.index_put_((row, onset + (duration + 2) // 2, pitch), -one, accumulate=True)
    sounding = change.cumsum(1)
    classes = (torch.arange(PITCHES, device=tokens.device) + PITCH_LOW) % 12
    chroma = torch.zeros(*sounding.shape[:2], 12, device=tokens.device).index_add_(2, classes, sounding)
    shares = torch.cat([sounding, chroma], dim=-1) / sounding.sum(-1, keepdim=True).clamp_min(1)
    moments = torch.cat([bar[:, None] * POSITIONS + torch.arange(POSITIONS, device=bar.device), onset[:, None]], dim=1)
    return shares[row[:, None], moments]
