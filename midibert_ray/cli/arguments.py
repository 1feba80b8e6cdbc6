"""The command line of the jobs: `--preset NAME section.key=value ... [--dry-run] [--help]`."""

import argparse
import ast
import dataclasses
import difflib
import inspect
import json
import logging
import os
import sys
import textwrap
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midibert_ray import storage
from midibert_ray.settings.config import Config, ConfigError
from midibert_ray.settings.overrides import flatten, from_flat, refuse_secrets, replace, runtime_keys
from midibert_ray.settings.presets import PRESETS, preset
from midibert_ray.tracking.spool import UnreachableError

TOP = "(top)"

MENDABLE = (ValueError, LookupError, FileNotFoundError, PermissionError, FloatingPointError, UnreachableError)
"""Errors that the user can do something about."""


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """What a command line asks for."""

    config: Config
    preset: str
    dry_run: bool
    words: tuple[str, ...]
    """Arguments that are not overrides, such as the name of a study."""

    extra: Mapping[str, str]
    """Those of the job's own settings that were given, such as the output folder of an export."""

    flags: tuple[str, ...] = ()
    """Those of the job's own switches that were given, such as `flush`."""

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        return json.dumps(vars(self) | {"config": flatten(self.config)})

    @classmethod
    def from_json(cls, line: str) -> "Invocation":
        """What `to_json` wrote."""
        content = json.loads(line)
        lists = {name: tuple(content[name]) for name in ("words", "flags")}
        return cls(**content | lists | {"config": from_flat(content["config"])})


def parse(
    description: str | None,
    arguments: Sequence[str] | None = None,
    *,
    words: str = "",
    extra: Mapping[str, str] | None = None,
    kinds: Mapping[str, Mapping[str, object]] | None = None,
    flags: Mapping[str, str] | None = None,
) -> Invocation:
    """Read a job's command line; ends the process with a message (exit code 2) where it is wrong.

    `--resolve`, which `--help` does not show, prints what was understood and ends the process: by it jobs/submit.py
    checks the command line of any job without running it. Folders stay as they were written, as the machine that
    submits is not the one that runs.

    Args:
        description: the job's docstring, shown by `--help` with every setting below it.
        arguments: the command line, by default this process's.
        words: what positional words the job takes, for `--help`; empty: none.
        extra: settings that only this job takes (`name=value`), which no configuration holds: name -> meaning.
        kinds: words that stand for settings, which others of the command line overrule: word -> settings.
        flags: switches that only this job has (`--name`): name -> meaning.
    """
    extra, flags = extra or {}, flags or {}
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = _parser(description, words, extra, flags)
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        refuse_secrets(arguments)  # first of all, as other messages show what they refuse
        known = parser.parse_intermixed_args(arguments)
        plain = tuple(word for word in known.overrides if "=" not in word)
        if plain and not words:
            raise ConfigError(f"{plain[0]!r} is not a setting; write section.key=value")
        kind = _kind(plain, kinds) if kinds else {}
        changes = dict(word.split("=", 1) for word in known.overrides if "=" in word)
        own = _take(changes, extra)
        config = replace(preset(known.preset), kind | changes)
        config = config if known.resolve else anchor(config)
    except ConfigError as error:
        parser.error(str(error))
    given = tuple(name for name in flags if getattr(known, name))
    asked = Invocation(config=config, preset=known.preset, dry_run=known.dry_run, words=plain, extra=own, flags=given)
    if known.resolve:
        sys.stdout.write(asked.to_json() + "\n")
        sys.exit(0)
    return asked


def _parser(
    description: str | None, words: str, extra: Mapping[str, str], flags: Mapping[str, str]
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description,
        epilog=_extra_help(extra) + settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--preset", default="base", choices=sorted(PRESETS), help="starting point (default: base, the paper)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be done and stop")
    parser.add_argument("--resolve", action="store_true", help=argparse.SUPPRESS)
    for name, meaning in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=meaning)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=words or "settings, listed below")
    return parser


