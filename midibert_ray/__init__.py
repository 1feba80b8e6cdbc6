"""Ray-native pre-training, fine-tuning and comparison of BERT-like models of piano MIDI.

`load` opens a trained model and applies it to somebody's music; `tokenize` gives the ids of a piece, with the way back.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from midibert_ray.inference.load import load
    from midibert_ray.inference.tokenized import tokenize

__version__ = "0.2.0"
__all__ = ["load", "tokenize"]

_ROOMS = {"load": "midibert_ray.inference.load", "tokenize": "midibert_ray.inference.tokenized"}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first used."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS[name]), name)
