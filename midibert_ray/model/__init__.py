"""The encoder, its heads and baselines (torch and transformers, no Ray); importing it lets `AutoModel` open
our folders.
"""

from midibert_ray.model import heads, midibert

__all__ = ["heads", "midibert"]
