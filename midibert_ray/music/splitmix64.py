"""splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014) for arrays of numpy.

A counter moves on by `STEP`, and `mix` spreads its bits over all 64: near numbers become unrelated ones. Permutations
and the order of equal notes use it here; masks are drawn on the device by the same function for torch
(`data.masking`), which knows signed numbers only.
"""

import numpy as np
from numpy.typing import NDArray

STEP = 0x9E3779B97F4A7C15
"""The golden ratio in 64 bits."""

MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of splitmix64, a bijection of 64-bit numbers: uint64, any shape."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(MULTIPLIERS[0])
    value = (value ^ (value >> np.uint64(27))) * np.uint64(MULTIPLIERS[1])
    return value ^ (value >> np.uint64(31))