def _kind(words: Sequence[str], kinds: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """The settings that the one word of a command line stands for; none for none.

    Raises:
        ConfigError: for an unknown word, or more than one.
    """
    if len(words) > 1 or set(words) - kinds.keys():
        raise ConfigError(f"{' '.join(words)!r} is not possible; use nothing, {' or '.join(kinds)}")
    return dict(kinds[words[0]]) if words else {}


def anchor(config: Config) -> Config:
    """The configuration with absolute folders: workers run in other directories than the command line.

    Only the cache may begin with `~`, as each node has its own home for it.
    """
    places = {"corpora.root": config.corpora.root, "storage.root": config.storage.root}
    places |= {} if config.storage.cache.startswith("~") else {"storage.cache": config.storage.cache}
    uri, scheme = config.tracking.uri, "sqlite:///"
    if uri.startswith(scheme):
        uri = scheme + storage.resolve(uri.removeprefix(scheme))
    return replace(
        config, {key: storage.resolve(place) for key, place in places.items() if place} | {"tracking.uri": uri}
    )


def _take(changes: dict[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """Take a job's own settings out of the overrides.

    Raises:
        ConfigError: for one without a value, or a misspelt one.
    """
    own = {key: changes.pop(key) for key in extra if key in changes}
    empty = [key for key, value in own.items() if not value]
    if empty:
        raise ConfigError(f"{empty[0]}= has no value; write {empty[0]}=..., or leave it out")
    for key in changes.keys() - flatten(Config()).keys():
        near = difflib.get_close_matches(key, extra, n=1)
        if near:
            raise ConfigError(f"unknown setting {key!r}; did you mean {near[0]!r}? This job's own: {', '.join(extra)}")
    return own


def run(job: Callable[[], None]) -> None:
    """Run a job's `main`; an error that the user can mend (a missing input, a wrong value, a tracking server that does
    not answer) is one line, and exit code 2.

    Errors of any other kind keep their traceback.
    """
    try:
        job()
    except MENDABLE as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        logging.getLogger(__name__).error("error: %s  (%s:%d)", error, Path(place.filename).name, place.lineno)
        sys.exit(2)


def ray_options() -> dict[str, Any]:
    """Arguments for `ray.init`: join the cluster of RAY_ADDRESS (`ray job submit` sets it), else start Ray here.

    A laptop with two cores is given four logical CPUs, as two pre-training workers must leave room for the
    processes that drive them.
    """
    # Workers' own output stays in Ray's log files; progress reaches the driver through training.console.
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    if os.environ.get("RAY_ADDRESS"):
        return quiet
    # Without "local" Ray would look for a cluster that `ray start` left behind, dead ones included.
    return quiet | {"address": "local", "num_cpus": max(4, os.cpu_count() or 1)}


def describe(config: Config) -> str:
    """The resolved configuration, one dotted key a line, without fields that are left to another."""
    flat = {key: value for key, value in flatten(config).items() if value is not None}
    width = max(map(len, flat))
    return "\n".join(f"{key:<{width}}  {_show(value)}" for key, value in flat.items())


def settings_help() -> str:
    """Every setting with its default, allowed values and meaning, grouped by section."""
    lines = ["settings (default in brackets; * never changes a result or a name):"]
    hints, runtime = typing.get_type_hints(Config), runtime_keys()
    sections = [(TOP, Config)] + [(name, kind) for name, kind in hints.items() if dataclasses.is_dataclass(kind)]
    for section, kind in sections:
        lines += ["", f"  {section}"] if section != TOP else []
        lines += _section_help("" if section == TOP else section + ".", kind, runtime)
    return "\n".join(lines)


def _extra_help(extra: Mapping[str, str]) -> str:
    lines = ["settings of this job alone:"] if extra else []
    for key, meaning in extra.items():
        lines += [f"    {key}", *textwrap.wrap(meaning, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)]
    return "\n".join([*lines, "", ""]) if lines else ""


def _section_help(prefix: str, kind: Any, runtime: frozenset[str]) -> list[str]:
    docs, hints, lines = field_docs(kind), typing.get_type_hints(kind), []
    for item in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[item.name]):
            continue
        key = prefix + item.name
        lines.append(f"    {key}{'*' if key in runtime else ''} [{_show(item.default)}]")
        kinds = (hints[item.name], *typing.get_args(hints[item.name]))  # a field of the protocol may also be None
        choices = next((typing.get_args(each) for each in kinds if typing.get_origin(each) is typing.Literal), ())
        text = (f"{{{', '.join(choices)}}} " if choices else "") + docs.get(item.name, "")
        lines += textwrap.wrap(text, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return lines


def field_docs(kind: type) -> dict[str, str]:
    """The string that stands under each field of a dataclass, by field name."""
    source = inspect.getsource(getattr(kind, "documented_in", kind))
    body = ast.parse(textwrap.dedent(source)).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


def _show(value: object) -> str:
    if value is None:
        return "as tokens.protocol"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return value if isinstance(value, str) and value else json.dumps(value)
