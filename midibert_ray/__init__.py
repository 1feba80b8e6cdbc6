"""Ray-native pre-training, fine-tuning and comparison of BERT-like models of piano MIDI.

`load` opens a trained model and applies it to somebody's music; `tokenize` and `detokenize` lead to its ids and back.
"""

import atexit
import gc
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from midibert_ray.inference.load import load
    from midibert_ray.inference.tokenized import detokenize, tokenize

__version__ = "0.2.0"
__all__ = ["detokenize", "load", "tokenize"]

_HOMES = {"detokenize": "tokenized", "load": "load", "tokenize": "tokenized"}
"""Function -> its file in inference/."""

# Python looks for garbage at every 700 new objects. Importing torch, transformers and Ray makes many more, which all
# stay, and a fifth of its time goes into looking, in each process that Ray starts; at every 10,000 next to none.
if gc.get_threshold() == (700, 10, 10):
    gc.set_threshold(10_000, 10, 10)
# At its end it looks at all of them again, several times: a quarter of the CPU time of a job that does little.
atexit.register(gc.freeze)


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"midibert_ray.inference.{_HOMES[name]}"), name)
