"""What the State API of a cluster tells."""

from collections.abc import Callable
from typing import Any

Ask = Callable[[str], Any]
"""What the dashboard answers to a path."""


def listed(ask: Ask, what: str) -> list[dict[str, Any]]:
    """All `nodes` or `actors`, those that are gone included."""
    return list(ask(f"/api/v0/{what}?limit=1000&detail=1")["data"]["result"]["result"])


def homes(ask: Ask) -> dict[str, set[str]]:
    """Class of actors -> nodes that they have run on."""
    found: dict[str, set[str]] = {}
    for actor in listed(ask, "actors"):
        if actor["node_id"]:
            found.setdefault(actor["class_name"].rpartition(".")[2], set()).add(actor["node_id"])
    return found
