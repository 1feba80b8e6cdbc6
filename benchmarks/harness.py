"""What all benchmarks share: subprocesses, environments of their own, one aligned table, RESULTS.md.

Only the standard library, so that the driver of a benchmark stays small: Linux starts the count of a child's
largest memory at that of the process that started it.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("RESULTS.md")
ENVIRONMENTS = "~/.cache/midibert_ray/benchmarks"
NOT_MEASURED = "not measured"


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with the options that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--write", action="store_true", help="put the table into RESULTS.md, in place of the last one")
    made.add_argument("--results", type=Path, default=RESULTS, help="the file that --write changes")
    return made


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as an aligned Markdown table: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [_line(row, widths) for row in (head, *rows)]
    marks = [f"{'-' * widths[0]}", *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    return "\n".join([lines[0], _line(marks, widths), *lines[1:]])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cells[0].ljust(widths[0]),
        *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)),
    ]
    return f"| {' | '.join(padded)} |"


def verdict(value: float, *, least: float | None = None, most: float | None = None) -> str:
    """Whether a value reaches its target: "yes" or "NO"."""
    fine = (least is None or value >= least) and (most is None or value <= most)
    return "yes" if fine else "NO"


def machine() -> str:
    """Processor, cores and memory of this machine, in words."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.exists() else []
    name = names[0] if names else platform.processor() or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB memory"


def versions(*packages: str, python: Path | None = None) -> str:
    """Versions of installed packages, of this environment or of another one's python."""
    if python is not None:
        code = "import sys, importlib.metadata as m; print(', '.join(f'{p} {m.version(p)}' for p in sys.argv[1:]))"
        return subprocess.run(
            [python, "-c", code, *packages], check=True, capture_output=True, text=True
        ).stdout.strip()
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def environment(name: str, requirements: Sequence[str], folder: str = ENVIRONMENTS) -> Path:
    """The python of a virtual environment that holds these packages and nothing of ours; made when needed.

    Raises:
        RuntimeError: where pip cannot install them.
    """
    place = Path(folder).expanduser() / name
    python, ready, wanted = place / "bin" / "python", place / "ready", "\n".join(requirements)
    if ready.exists() and ready.read_text() == wanted:
        return python
    print(f"installing {', '.join(requirements)} into {place}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, *requirements], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pip could not install {', '.join(requirements)} into {place}:\n{done.stderr}")
    ready.write_text(wanted)
    return python


def measure(command: Sequence[object], stdin: Any = None, **environ: str) -> Any:
    """Run a worker of a benchmark and give what the last line of its output holds, as JSON.

    Args:
        command: a python and its arguments.
        stdin: handed to the worker as JSON.
        environ: changes of the environment.

    Raises:
        RuntimeError: where the worker fails; with the end of what it said.
    """
    done = subprocess.run(
        [str(word) for word in command],
        input=json.dumps(stdin),
        capture_output=True,
        text=True,
        env=os.environ | environ,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = "\n".join([*lines, *done.stderr.strip().splitlines()][-20:])
        raise RuntimeError(f"{shlex.join(map(str, command))} ended with {done.returncode}:\n{said}")
    return json.loads(lines[-1])


def peak_gib() -> float:
    """Largest resident memory of this process so far, GiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def clock(threads: int) -> Callable[[], float]:
    """Seconds; on one thread those of this process's CPU time, so that other work on the machine does not count."""
    return time.process_time if threads == 1 else time.perf_counter


def resident_gib() -> float:
    """Resident memory of this process now, GiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def publish(name: str, rows: str, options: argparse.Namespace, *, hardware: str, software: str) -> None:
    """Print a benchmark's table last, and with --write put it into its section of RESULTS.md.

    Raises:
        ValueError: where the file has no such section; the table is printed all the same.
    """
    try:
        if options.write:
            when = time.strftime("%Y-%m-%d", time.gmtime())
            facts = [f"* {when}, on {hardware}", f"* {software}", f"* `{command()}`"]
            write_section(options.results, name, "\n".join([*facts, "", rows]))
            print(f"\n{options.results.name}: section {name} is new")
    finally:
        print(f"\n{rows}")


def command() -> str:
    """The command line of this process, without places that only this machine has."""
    script = Path(sys.argv[0])
    words = [re.sub(r"^/.*", "PATH", word) for word in sys.argv[1:]]
    return shlex.join(["python", f"{script.resolve().parent.name}/{script.name}", *words])


def write_section(path: Path, name: str, body: str) -> None:
    """Put `body` between the markers of a section, all at once.

    Raises:
        ValueError: where the file has no such section.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = path.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise ValueError(f"{path} has no section {name}; it needs the lines {begin} and {end}")
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    scratch = path.with_name(f"{path.name}.new")
    scratch.write_text(f"{head}{begin}\n{body}\n{end}{tail}", encoding="utf-8")
    scratch.replace(path)


def music(corpora: str, count: int) -> tuple[list[str], str]:
    """MIDI files of POP909 below a folder, or of the sample, evenly out of the list; and where they are from."""
    from midibert_ray.corpora.catalogue import corpus
    from midibert_ray.corpora.labels import list_pieces
    from midibert_ray.music.protocol import CLEAN

    chosen = corpus("pop909")
    there = corpora and Path(chosen.location(corpora)).is_dir()
    chosen = chosen if there else corpus("sample")
    folder, pieces = Path(chosen.location(corpora)), list_pieces(chosen, {}, CLEAN)
    step = max(1, len(pieces) // count)
    return [str(folder / piece.files[0]) for piece in pieces[::step][:count]], chosen.title
