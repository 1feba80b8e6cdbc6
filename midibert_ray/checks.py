"""What a setting may be: the error for one that may not, and the checks that raise it."""

from dataclasses import field
from typing import Any


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the key, the value and what is allowed."""


def runtime(default: Any) -> Any:
    """A field that never changes a result and therefore stays out of the identity hash."""
    return field(default=default, metadata={"runtime": True})


def require_some_of(key: str, values: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    """Refuse a list that is empty, names something twice, or names what is not allowed.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    require(len(values) > 0, key, values, f"at least one of {', '.join(allowed)}")
    require(len(set(values)) == len(values), key, values, "each value once")
    for value in values:
        require(value in allowed, key, value, f"some of {', '.join(allowed)}")


def require(condition: bool, key: str, value: object, allowed: str) -> None:
    """Refuse a value that is not allowed.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    if not condition:
        raise ConfigError(f"{key}={value!r} is not allowed; use {allowed}")
