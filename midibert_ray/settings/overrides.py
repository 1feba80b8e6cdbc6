"""Dotted overrides of a configuration, its flat form, and the hash that names artifacts."""

import dataclasses
import difflib
import hashlib
import json
import math
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal
from urllib.parse import unquote

from midibert_ray.settings.config import Config, ConfigError, require
from midibert_ray.settings.secrets import HELP, is_database, require_no_secret

_USERINFO = re.compile(
    r"""https?://[^/?#\s]+@                      # a server's: a name alone may be a token
      | ://[^/?#@,\s]*:(?!\d+([/?#]|$))[^@\s]*@   # name:password, but not host:port/a@b""",
    re.VERBOSE | re.IGNORECASE,
)
_QUERY = re.compile(
    r"[?&;]([\w.-]*(secret|passw|pwd|token|credential|signature|(access|account|api)[_-]?key)[\w.-]*|key|sig)=\S",
    re.IGNORECASE,
)


def refuse_secrets(words: Iterable[str]) -> None:
    """Refuse words of a command line that carry a password or a key inside an address.

    Settings are printed, recorded in MLflow and shown on Ray's dashboard; the message does not repeat the word.

    Raises:
        ConfigError: naming the setting, and how a node gets a secret instead.
    """
    for word in words:
        match = re.match(r"(-{0,2}[A-Za-z_.-]+)=(.*)", word, re.DOTALL)
        key, value = match.groups() if match else ("an argument", word)
        if is_database(value) or key.lstrip("-") == "tracking.uri":
            require_no_secret(key, value)
        if _USERINFO.search(word) or _QUERY.search(unquote(word)):
            raise ConfigError(f"{key} holds a password or a key (not shown here), and {HELP}")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value for every field of the tree, in order of declaration."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = value
    return flat


def runtime_keys() -> frozenset[str]:
    """Dotted keys of the fields that never change a result."""
    return _keys("runtime")


def _keys(kind: str) -> frozenset[str]:
    """Dotted keys of the fields of a kind: `runtime`, `by_content` or `optional`."""
    sections = {item.name: item.type for item in dataclasses.fields(Config) if dataclasses.is_dataclass(item.type)}
    return frozenset(
        f"{name}.{item.name}"
        for name, section in sections.items()
        for item in dataclasses.fields(section)
        if item.metadata.get(kind)
    )


def digest(value: object) -> str:
    """Ten hex digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def identity(config: Config, sections: Iterable[str], **inputs: object) -> str:
    """Hash of the identity fields of some sections, and of the versions of an artifact's inputs.

    Args:
        config: the configuration.
        sections: names of sections or of top-level fields, such as `("seed", "model")`.
        inputs: JSON values that identify what the artifact is made from, such as token digests.
    """
    fields = identity_fields(config, sections)
    if "tokens" in sections:  # where the order stood when the first artifacts were named
        fields["tokens.order"] = fields.pop("protocol.order", "protocol")
    return digest({"fields": fields, "inputs": inputs})


def identity_fields(config: Config, sections: Iterable[str]) -> dict[str, Any]:
    """Dotted key -> value of the fields of some sections that may change a result.

    A switched field of the protocol counts with the section that reads it; all others follow from `tokens.protocol`.
    """
    sections, given, standard = set(sections) - {"protocol"}, flatten(config), flatten(Config())
    skip = _keys("runtime") | _keys("by_content")
    skip |= {key for key in _keys("optional") if given[key] == standard[key]}
    fields = {key: value for key, value in given.items() if key.split(".")[0] in sections and key not in skip}
    switched = config.protocol_in_force.switched(*sections) if sections else {}
    return fields | {f"protocol.{name}": value for name, value in switched.items()}


def replace(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy of the configuration with some dotted keys changed, checked as a whole.

    Values may be of the field's type or strings as they stand on a command line.

    Raises:
        ConfigError: for an unknown key, or a value of the wrong type or out of range.
    """
    known = flatten(config)
    nested: dict[str, dict[str, Any]] = {"": {}}
    for key, value in changes.items():
        if key not in known:
            raise ConfigError(_unknown_key(key, known))
        section, _, name = key.rpartition(".")
        nested.setdefault(section, {})[name] = _convert(key, value, _field_type(key))
    top = nested.pop("")
    sections = {name: dataclasses.replace(getattr(config, name), **values) for name, values in nested.items()}
    return dataclasses.replace(config, **top, **sections)


def from_flat(flat: Mapping[str, Any]) -> Config:
    """The configuration that `flatten` (or a `config.json`) describes; absent keys keep their default."""
    return replace(Config(), flat)


def _unknown_key(key: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    section = key.split(".")[0]
    siblings = [name for name in known if name.startswith(section + ".")]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown setting {key!r}{hint} Allowed: {', '.join(siblings or sorted({k.split('.')[0] for k in known}))}"


def _field_type(key: str) -> Any:
    section, _, name = key.rpartition(".")
    owner = typing.get_type_hints(Config)[section] if section else Config
    return typing.get_type_hints(owner)[name]


def _convert(key: str, value: Any, expected: Any) -> Any:
    """A value of the annotated type, from a value or a string; never silently a string."""
    if type(None) in typing.get_args(expected):
        if value in (None, "", "None"):  # as in Python, on a command line, in MLflow
            return None
        (expected,) = set(typing.get_args(expected)) - {type(None)}
    if typing.get_origin(expected) is Literal:
        allowed = typing.get_args(expected)
        require(value in allowed, key, value, "one of " + ", ".join(map(str, allowed)))
        return value
    if typing.get_origin(expected) is tuple:
        items = value.split(",") if isinstance(value, str) else value
        return tuple(item.strip() for item in items if item.strip())
    return _convert_scalar(key, value, expected)


def _convert_scalar(key: str, value: Any, expected: type) -> Any:
    if expected is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        require(str(value).lower() in words, key, value, "true or false")
        return words[str(value).lower()]
    try:
        converted = expected(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{key}={value!r} is not allowed; use a value of type {expected.__name__}") from None
    exact = not (expected is int and isinstance(value, float) and value != converted)
    finite = not (expected is float and not math.isfinite(converted))
    require(exact and finite, key, value, f"a finite value of type {expected.__name__}")
    return converted
