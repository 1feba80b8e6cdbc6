"""Tokenizing without Ray."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from midibert_ray.tokenizing import tokenize
from midibert_ray.tokenizing.shard import Shard
from tests.stores import make_here


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes every shard in this process; the list holds the numbers of those that were made."""
    made: list[int] = []

    def stream(shards: Sequence[Shard]) -> Iterator[list[dict[str, Any]]]:
        for number, shard in enumerate(shards):
            made.append(number)
            yield from make_here([shard])

    monkeypatch.setattr(tokenize, "_stream", stream)
    return made
