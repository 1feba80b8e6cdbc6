"""What benchmarks put clocks around is there: a name that the package has given up would stop them at their start."""

import ast
import importlib
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def _tables(script: Path) -> list[str]:
    """Names of the tables `NAME: Places = {...}` of a script."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.AnnAssign)]
    return [ast.unparse(node.target) for node in found if ast.unparse(node.annotation) == "Places"]


TABLES = [(script.stem, name) for script in sorted(FOLDER.glob("*.py")) for name in _tables(script)]


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))  # where scripts find each other
    return importlib.import_module("stages")


def test_the_tables_are_found() -> None:
    assert {("start", "TRIAL"), ("start", "WORKER"), ("start", "DRIVER")} <= set(TABLES)


@pytest.mark.parametrize(("script", "name"), TABLES)
def test_every_place_with_a_clock_can_be_called(script: str, name: str, stages: ModuleType) -> None:
    found = {place: stages.resolve(place) for place in getattr(importlib.import_module(script), name)}
    assert found and all(callable(getattr(holder, attribute, None)) for holder, attribute in found.values()), found


def test_a_place_that_is_gone_is_named(stages: ModuleType) -> None:
    with pytest.raises(AttributeError, match=r"studies\.trial:open_store: "):
        stages.Clock().watch({"midibert_ray.studies.trial:open_store": "store and segments"})
