"""The how-tos in docs/ do what they say: their tables are read and their commands run, dry."""

import re
import shlex
from pathlib import Path

import pytest

from midibert_ray.cli.main import execute
from tests.labelled import write_folder

DOCS = Path(__file__).parents[1] / "docs"


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), re.DOTALL)


def test_my_own_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, _ = blocks("own-labels.md", "csv")
    head, *rows = table.splitlines()
    more = [
        f"{number}/{row}".replace(",quintet", f",{number}").replace(",trio", f",x{number}")
        for number in range(4)
        for row in rows
    ]
    write_folder(tmp_path / "music", [row.split(",")[0] for row in more])
    (tmp_path / "music" / "metadata.csv").write_text("\n".join([head, *more]), encoding="utf-8")
    (command,) = blocks("own-labels.md", "bash")
    words = shlex.split(command.replace("/music", str(tmp_path / "music")).replace("=out", f"={tmp_path}/out"))[1:]
    assert execute([*words, "tokens.segment=16", "model.hidden=16", "model.layers=1", "study.variants=scratch"]) == 0
    said = capsys.readouterr().out
    assert "genre: 2 classes: jazz 4, pop 4" in said
    assert "year: 8 numbers, 1959 to 1984" in said
    assert "trials          6, 6 of them open: genre-scratch-clean-seed2021-fold1" in said
