"""The matrix products of a model's layers and nothing else: what the machine lets no implementation fall below."""

import time
from statistics import median

import torch


def seconds(
    layers: int,
    hidden: int,
    heads: int,
    feed_forward: int,
    *,
    rows: int,
    length: int,
    dtype: torch.dtype,
    backward: bool = False,
    turns: int = 5,
) -> float:
    """Seconds that the products of `layers` layers take for `rows` segments of `length`: the median over turns.

    Queries, keys, values, what is attended to, the output and the feed-forward layers; no relative terms, no softmax,
    no LayerNorm, no head. With `backward` also those of the gradients of inputs and weights, twice as many.
    """
    states, wide = (
        torch.randn(rows * length, hidden, dtype=dtype),
        torch.randn(rows * length, feed_forward, dtype=dtype),
    )
    square, up, down = (
        torch.randn(shape, dtype=dtype) for shape in ((hidden, hidden), (hidden, feed_forward), (feed_forward, hidden))
    )
    queries = torch.randn(rows * heads, length, hidden // heads, dtype=dtype)
    scores = torch.randn(rows * heads, length, length, dtype=dtype)

    def layer() -> None:
        for _ in range(4):
            states @ square
        states @ up
        wide @ down
        queries @ queries.transpose(1, 2)
        scores @ queries
        if backward:
            for _ in range(4):
                states @ square.T
                states.T @ states
            wide @ up.T
            states.T @ wide
            states @ down.T
            wide.T @ states
            for _ in range(2):
                scores @ queries
            queries @ queries.transpose(1, 2)
            scores.transpose(1, 2) @ queries

    layer()
    found = []
    for _ in range(turns):
        start = time.perf_counter()
        layer()
        found.append(time.perf_counter() - start)
    return layers * median(found)


def operations(layers: int, hidden: int, feed_forward: int, *, rows: int, length: int) -> float:
    """Floating point operations of these products, two a multiplication with its addition."""
    return 2.0 * layers * rows * length * (4 * hidden**2 + 2 * hidden * feed_forward + 2 * length * hidden)
