"""A folder of MIDI and labels of one's own, from the files to the table of results."""

import csv
from pathlib import Path
from typing import Any

import pytest

from midibert_ray import pipeline
from midibert_ray.cli import dry_run
from midibert_ray.data.store import open_store
from midibert_ray.report import table
from midibert_ray.settings.config import Config
from tests.labelled import write_folder
from tests.tiny import tiny_study

PIECES = [f"{register}/{number:02}.mid" for register in ("high", "low") for number in range(12)]
HEAD = ("file_name", "genre", "year", "mood", "group")
ROWS = [
    (name, name.split("/")[0], 1900 + number, "calm;sad" if number % 3 else "sad", f"g{number // 2}")
    for number, name in enumerate(PIECES)
]


def write_table(folder: Path, head: tuple[str, ...] = HEAD, rows: list[tuple[Any, ...]] = ROWS) -> None:
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])


@pytest.fixture
def music(tmp_path: Path) -> Path:
    write_folder(tmp_path / "music", PIECES)
    write_table(tmp_path / "music")
    return tmp_path / "music"


def settings(music: Path, **changes: Any) -> Config:
    corpus = f"folder:{music}"
    own = {"corpora__names": (corpus,), "study__corpus": corpus, "study__tasks": ("genre",), "tokens__segment": 32}
    return tiny_study(music.parent, **own | {"study__variants": ("scratch",)} | changes)


@pytest.mark.ray
def test_every_piece_is_tested_once_in_folds_of_whole_groups(music: Path, ray_cluster: Any) -> None:
    config = settings(music, study__folds=3, study__tasks=("genre", "year", "mood"))
    plan = pipeline.plan(config, study=True)
    dry_run.describe_plan(plan)
    pipeline.tokenize(plan)
    result = pipeline.study(plan)
    assert not result.failed
    assert len(result.outcomes) == 9
    (made,) = table.build(result.outcomes, {})
    for task in ("genre", "year", "mood"):
        tested = [set(item.pieces) for item in result.outcomes if item.task == task]
        assert sum(map(len, tested)) == 24
        assert set.union(*tested) == set(PIECES)
        score = made.cells[table.Key("clean", task, "scratch")].score
        assert score
        assert len(score.tally) == 24
    for spec in plan.study.trials.values() if plan.study else ():
        store = open_store(spec.store, config.storage)
        sides: dict[str, set[str]] = {}
        for piece in range(len(store)):
            sides.setdefault(store.cluster(piece), set()).add(store.split(piece))
        assert all(len(found) == 1 for found in sides.values())
    again = pipeline.plan(config, study=True)
    assert again.open_trials == []
