"""Labels that a corpus's owner gives: what is read, and what is refused with its row, its value and what is allowed."""

import io
import json
import time
from pathlib import Path

import pandas as pd
import pytest

from midibert_ray.corpora import table
from midibert_ray.corpora.labels import Piece
from midibert_ray.corpora.table import LabelError, Labels, from_columns, from_folders, make_task, read_columns
from midibert_ray.music.tasks import TASKS

NAMES = ("a.mid", "b.mid", "c.mid", "d.mid")


def pieces(*names: str) -> list[Piece]:
    return [Piece(piece=name, files=(name,), split="pretrain", label=None) for name in names]


def read(text: str, *names: str) -> Labels:
    return from_columns("metadata.csv", read_columns("metadata.csv", text.encode()), pieces(*(names or NAMES)))


def test_a_table_as_csv_jsonl_and_parquet_says_the_same() -> None:
    rows = [
        {"file_name": "a.mid", "genre": "jazz", "year": 1959, "mood": ["calm", "slow"], "split": "train"},
        {"file_name": "b.mid", "genre": None, "year": 1960, "mood": ["calm"], "split": "validation"},
        {"file_name": "c.mid", "genre": "pop", "year": None, "mood": None, "split": "test"},
    ]
    jsonl = "\n".join(map(json.dumps, rows)).encode()
    parquet = io.BytesIO()
    pd.DataFrame(rows).to_parquet(parquet)
    csv = (
        b"\xef\xbb\xbffile_name,genre,year,mood,split\na.mid,jazz,1959,calm;slow,train\n"
        b"b.mid, ,1960,calm,validation\nc.mid,pop,,,test\n"
    )
    contents = {"metadata.csv": csv, "metadata.jsonl": jsonl, "metadata.parquet": parquet.getvalue()}
    found = {name: from_columns(name, read_columns(name, data), pieces(*NAMES)) for name, data in contents.items()}
    assert len({labels.digest for labels in found.values()}) == 1
    labels = found["metadata.csv"]
    assert labels.columns == {
        "genre": ("jazz", None, "pop"),
        "year": ("1959", "1960", None),
        "mood": ("calm;slow", "calm", None),
    }
    assert labels.splits == ("train", "valid", "test")
    assert labels.unknown == ("d.mid",)
    assert [labels.at(0) for labels in found.values()] == [
        "row 2 of metadata.csv",
        "row 1 of metadata.jsonl",
        "row 1 of metadata.parquet",
    ]


def test_columns_become_tasks_by_what_stands_in_them() -> None:
    labels = read("file_name,genre,year,mood\na.mid,pop,1959,sad\nb.mid,jazz,1960.5,sad;slow\nc.mid,pop,1961,calm\n")
    made = [make_task(labels, name, "own") for name in ("genre", "year", "mood")]
    assert [(task.kind, task.classes, task.column) for task in made] == [
        ("classes", ("jazz", "pop"), "label.genre"),
        ("number", (), "label.year"),
        ("tags", ("calm", "sad", "slow"), "label.mood"),
    ]
    year = make_task(labels, "year", "own", "classes")
    assert (year.kind, year.classes) == ("classes", ("1959", "1960.5", "1961"))
    assert table.counts(labels, made[2]) == {"sad": 2, "slow": 1, "calm": 1}


def test_a_column_like_a_task_of_the_paper_is_that_task() -> None:
    labels = read("file_name,emotion\na.mid,Q4\nb.mid,Q1\nc.mid,Q3\nd.mid,Q2\n")
    task = make_task(labels, "emotion", "emopia")
    assert (task.classes, task.rnn_lr, task.song) == (
        TASKS["emotion"].classes,
        TASKS["emotion"].rnn_lr,
        TASKS["emotion"].song,
    )
    assert task.column == "label.emotion"


def test_class_folders() -> None:
    labels = from_folders(pieces("jazz/a.mid", "pop/x/b.mid", "loose.mid"))
    assert labels is not None
    assert labels.columns == {"label": ("jazz", "pop")}
    assert labels.unknown == ("loose.mid",)
    divided = from_folders(pieces("train/jazz/a.mid", "test/pop/b.mid", "validation/pop/c.mid"))
    assert divided is not None
    assert (divided.columns["label"], divided.splits) == (("jazz", "pop", "pop"), ("train", "test", "valid"))
    assert from_folders(pieces("one/a.mid", "one/b.mid")) is None
    assert from_folders(pieces("a.mid")) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "file,genre\na.mid,x\n",
            r"metadata\.csv has no column file_name \(did you mean 'file'\?\); its columns: file",
        ),
        ("file_name,genre\n", r"metadata\.csv has no rows; give one a file"),
        ("file_name,genre\na.mid,x\na.mid,y\n", r"names 'a\.mid' twice, in rows 2 and 3; keep one row a file"),
        (
            "file_name,split\na.mid,train\nb.mid,test\na.mid,test\n",
            r"names 'a\.mid' twice, in rows 2 and 4 \(splits 'train' and 'test'\)",
        ),
        ("file_name,split\na.mid,trian\n", r"row 2: split='trian' is not allowed; use train, validation, test"),
        ("file_name,genre\n ,x\n", r"row 2: file_name is empty; give a path below the folder"),
        ("file_name,genre\nA.mid,x\n", r"names none of the 4 MIDI files.*row 2 has 'A\.mid'.*first file is 'a\.mid'"),
        ('file_name,genre\na.mid,"x\n', r"metadata\.csv cannot be read as csv: .*EOF"),
    ],
)
def test_a_table_that_cannot_be_used_names_the_row_and_the_value(text: str, problem: str) -> None:
    with pytest.raises(LabelError, match=problem):
        read(text)


@pytest.mark.parametrize(
    ("column", "kind", "problem"),
    [
        ("gerne", "", r"has no column 'gerne' \(did you mean 'genre'\?\); its labels: genre, year, same, none"),
        ("year", "", r"row 3 of metadata\.csv: year='soon' is no number.*study\.kinds=year:classes"),
        ("genre", "number", r"row 2 of metadata\.csv: genre='jazz' is no number"),
        ("same", "", r"'same' has 1 different labels, such as 'x' \(row 2 of metadata\.csv\); 2 to 255 make classes"),
        ("none", "", r"the column 'none' has no label; fill its cells"),
    ],
)
def test_a_task_that_cannot_be_made_says_why(column: str, kind: str, problem: str) -> None:
    labels = read("file_name,genre,year,same,none\na.mid,jazz,1959,x,\nb.mid,pop,soon,x,\nc.mid,pop,1961,x,\n")
    with pytest.raises(LabelError, match=problem):
        make_task(labels, column, "own", kind)


@pytest.mark.slow
def test_two_hundred_thousand_rows_are_read_in_seconds(tmp_path: Path) -> None:
    names = [f"{number % 100}/{number}.mid" for number in range(200_000)]
    text = "file_name,genre,year,group\n" + "".join(
        f"{name},{number % 7},{1900 + number % 90},g{number // 3}\n" for number, name in enumerate(names)
    )
    began = time.process_time()
    labels = read(text, *names)
    assert make_task(labels, "year", "own").kind == "number"
    assert labels.digest
    assert time.process_time() - began < 20
