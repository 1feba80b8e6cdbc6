"""Tokenizing without Ray."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from midibert_ray.tokenizing import tokenize
from midibert_ray.tokenizing.shard import Part
from tests.stores import make_here


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Runs every part in this process; the list holds the numbers of those that were."""
    made: list[int] = []

    def stream(parts: Sequence[Part]) -> Iterator[list[dict[str, Any]]]:
        for number, part in enumerate(parts):
            made.append(number)
            yield from make_here([part])

    monkeypatch.setattr(tokenize, "_stream", stream)
    return made
