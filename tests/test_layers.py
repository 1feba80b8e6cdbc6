"""The house rules about imports: who may use whom, and where each framework lives."""

import ast
import functools
import re
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "midibert_ray"

HALL = {"__init__.py", "pipeline.py", "py.typed"}
"""Files that stand in no room."""

UPON: dict[str, set[str]] = {
    "music": set(),
    "settings": {"music"},
    "storage": {"settings"},
    "corpora": {"music", "storage"},
    "data": {"music", "storage"},
    "model": {"music", "settings"},
    "tracking": {"storage"},
    "tokenizing": {"corpora", "data"},
    "inference": {"model", "tracking", "tokenizing"},
    "training": {"data", "model", "tracking"},
    "studies": {"training", "tokenizing"},
    "report": {"studies", "inference"},
    "export": {"studies"},
    "pipeline": {"report", "export", "inference"},
    "cli": {"pipeline"},
}
"""Room -> the rooms that it stands upon; it may use these, and whatever they stand upon."""

HOMES = {
    "ray.data": {"tokenizing", "inference"},
    "ray.train": {"training"},
    "deepspeed": {"training"},
    "ray.tune": {"studies"},
    "mlflow": {"tracking"},
}
"""Framework -> the rooms that may import it."""

ISLANDS = {
    "music": {"torch", "ray", "transformers", "pyarrow", "mlflow", "deepspeed"},
    "model": {"ray", "mlflow", "deepspeed"},
    "settings": {"torch", "ray", "transformers", "pyarrow", "mlflow", "deepspeed"},
}
"""Room -> packages that it does without, so that it opens where they are not installed."""

SOURCES = sorted(PACKAGE.rglob("*.py"))


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, `from a import b` as `a.b`."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def below(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def reachable(room: str) -> set[str]:
    """A room, and all rooms that it stands upon."""
    return {room}.union(*(reachable(other) for other in UPON[room]))


def test_only_the_pipeline_stands_in_the_hall() -> None:
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} <= HALL
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms | {"pipeline"} == set(UPON)


def test_imports_run_forward_only() -> None:
    upwards = {}
    for path in set(SOURCES) - {PACKAGE / "__init__.py"}:
        used = {name.split(".")[1] for name in imports(path) if below(name, "midibert_ray") and "." in name}
        if strays := used & set(UPON) - reachable(room_of(path)):
            upwards[str(path.relative_to(ROOT))] = strays
    assert upwards == {}


def test_no_import_runs_in_a_circle() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES
    }
    graph = {}
    for module, path in modules.items():
        names = {name for name in imports(path) if below(name, "midibert_ray")}
        targets = {name if name in modules else name.rpartition(".")[0] for name in names}
        # What a package's own __init__ gathers from its files is no circle: the files do not ask it.
        graph[module] = {target for target in targets if target in modules and target != module}
    tuple(TopologicalSorter(graph).static_order())


def test_frameworks_stay_in_their_rooms() -> None:
    astray = {}
    for path in SOURCES:
        room, names = room_of(path), imports(path)
        strays = {name for module, homes in HOMES.items() if room not in homes for name in names if below(name, module)}
        strays |= {name for name in names if name.split(".")[0] in ISLANDS.get(room, set())}
        if strays:
            astray[str(path.relative_to(ROOT))] = strays
    assert astray == {}


def test_only_jobs_start_ray() -> None:
    assert [path for path in SOURCES if "ray.init(" in path.read_text()] == [PACKAGE / "cli/driver.py"]


def test_library_files_are_short_and_have_one_job() -> None:
    long = {str(path): n for path in SOURCES if (n := path.read_text().count("\n")) > 400}
    assert not long


def test_functions_fit_a_screen() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": length
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (length := _code_lines(node)) > 40
    }
    assert not long


def _code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    doc = node.body[0]
    if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str):
        lines -= (doc.end_lineno or doc.lineno) - doc.lineno + 1
    return lines


def test_the_readme_lists_every_file() -> None:
    """One comment a file, below its room; jobs/ stands for the files in it."""
    tree = (ROOT / "README.md").read_text().partition("\nmidibert_ray/\n")[2].partition("\njobs/")[0]
    listed, room = set(), ""
    for line in tree.splitlines():
        if found := re.match(r"[├└]── (\w+)/", line):
            room = found[1] + "/"
        below = "" if line.startswith("├── ") else room
        listed |= {below + name for name in re.findall(r"\w+\.py", line)}
    there = {str(path.relative_to(PACKAGE)) for path in SOURCES if path.name != "__init__.py"}
    assert listed == {name for name in there if not name.startswith("cli/jobs/")}
