"""Mistakes that shells and other programs' habits bring to a command line, and what to write instead."""

import re
import shlex
from collections.abc import Sequence
from itertools import pairwise

from midibert_ray.cli.commands import Command
from midibert_ray.settings.config import Config, ConfigError
from midibert_ray.settings.overrides import flatten

_PATH = re.compile(r"[\w.]+=(folder:)?(~|\.{0,2}/|\w+://).*")
_CORPORA = ("sample", *Config().corpora.names)


def refuse_mistakes(command: Command, words: Sequence[str]) -> None:
    """Raise a ConfigError for what is plainly a setting, but not written as one: says what to write instead."""
    defaults = flatten(Config()) | dict.fromkeys(command.extra, "")
    for number, word in enumerate(words):
        key, equals, value = word.partition("=")
        following = words[number + 1] if number + 1 < len(words) else ""
        name = key.lstrip("-").replace("-", "_")
        if key.startswith("-") and name in defaults:
            raise ConfigError(f"settings have no dashes; write {_setting(name, value if equals else following)}")
        if key not in defaults:
            continue
        if not equals:
            behind = " ".join(words[number + 1 : number + 3]) if following == "=" else following
            raise ConfigError(f"{key} has no value; write {_setting(key, behind.lstrip('= '))}, without spaces")
        if _is_value(command, following) and (not value or value.endswith(",") or value.count("[") > value.count("]")):
            raise ConfigError(f"a setting is one word; write {_setting(key, value + following)}, without spaces")
        if isinstance(defaults[key], tuple):
            _refuse_brackets(key, value)
        if key == "corpora.names":
            _refuse_commas(value)


def unknown_word(command: Command, word: str, words: Sequence[str]) -> str:
    """Says what a word is not, and what it may be a piece of: a path with spaces that was not quoted."""
    number = words.index(word)
    start = next((n for n in range(number - 1, -1, -1) if "=" in words[n]), number)
    end = next((n for n in range(number, len(words)) if "=" in words[n] or words[n].startswith("--")), len(words))
    whole = " ".join(words[start:end])
    hint = f"; quote what has a space in it: {shlex.quote(whole)}" if _PATH.fullmatch(whole) else ""
    other = f", or one of {', '.join(command.kinds)}" if command.kinds else ""
    return f"{word!r} is not a setting; write section.key=value{other}{hint}"


def _is_value(command: Command, word: str) -> bool:
    return bool(word) and "=" not in word and not word.startswith("--") and not command.words


def _refuse_brackets(key: str, value: str) -> None:
    if value[:1] in tuple("[({"):
        plain = re.sub(r"[\[\](){}'\"\s]", "", value)
        raise ConfigError(f"{key} takes a list without brackets; write {_setting(key, plain)}")


def _refuse_commas(value: str) -> None:
    """Refuse a folder whose path has a comma, which would be cut there into two corpora."""
    names = value.split(",")
    for before, name in pairwise(names):
        if before.startswith("folder:") and name.strip() not in _CORPORA and not name.strip().startswith("folder:"):
            path = f"{before},{name}".removeprefix("folder:")
            link = path.replace(",", "-")
            raise ConfigError(
                f"corpora.names is cut at commas, and {name!r} is no corpus; if {path!r} is one folder, make a link "
                f"to it without a comma (ln -s {shlex.quote(path)} {shlex.quote(link)}) and write "
                f"{_setting('corpora.names', 'folder:' + link)}"
            )


def _setting(key: str, value: str) -> str:
    return shlex.quote(f"{key}={value or 'VALUE'}")
