"""The checks of settings. Each raises a ConfigError that names the key, the value and what is allowed."""

import difflib
import math
import re
from dataclasses import field
from typing import Any
from urllib.parse import parse_qsl

QUERIES: dict[str, dict[str, str]] = {
    "s3": {
        "endpoint_override": r"(\[[0-9A-Fa-f:]+\]|[\w.-]+)(:\d{1,5})?",
        "scheme": r"https?",
        "region": r"[a-z0-9-]+",
        "tls_ca_file_path": r"/.+",
    },
    "gs": {
        "endpoint_override": r"(\[[0-9A-Fa-f:]+\]|[\w.-]+)(:\d{1,5})?",
        "scheme": r"https?",
        "project_id": r"[a-z0-9:.-]+",
        "retry_limit_seconds": r"\d+",
    },
}
"""Object stores by the scheme of their URIs: the parts that a query may have, and their patterns."""

OURS = ("", "sample")
"""Labelled corpora that have the paper's tasks alone, as a setting names them."""

FOLDER = "folder:"
"""Start of the name of a corpus of the user's own; its address follows."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]{0,127}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_SLIP = re.compile(r"(s3|gs|file):(?!//)")


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the key, the value and what is allowed."""


def runtime(default: Any) -> Any:
    """A field that never changes a result and therefore stays out of the identity hash."""
    return field(default=default, metadata={"runtime": True})


def by_content(default: Any) -> Any:
    """A field that says where an input lies, and counts in the identity hash by what lies there."""
    return field(default=default, metadata={"by_content": True})


def optional(default: Any) -> Any:
    """A field that changes results, and is named in an identity only where it is not at its default.

    Stores and runs made before the package had such a field keep their names.
    """
    return field(default=default, metadata={"optional": True})


