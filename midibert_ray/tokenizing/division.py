"""Division of labelled pieces into splits or folds: groups stay whole, and each part gets its share of each label.

The rarest label is dealt out first, its largest groups first, each to the part that is filled least by it (iterative
stratification after Sechidis et al., "On the stratification of multi-label data", 2011, with groups in the place of
examples). While a part has nothing of a label and its groups run out, the smallest of them go there, unless that would
make the part more than twice as large as it should be.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from midibert_ray.data.order import keyed_hash

SHARES = {"train": 0.8, "test": 0.1, "valid": 0.1}
"""Shares of the splits where a table gives none; a label with too few groups for all of them lacks the last ones."""

Integers = NDArray[np.int64]


def divide(
    units: Sequence[str], piece: Integers, label: Integers, shares: Sequence[float], seed: int, soft: int = 0
) -> Integers:
    """The part of each unit: int64 [distinct units], 0..len(shares)-1, in the order of their names.

    Args:
        units: for each piece the name of what must stay whole.
        piece: int64 [pairs], pieces that have a label,
        label: int64 [pairs], and that label, 0..L-1. Each piece counts besides as one of all.
        shares: of the parts, 1 together.
        seed: deals out groups of one size.
        soft: so many labels, the highest, come last, and need not be in every part.
    """
    names, unit = np.unique(np.asarray(units), return_inverse=True)
    everything = int(label.max(initial=-1)) + 1
    members = np.concatenate([unit[piece], unit])
    labels = np.concatenate([label, np.full(len(units), everything)])
    keys, count = np.unique(members * (everything + 1) + labels, return_counts=True)
    owner, kinds = np.divmod(keys, everything + 1)
    rank = np.argsort(np.argsort([keyed_hash(seed, "division", str(name)) for name in names]))
    return _deal(owner, kinds, count, rank, shares, everything - soft)


def _deal(
    owner: Integers, kinds: Integers, count: Integers, rank: Integers, shares: Sequence[float], soft: int
) -> Integers:
    """Deal out units; unit `owner[i]` has `count[i]` pieces of label `kinds[i]`, the last label being that of all.

    Labels from `soft` on come last.
    """
    part = np.full(len(rank), -1, dtype=np.int64)
    total, spread, everything = np.bincount(kinds, weights=count).tolist(), np.bincount(kinds), int(kinds.max())
    have = [[0.0] * len(shares) for _ in total]  # lists: a part or two a step is too little for arrays
    first = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(rank)))]).tolist()  # owners ascend
    cells = list(zip(kinds.tolist(), count.tolist(), strict=True))
    for kind in sorted(range(len(total)), key=lambda kind: (kind == everything, kind >= soft, spread[kind])):
        rows = np.flatnonzero((kinds == kind) & (part[owner] < 0))
        units = owner[rows[np.lexsort((rank[owner[rows]], -count[rows]))]].tolist()
        sizes = np.sort(count[rows])[::-1].tolist()
        for left, unit, size in zip(range(len(units), 0, -1), units, sizes, strict=True):
            column = have[kind]
            room = (2 * share * total[everything] for share in shares)
            full = [0 < held > most - size for held, most in zip(have[everything], room, strict=True)]
            lacking = [number for number, amount in enumerate(column) if not (amount or full[number])]
            if left <= len(lacking) and (kind < soft or kind == everything):
                chosen = lacking[0]
            else:
                filled = [(amount + size) / share for amount, share in zip(column, shares, strict=True)]
                least = min(filled) * (1 + 1e-9)
                even = (number for number, value in enumerate(filled) if value <= least)
                chosen = min(even, key=lambda number: have[everything][number] / shares[number])
            part[unit] = chosen
            for other, amount in cells[first[unit] : first[unit + 1]]:
                have[other][chosen] += amount
    return part
