"""The how-tos and the notebook of docs/ do what they say: their commands and cells are run as they stand.

Only places, the size of models and the cluster are a test's own: `/music/mine` and `/shared` are folders of it,
`--preset small` and `debug` are tiny, and one actor is all that there is room for. Blocks with a second word behind
`bash` are what a fixture stands for.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from midibert_ray.cli.main import execute
from midibert_ray.settings.config import Config
from tests.inference.conftest import write_model
from tests.jobs.head import TOKEN, Cluster
from tests.labelled import write_folder
from tests.tiny import TINY

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SAMPLE = ROOT / "midibert_ray/corpora/sample/POP909"
TINY_PRESET = "--preset debug " + " ".join(
    f"{key}={value}"
    for key, value in (TINY | {"pretrain.epochs": 4, "compute.workers": 1}).items()
    if key not in ("study.tasks", "tokens.segment")
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Four songs, a file that is none, and a model that labels notes."""
    (tmp_path / "music").mkdir()
    for song in sorted(SAMPLE.glob("*/*.mid"))[:4]:
        shutil.copyfile(song, tmp_path / "music" / song.name)
    (tmp_path / "music/broken.mid").write_bytes(b"MThd")
    return tmp_path


def blocks(name: str) -> list[tuple[str, str]]:
    """Language and text of the blocks that a reader is to run, in order."""
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    found = re.findall(r"^( *)```(bash|python)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [(language, textwrap.dedent(block)) for _, language, block in found]


def follow(name: str, folder: Path, replaced: dict[str, str], **environment: str) -> str:
    """Run a how-to in a folder; gives all that was said."""
    said = ""
    for language, block in blocks(name):
        for old, new in replaced.items():
            block = block.replace(old, new)
        block = re.sub(r"(midibert (?:submit )?(?:annotate|embed)) ", r"\1 actors=1 ", block)
        shell = f'midibert() {{ "{sys.executable}" -m midibert_ray.cli.main "$@"; }}\n{block}'
        command = ["bash", "-euo", "pipefail", "-c", shell] if language == "bash" else [sys.executable, "-c", block]
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        said += done.stdout
    return said


def test_every_file_of_docs_is_followed_here() -> None:
    names = {path.name for path in DOCS.iterdir()}
    assert names == {
        "own-folder.md",
        "own-cluster.md",
        "annotate.md",
        "read-a-study.md",
        "annotate.ipynb",
        "own-labels.md",
    }
    assert all(f"docs/{name}" in (ROOT / "README.md").read_text(encoding="utf-8") for name in names)
    for path in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
            assert (DOCS / target).exists(), f"{path.name} leads to {target}"


@pytest.mark.slow
def test_the_notebook_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell after cell in one namespace, as a kernel does it; what a cell shows is made too."""
    import matplotlib as mpl

    mpl.use("Agg")
    write_model(place / "exports/melody")
    (place / "music/broken.mid").unlink()
    monkeypatch.chdir(place)
    notebook = json.loads((DOCS / "annotate.ipynb").read_text(encoding="utf-8"))
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace("/music/mine", str(place / "music")), names)
    assert "melody" in names["song"]._repr_html_()
    assert names["shares"].sum(axis=1).round(5).eq(1).all() and len(names["shares"]) == 4
    assert (place / "labelled.mid").stat().st_size and "<html" in (place / "labelled.html").read_text()


@pytest.mark.ray
def test_labels_for_your_files(ray_cluster: Any, place: Path) -> None:
    write_model(place / "exports/melody")
    address = ray_cluster.get_runtime_context().gcs_address
    said = follow("annotate", place, {"/music/mine": str(place / "music")}, RAY_ADDRESS=address)
    assert "broken.mid" in said and "annotated" in said
    assert len(list((place / "annotated").glob("*.html"))) == len(list((place / "sure").glob("*.csv"))) - 1 == 4


@pytest.mark.ray
def test_music_of_your_own(ray_cluster: Any, place: Path) -> None:
    address = ray_cluster.get_runtime_context().gcs_address
    changes = {"/music/mine": str(place / "music"), "--preset small": TINY_PRESET}
    said = follow("own-folder", place, changes, RAY_ADDRESS=address)
    assert "quarantined broken.mid" in said
    assert (place / "exports/mine/model.safetensors").exists()


@pytest.mark.ray
def test_reading_a_study(undisturbed: Config, tmp_path: Path) -> None:
    shutil.copytree(Path(undisturbed.storage.root), tmp_path / "output")
    said = follow("read-a-study", tmp_path, {"output/mlflow.db": f"{undisturbed.storage.root}/mlflow.db"})
    assert "report.html" in said and "melody-pretrained" in said
    assert (tmp_path / "exports/melody/README.md").exists()


@pytest.mark.ray
def test_a_cluster_of_your_own(head: Cluster, place: Path) -> None:
    shared = place / "shared"
    write_model(shared / "exports/melody")
    shutil.copytree(place / "music", shared / "music")
    names = ("HOME", "RAY_API_SERVER_ADDRESS")
    environment = {name: head.environment()[name] for name in names} | {"RAY_AUTH_MODE": "token"}
    said = follow("own-cluster", place, {"/shared": str(shared)}, **environment)
    assert "manifest.json" in [path.name for path in (shared / "annotated").iterdir()]
    assert list((shared / "out/tokens").glob("sample-*/manifest.json"))
    assert TOKEN not in said


def test_my_own_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / "own-labels.md").read_text(encoding="utf-8")
    table = re.findall(r"```csv\n(.*?)```", text, re.DOTALL)[0]
    head, *rows = table.splitlines()
    more = [
        f"{number}/{row}".replace(",quintet", f",{number}").replace(",trio", f",x{number}")
        for number in range(4)
        for row in rows
    ]
    write_folder(tmp_path / "music", [row.split(",")[0] for row in more])
    (tmp_path / "music" / "metadata.csv").write_text("\n".join([head, *more]), encoding="utf-8")
    ((_, command),) = blocks("own-labels")
    words = shlex.split(command.replace("/music", str(tmp_path / "music")).replace("=out", f"={tmp_path}/out"))[1:]
    assert execute([*words, "tokens.segment=16", "model.hidden=16", "model.layers=1", "study.variants=scratch"]) == 0
    said = capsys.readouterr().out
    assert "genre: 2 classes: jazz 4, pop 4" in said
    assert "year: 8 numbers, 1959 to 1984" in said
    assert "trials          6, 6 of them open: genre-scratch-clean-seed2021-fold1" in said