def require_some_of(key: str, values: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    """Refuse a list that is empty, names something twice, or names what is not allowed."""
    require(len(values) > 0, key, values, f"at least one of {', '.join(allowed)}")
    require(len(set(values)) == len(values), key, values, "each value once")
    for value in values:
        require(value in allowed, key, value, f"some of {', '.join(allowed)}{_nearest(value, allowed)}")


def require_task(key: str, task: str, corpus: str, known: tuple[str, ...]) -> None:
    """Refuse a task that is not known, or of another corpus one that could not stand in a path."""
    if corpus in OURS:
        require_one_of(key, task, known)
    require_name(key, task)


def require_folds(key: str, folds: int, *, possible: bool) -> None:
    """Refuse all but no folds, or three and more where a corpus can be divided."""
    allowed = "0, or 3 to 100 with study.corpus=folder:/path (not in a sweep, which chooses by validation)"
    require(folds == 0 or (possible and 3 <= folds <= 100), key, folds, allowed)


def require_kinds(key: str, values: tuple[str, ...], tasks: tuple[str, ...], kinds: tuple[str, ...]) -> None:
    """Refuse all but `TASK:KIND`."""
    for value in values:
        task, _, kind = value.rpartition(":")
        require_one_of(f"{key}={value}: the task", task, tasks)
        require_one_of(f"{key}={value}: the kind", kind, kinds)


def require_one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a name that is not allowed."""
    require(value in allowed, key, value, f"one of {', '.join(allowed)}{_nearest(value, allowed)}")


def _nearest(value: str, allowed: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(value, allowed, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def require(condition: bool, key: str, value: object, allowed: str) -> None:
    """Refuse a value that is not allowed."""
    if not condition:
        raise ConfigError(f"{key}={value!r} is not allowed; use {allowed}")


def number(key: str, text: str, low: float, high: float) -> float:
    """The number that stands on a command line, refused unless it is from `low` to `high`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    require(low <= value <= high, key, text, f"a number from {low:g} to {high:g}")
    return value


def require_positive(section: Any, prefix: str, *names: str) -> None:
    """Refuse fields of a section that are not above 0."""
    for name in names:
        require(getattr(section, name) > 0, prefix + name, getattr(section, name), "a positive number")


def require_not_negative(section: Any, prefix: str, *names: str) -> None:
    """Refuse fields of a section below 0."""
    for name in names:
        require(getattr(section, name) >= 0, prefix + name, getattr(section, name), "0 or more")


def require_name(key: str, name: str) -> None:
    """Refuse a user's name that could not stand in a path."""
    allowed = "letters, digits and . _ = , + - (128 at most, a letter or digit first, no two dots in a row)"
    require(bool(_NAME.fullmatch(name)) and ".." not in name, key, name, allowed)


def require_corpora(key: str, names: tuple[str, ...]) -> None:
    """Refuse a list of corpora that is empty, names one twice, or has one of the user's (`folder:ADDRESS`) whose
    address is not plain. The existence of a corpus is checked where it is opened.
    """
    require(len(names) > 0, key, names, "at least one corpus")
    require(len({name.rstrip("/") for name in names}) == len(names), key, names, "each corpus once")
    for name in names:
        if name.startswith(FOLDER):
            require_address(key, name.removeprefix(FOLDER))


def corpora_of(text: str) -> tuple[str, ...]:
    """The corpora that a setting names, separated by commas."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def require_folder(key: str, path: str) -> None:
    """Refuse all but a path of a local folder."""
    require(not _CONTROL.search(path), key, path, "a path without control characters")
    require("://" not in path and not _SLIP.match(path), key, path, "a folder of the machine itself")


def require_address(key: str, address: str) -> None:
    """Refuse all but a path, or `s3://bucket/prefix` or `gs://bucket/prefix` with a plain bucket and prefix.

    The message repeats neither a query nor an odd bucket, as both may hold a key.
    """
    require(not _CONTROL.search(address), key, address, "an address without control characters")
    require(not _SLIP.match(address), key, address, "two slashes behind the colon, as in s3://bucket/prefix")
    scheme, mark, rest = address.partition("://")
    if scheme == "file":
        require(rest.startswith("/"), key, address, "three slashes, as in file:///folder, or the path alone")
    elif mark:
        base, _, query = rest.partition("?")
        bucket, slash, prefix = base.partition("/")
        shown = f"{scheme}://{bucket}{slash}{prefix}" if re.fullmatch(r"[\w.-]*", bucket) else f"{scheme}://..."
        _require_bucket(key, shown, scheme, bucket)
        _require_prefix(key, shown, prefix)
        _require_query(key, f"{shown}?...", scheme, query)


def _require_bucket(key: str, shown: str, scheme: str, bucket: str) -> None:
    require(scheme in QUERIES, key, shown, "a folder, s3://bucket/prefix or gs://bucket/prefix")
    require(not set("@:") & set(bucket), key, shown, "a bucket without keys: nodes have them in their environment")
    plain = _BUCKET.fullmatch(bucket) and ".." not in bucket and not ("_" in bucket and scheme == "s3")
    allowed = (
        "a bucket of 3 to 63 lower-case letters, digits, dots and hyphens, the first and the last no dot or hyphen"
    )
    require(bool(plain), key, shown, allowed)


def _require_prefix(key: str, shown: str, prefix: str) -> None:
    parts = prefix.removesuffix("/").split("/") if prefix else []
    require(not {"", ".", ".."} & set(parts), key, shown, "a prefix without empty parts, . and ..")
    require(not set(prefix) & set("%#\\"), key, shown, "a prefix as it stands in the bucket, without %, # and \\")


def _require_query(key: str, shown: str, scheme: str, query: str) -> None:
    known, seen = QUERIES[scheme], parse_qsl(query, keep_blank_values=True)
    require(len(dict(seen)) == len(seen), key, shown, "each part of the query once")
    for name, value in seen:
        require(name in known, key, shown, f"nothing but {', '.join(known)} behind the question mark")
        expected = "HOST:PORT" if name == "endpoint_override" else f"what fits {known[name]}"
        require(bool(re.fullmatch(known[name], value)), key, shown, f"{expected} for {name}")
