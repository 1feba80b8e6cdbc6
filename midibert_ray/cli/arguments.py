"""The command line of a job: `--preset NAME section.key=value ... [--dry-run] [--help [all]]`.

No framework is imported here, so that help and mistakes are answered at once.
"""

import argparse
import ast
import difflib
import functools
import inspect
import json
import sys
import textwrap
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NoReturn

from midibert_ray.cli.commands import Command
from midibert_ray.cli.mistakes import refuse_mistakes, unknown_word
from midibert_ray.settings.config import Config, ConfigError
from midibert_ray.settings.overrides import flatten, refuse_secrets, replace, runtime_keys
from midibert_ray.settings.presets import PRESETS, preset


@dataclass(frozen=True, kw_only=True)
class Args:
    """A command line that has been understood."""

    config: Config
    preset: str
    dry_run: bool
    words: tuple[str, ...]
    """Arguments that are not overrides, such as the name of a study."""
    extra: Mapping[str, str]
    """The job's own settings that were given, such as the output folder of an export."""
    flags: tuple[str, ...] = ()
    """The job's own switches that were given, such as `flush`."""


def parse(command: Command, words: Sequence[str]) -> Args:
    """Read a job's command line; `--help` is printed and ends the process. Folders stay as they are written.

    Raises:
        ConfigError: for what cannot be understood; says what to write instead.
    """
    refuse_secrets(words)  # first of all, as other messages show what they refuse
    parser = _parser(command)
    refuse_mistakes(command, words)
    known = parser.parse_intermixed_args(words)
    if known.help:
        parser.epilog = _epilog(command, everything=known.help == "all")
        parser.print_help()
        sys.exit(0)
    plain = tuple(word for word in known.overrides if "=" not in word)
    if plain and not command.words:
        raise ConfigError(unknown_word(command, plain[0], words))
    kind = _kind(plain, command, words) if command.kinds else {}
    changes = dict(word.split("=", 1) for word in known.overrides if "=" in word)
    extra = _take(changes, command.extra)
    config = replace(preset(known.preset), kind | changes)
    flags = tuple(name for name in command.flags if getattr(known, name))
    return Args(config=config, preset=known.preset, dry_run=known.dry_run, words=plain, extra=extra, flags=flags)


class Parser(argparse.ArgumentParser):
    """The parser of a job's command line, whose errors are raised."""

    def __init__(self, command: Command, usage: str | None = None) -> None:
        super().__init__(
            prog=f"midibert {command.name}",
            usage=usage,
            description=command.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found as a ConfigError."""
        raise ConfigError(f"{message}; `{self.prog} --help` shows what can be given")


def _parser(command: Command) -> Parser:
    parser = Parser(command)
    helped = "show this; `all`: with all settings of all jobs"
    parser.add_argument("-h", "--help", nargs="?", const="job", metavar="all", help=helped)
    started = "starting point (default: base, the paper)"
    parser.add_argument("--preset", default="base", choices=sorted(PRESETS), help=started)
    parser.add_argument("--dry-run", action="store_true", help="print what would be done and stop")
    for name, meaning in command.flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=meaning)
    words = command.words or "settings, listed below"
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=words)
    return parser


def _kind(plain: Sequence[str], command: Command, words: Sequence[str]) -> dict[str, object]:
    """The settings that the one word of a command line stands for; none for none."""
    for word in plain:
        if word not in command.kinds:
            raise ConfigError(unknown_word(command, word, words))
    if len(plain) > 1:
        raise ConfigError(f"{' '.join(plain)!r} is not possible; use nothing, {' or '.join(command.kinds)}")
    return dict(command.kinds[plain[0]]) if plain else {}


def _take(changes: dict[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """Take a job's own settings out of the overrides."""
    own = {key: changes.pop(key) for key in extra if key in changes}
    for key, value in own.items():
        if not value:
            raise ConfigError(f"{key}= has no value; write {key}=..., or leave it out")
    for key in changes.keys() - flatten(Config()).keys():
        if near := difflib.get_close_matches(key, extra, n=1):
            raise ConfigError(f"unknown setting {key!r}; did you mean {near[0]!r}? This job's own: {', '.join(extra)}")
    return own


def _epilog(command: Command, *, everything: bool) -> str:
    """The settings of a job, and those of its configuration that it reads, or all of them."""
    lines = ["settings of this job alone:"] if command.extra else []
    for key, meaning in command.extra.items():
        lines += [f"    {key}", *_wrapped(meaning)]
    lines += [""] if lines else []
    lines.append("settings (default in brackets; * never changes a result or a name):")
    runtime, hidden = runtime_keys(), 0
    sections: dict[str, Any] = {"": Config}
    sections |= {name: kind for name, kind in typing.get_type_hints(Config).items() if is_dataclass(kind)}
    for section, kind in sections.items():
        every = [item for item in fields(kind) if not is_dataclass(item.type)]
        shown = [item for item in every if everything or _reads(command, section, item.name)]
        hidden += len(every) - len(shown)
        lines += ["", f"  {section}"] if section and shown else []
        docs, hints = field_docs(kind), typing.get_type_hints(kind)
        for item in shown:
            key = f"{section}.{item.name}".removeprefix(".")
            lines.append(f"    {key}{'*' if key in runtime else ''} [{show(item.default)}]")
            kinds = (hints[item.name], *typing.get_args(hints[item.name]))  # a field of the protocol may also be None
            choices = next((typing.get_args(each) for each in kinds if typing.get_origin(each) is typing.Literal), ())
            lines += _wrapped((f"{{{', '.join(choices)}}} " if choices else "") + docs[item.name])
    lines += ["", f"{hidden} settings that this job does not read are left out: `--help all`"] if hidden else []
    return "\n".join(lines)


def _reads(command: Command, section: str, name: str) -> bool:
    return bool({section or name, f"{section}.{name}"} & set(command.settings))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)


def show(value: Any) -> str:
    """A setting's value as it stands in a listing."""
    if value is None:
        return "as tokens.protocol"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return value if isinstance(value, str) and value else json.dumps(value)


def field_docs(kind: type) -> dict[str, str]:
    """The string that stands under each field of a dataclass, by field name."""
    kind = getattr(kind, "documented_in", kind)
    body = _classes(kind.__module__)[kind.__name__]
    docs: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


@functools.cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """The classes of a module, parsed once: `inspect.getsource` of a class parses the whole file, and looks through
    all modules that there are.
    """
    parsed = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in parsed.body if isinstance(node, ast.ClassDef)}
