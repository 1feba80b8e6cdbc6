"""The house rules about imports: who may use whom, and where each framework lives."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "midibert_ray"
HOMES = {
    "ray.data": ("midibert_ray/data/",),
    "ray.train": ("midibert_ray/training/",),
    "deepspeed": ("midibert_ray/training/",),
    "ray.tune": ("midibert_ray/studies/",),
    "mlflow": ("midibert_ray/tracking/",),
}
LAYERS = ("music", "data", "model", "training", "studies")
ALLOWED = {
    "music": {"music"},
    "download": {"music"},
    "data": {"music", "data"},
    "model": {"music", "model"},
    "training": {"music", "data", "model", "training"},
    "studies": set(LAYERS),
}
WIRING = {"pipeline.py", "export.py"}
"""Files outside the rooms that connect them; every other one serves all rooms and enters none."""

SOURCES = sorted(path for path in PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, `from a import b` as `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def below(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_frameworks_stay_in_their_rooms(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    for module, homes in HOMES.items():
        strays = [name for name in imports(path) if below(name, module)]
        assert not strays or place.startswith(homes), f"{place} imports {strays}, which lives in {homes}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_what_lies_below_them(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    used = {name.split(".")[1] for name in imports(path) if below(name, "midibert_ray") and "." in name}
    if room in ALLOWED:
        assert used & set(LAYERS) <= ALLOWED[room], f"{path} reaches up"
        if room == "music":
            assert used <= {"music"}, "music/ stands alone: no configuration, no storage"
            assert not {name.split(".")[0] for name in imports(path)} & {"torch", "ray", "transformers", "pyarrow"}
    else:
        assert not used & set(LAYERS) or room in WIRING, f"{path} serves all rooms and enters none"


def test_only_jobs_start_ray() -> None:
    assert not [path for path in SOURCES if "ray.init(" in path.read_text()]


def test_library_files_are_short_and_have_one_job() -> None:
    long = {str(path): n for path in SOURCES if (n := path.read_text().count("\n")) > 400}
    assert not long
