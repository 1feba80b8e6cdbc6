"""The command `midibert`, which the files in jobs/ run as well.

Nothing is imported here before signals are looked after, and no framework before the command line is understood: help
and mistakes are answered at once.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from midibert_ray.cli import signals

if TYPE_CHECKING:
    from argparse import Namespace

    from midibert_ray.cli.arguments import Args


def main(words: Sequence[str] | None = None) -> None:
    """End this process with the exit code of a job: its name and command line, by default this process's."""
    signals.leave_at_once()
    sys.exit(execute(sys.argv[1:] if words is None else words))


def execute(words: Sequence[str]) -> int:
    """Run a job in this process; gives its exit code: 2, and one line, for what the user can mend.

    Errors of any other kind keep their traceback.
    """
    from midibert_ray.settings.validators import ConfigError

    try:
        return _execute(*words)
    except ConfigError as error:
        return _fail(error)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name in ("", "midibert_ray"):
            raise
        return _fail(
            f"{sys.executable} has no package {name!r}; activate the environment that has it (`source "
            ".venv/bin/activate`), make one with `make demo`, or: pip install 'midibert-ray[train]'"
        )


def _fail(problem: object) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"error: {problem}\n")
    return 2


def _execute(name: str = "", *words: str) -> int:
    from midibert_ray.cli import arguments, commands

    if name in ("", "-h", "--help"):
        sys.stdout.write(commands.overview())
        return 0 if name else 2
    args: Args | Namespace
    if name == "submit":
        from midibert_ray.cli.jobs import submit

        args = submit.parse(words)
    else:
        args = arguments.parse(commands.find(name), words)
    from midibert_ray.cli import driver

    try:
        return driver.run(name, args)
    except driver.MENDABLE as error:
        return _fail(error)


if __name__ == "__main__":
    main()
