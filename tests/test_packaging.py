"""The wheel alone: what `pip install .` brings suffices to open a model and to annotate a song, and is no more."""

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from midibert_ray.cli import workdir
from midibert_ray.model.folder import save_export
from midibert_ray.model.heads import MidiBertForNotes
from midibert_ray.model.midibert import MidiBertConfig

ROOT = Path(__file__).parents[1]
SONG = ROOT / "midibert_ray/corpora/sample/POP909"
BASE = {"numpy", "torch", "transformers", "safetensors", "symusic", "pretty-midi", "pandas", "jinja2"}
HEAVY = ("ray", "deepspeed", "mlflow", "pyarrow", "matplotlib", "scipy", "psutil", "requests", "pytest")

PROGRAM = """
import importlib.util, json, sys
folder, song = sys.argv[1:]
import midibert_ray as mb
model = mb.load(folder)
assert mb.load("tiny").annotate(song).scores.tolist() == model.annotate(song).scores.tolist()
annotated = model.annotate(song)
annotated.to_midi().write("annotated.mid")
found = {
    "at": mb.__file__,
    "there": [name for name in json.loads(sys.stdin.read()) if importlib.util.find_spec(name)],
    "notes": len(annotated.notes),
    "labels": sorted(set(annotated.notes.label)),
    "embedding": model.embed([song]).shape,
    "tokens": mb.tokenize(song).ids.shape,
}
print(json.dumps(found))
"""


def name_of(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


def needed(requirements: list[Requirement], extra: str = "") -> Iterator[metadata.Distribution]:
    """The installed distributions that some requirements name, and those that these need in turn."""
    todo, seen = [(each, extra) for each in requirements], set[str]()
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wish in ("", *requirement.extras):
            if (key := f"{name_of(requirement.name)}[{wish}]") not in seen:
                seen.add(key)
                found = metadata.distribution(requirement.name)
                assert requirement.specifier.contains(found.version, prereleases=True), (
                    f"{requirement}: {found.version}"
                )
                yield found
                todo += [(Requirement(text), wish) for text in found.requires or ()]


def tiny() -> MidiBertForNotes:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    config = MidiBertConfig(**shape, num_classes=3)
    config.name_classes(("melody", "bridge", "piano"))
    return MidiBertForNotes(config)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that git knows, and a model that ships."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in [*workdir.files(ROOT), ROOT / "README.md", ROOT / "LICENSE"]:
        place = source / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    save_export(tiny(), source / "midibert_ray/weights/tiny", {"README.md": "a card"})
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", target, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = target.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def requirements(wheel: Path) -> list[Requirement]:
    """As the wheel states them."""
    with zipfile.ZipFile(wheel) as packed:
        (name,) = [name for name in packed.namelist() if name.endswith(".dist-info/METADATA")]
        text = packed.read(name).decode()
    return [Requirement(line) for line in re.findall(r"^Requires-Dist: (.+)$", text, re.M)]


@pytest.mark.slow
def test_the_wheel_asks_for_little(wheel: Path, requirements: list[Requirement]) -> None:
    assert {name_of(each.name) for each in requirements if not each.marker} == BASE
    assert all(each.specifier for each in requirements), "a range each"
    pinned = {
        name_of(found[1]): found[2]
        for found in re.finditer(r"^([\w.-]+)(?:\[.+\])?==(\S+)", (ROOT / "requirements.txt").read_text(), re.M)
    }
    for each in requirements:
        if "scores" not in str(each.marker):  # not among what is run together
            assert each.specifier.contains(pinned[name_of(each.name)]), f"{each} is not {pinned[name_of(each.name)]}"
    with zipfile.ZipFile(wheel) as packed:
        assert "midibert_ray/py.typed" in packed.namelist()


@pytest.mark.slow
def test_the_wheel_alone_annotates_a_song(wheel: Path, requirements: list[Requirement], tmp_path: Path) -> None:
    """In an environment that has nothing but what the wheel asks for: links to the packages installed here."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (packages,) = (tmp_path / "env/lib").glob("python3*/site-packages")
    for found in needed(requirements):
        for top in {path.parts[0] for path in found.files or () if path.parts[0] not in ("..", "__pycache__")}:
            link, there = packages / top, Path(str(found.locate_file(top)))
            if not link.exists() and there.exists():
                link.symlink_to(there)
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(packages)

    tiny().save_pretrained(tmp_path / "model")
    song = min(SONG.glob("*/*/*.mid"), default=None) or min(SONG.glob("*/*.mid"))
    done = subprocess.run(
        [tmp_path / "env/bin/python", "-c", PROGRAM, tmp_path / "model", song],
        input=json.dumps(HEAVY),
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert Path(said["at"]).is_relative_to(packages) and said["there"] == []
    assert said["notes"] > 100 and set(said["labels"]) <= {"melody", "bridge", "piano", ""}
    assert said["embedding"] == [1, 16] and said["tokens"][1] == 4
    assert (tmp_path / "annotated.mid").read_bytes()[:4] == b"MThd"
