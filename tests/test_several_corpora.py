"""Several corpora as one: their segments, their notes, and corpora that are tested besides."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from midibert_ray import pipeline
from midibert_ray.corpora.catalogue import corpus
from midibert_ray.corpora.labels import list_pieces
from midibert_ray.data.store import TokenStore
from midibert_ray.music.protocol import CLEAN
from midibert_ray.music.tasks import LINE
from midibert_ray.report.baselines import MAJORITY, PLAIN, SKYLINE, TOP_NOTE, TRAINING, baselines, merge, plain_features
from midibert_ray.report.findings import melody_or_not
from midibert_ray.report.load import load
from midibert_ray.report.report import render
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace as changed
from midibert_ray.studies.result import predictions_table
from midibert_ray.training.finetune import Finetuning, new_model
from midibert_ray.training.task_data import TaskData, split_of
from tests.stores import Piece, beginnings, write_store
from tests.tiny import tiny_study

NOTES = 40


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return tiny_study(tmp_path, finetune__init="scratch", finetune__task=LINE.name, tokens__segment=32)


@pytest.fixture
def stores(sample_pieces: list[Piece], tmp_path: Path) -> list[TokenStore]:
    """Two corpora with pieces of the same names, the second an octave higher and with its parts turned round."""
    pieces = beginnings(sample_pieces, NOTES)
    other = [
        (
            piece,
            split,
            label,
            replace(tokens, tokens=tokens.tokens + np.array([0, 0, 12, 0], np.uint8), part=4 - tokens.part),
        )
        for piece, split, label, tokens in pieces
    ]
    made = {"one": pieces, "other": other, "solo": [(name, "test", *rest) for name, _, *rest in other[:5]]}
    uris = (write_store(tmp_path / name, each, corpus=name) for name, each in made.items())
    return [TokenStore.open(uri, str(tmp_path / "cache")) for uri in uris]


def test_corpora_are_learned_from_as_one(config: Config, stores: list[TokenStore]) -> None:
    *both, solo = stores
    alone, data = [TaskData(config, store) for store in both], TaskData(config, both, tests=[solo])
    for split in ("train", "valid", "test"):
        assert len(data.splits[split]) == sum(len(each.splits[split]) for each in alone)
        rows = np.arange(len(data.splits[split]))
        halves = [each.labels(split, np.arange(len(each.splits[split]))) for each in alone]
        assert np.array_equal(data.labels(split, rows), np.concatenate(halves))
    assert data.tests == ["solo"] and len(data.splits[split_of("solo")]) == 5 * 2
    few = TaskData(changed(config, {"finetune.train_segments": 12}), both).learned
    assert len(few) == 12 and 0 < (few < len(alone[0].splits["train"])).sum() < 12, "drawn from both"


def test_pieces_and_notes_are_those_of_their_own_corpus(config: Config, stores: list[TokenStore]) -> None:
    *both, solo = stores
    data = TaskData(config, both, tests=[solo])
    job = Finetuning(config, data, new_model(config, data, ""), torch.device("cpu"))
    found = job.evaluate("test")
    tested = [store.piece_id(int(row)) for store in both for row in store.select({"test"})]
    names = [f"{'one' if row < len(tested) // 2 else 'other'}/{piece}" for row, piece in enumerate(tested)]
    assert [*found.by_piece(data.splits["test"].name)] == names
    rows = pq.read_table(io.BytesIO(predictions_table(data, found))).to_pydict()
    for name, store in zip(("one", "other"), both, strict=True):
        mine = [row for row, piece in enumerate(rows["piece"]) if piece.startswith(f"{name}/")]
        notes = np.concatenate([np.arange(*store.offsets[row : row + 2]) for row in store.select({"test"})])
        assert [rows["pitch"][row] for row in mine] == (store.tokens[notes, 2] + 22).tolist()
        assert [rows["onset"][row] for row in mine] == store.onset[notes].tolist()
    besides = job.evaluate(split_of("solo"))
    assert [*besides.by_piece(data.splits[split_of("solo")].name)] == [solo.piece_id(row) for row in range(5)]


def test_baselines_of_a_corpus_that_is_tested_besides(config: Config, stores: list[TokenStore]) -> None:
    """Rules are asked about its notes; whatever is learned is learned from the others."""
    one, _, solo = stores
    data = TaskData(config, one, tests=[solo])
    besides = {item.name: item for item in baselines(config, one, LINE, solo)}
    alone = {item.name: item for item in baselines(config, [one], LINE)}
    assert {item.task for item in besides.values()} == {"line on solo"}
    assert {item.task for item in alone.values()} == {"line"}
    melody = int((solo.part == 1).sum())
    assert besides[MAJORITY].detail == {"melody": melody, "accompaniment": 5 * NOTES - melody}
    assert "training" in besides[TRAINING].note and besides[TRAINING].scored == 5 * NOTES
    for rule in (SKYLINE, TOP_NOTE):
        assert besides[rule].detail["TP"] + besides[rule].detail["FN"] == melody
    own, other = plain_features(data)
    assert (own.task, other.task, own.name, other.name) == ("line", "line on solo", PLAIN, PLAIN)
    assert (own.scored, other.scored) == (len(one.select({"test"})) * NOTES, 5 * NOTES)
    assert own.note == other.note
    assert np.sum(own.confusion, axis=1).tolist() == [*own.detail.values()]
    (both, *_) = plain_features(TaskData(config, stores[:2]))
    tested = [(store, row) for store in stores[:2] for row in store.select({"test"}).tolist()]
    assert [*both.pieces] == [f"{store.corpus}/{store.piece_id(row)}" for store, row in tested]
    assert len(merge([own, other, *besides.values(), *alone.values()])) == 2 + len(besides) + len(alone), "no folds"


def test_a_corpus_without_what_is_needed_is_refused(
    config: Config, stores: list[TokenStore], sample_pieces: list[Piece], tmp_path: Path
) -> None:
    one, _, solo = stores
    with pytest.raises(ValueError, match=r"store of solo has no train, valid; give finetune\.corpus a corpus"):
        TaskData(config, [one, solo])
    learned = write_store(tmp_path / "learned", [(name, "train", *rest) for name, _, *rest in sample_pieces[:2]])
    bare = write_store(tmp_path / "bare", [(name, "test", None, tokens) for name, _, _, tokens in sample_pieces[:2]])
    without_test, unlabelled = (TokenStore.open(uri, str(tmp_path / "cache")) for uri in (learned, bare))
    with pytest.raises(ValueError, match=r"the split test, but .* has no test; give study\.tests a corpus"):
        TaskData(config, one, tests=[without_test])
    with pytest.raises(ValueError, match="task emotion needs the labels Q1"):
        TaskData(changed(config, {"finetune.task": "emotion"}), one, tests=[unlabelled])


# ------------------------------------------------------------------------------------ a study


def study(root: Path, **changes: object) -> Config:
    """A study on corpora below a folder: the sample as POP909, and some of its pieces as those with a soloist."""
    own = {"corpora__root": str(root), "study__variants": ("scratch",), "study__tasks": (LINE.name,)}
    return tiny_study(root, **own | {"study__seeds": 1, "finetune__epochs": 1, "tokens__segment": 128} | changes)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    sample = Path(corpus("sample").folder)
    (tmp_path / corpus("pop909").folder).symlink_to(sample)
    (tmp_path / corpus("solo").folder).mkdir()
    for path in sorted(sample.glob("*/*.mid"))[:3]:
        (tmp_path / corpus("solo").folder / path.name).symlink_to(path)
    return tmp_path


def test_trials_are_named_by_their_corpora(root: Path) -> None:
    def keys(**changes: object) -> set[str]:
        made = pipeline.plan(study(root, **changes), study=True).study
        assert made
        return set(made.trials)

    alone = keys(study__corpus="sample")
    assert alone == keys() == keys(finetune__corpus="sample"), "one corpus has the name that it had"
    several = keys(study__corpus="sample,pop909")
    tested = keys(study__corpus="sample", study__tests=("solo",))
    assert len(alone | several | tested | keys(study__corpus="sample", study__tests=("solo", "pop909"))) == 4
    assert len(keys(study__tasks=("melody", LINE.name))) == 2


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"study__corpus": "lieder,lieder"},
            r"study\.corpus=\('lieder', 'lieder'\) is not allowed; use each corpus once",
        ),
        ({"study__tests": ("solo",), "study__draws": 3}, r"study\.tests=\('solo',\) is not allowed; use none with"),
        (
            {"study__corpus": "pop909", "study__folds": 3},
            r"study\.folds=3 is not allowed; use 0, as pop909 has no table",
        ),
        ({"study__corpus": "sample,solo"}, "store of solo has no train, valid"),
        ({"study__tests": ("pop1k7",)}, "pop1k7"),
        ({"study__tests": ("soli",)}, "did you mean 'solo'"),
    ],
)
def test_what_cannot_be_learned_or_tested_is_refused_before_all_work(root: Path, changes: Any, problem: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=problem):
        pipeline.plan(study(root, **changes), study=True)


def test_two_divisions_of_the_same_files_are_refused(root: Path) -> None:
    for name in ("lieder", "lieder_composers"):
        for piece in list_pieces(corpus(name), {}, CLEAN):
            path = root / corpus(name).folder / piece.files[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    with pytest.raises(ValueError, match="lieder_composers and lieder divide the same files in two ways"):
        pipeline.plan(study(root, study__corpus="lieder_composers", study__tests=("lieder",)), study=True)


@pytest.mark.ray
def test_a_study_on_two_corpora_tested_on_three(root: Path, ray_cluster: Any) -> None:
    config = study(root, study__corpus="sample,pop909", study__tests=("sample", "pop909", "solo"))
    plan = pipeline.plan(config, study=True)
    pipeline.tokenize(plan)
    result = pipeline.study(plan)
    assert not result.failed
    (outcome,) = result.outcomes
    own, *besides = outcome.columns
    assert [item.task for item in besides] == ["line on sample", "line on pop909", "line on solo"]
    first, second, _ = besides
    assert own.pieces == {
        f"{name}/{piece}": row
        for name, item in (("sample", first), ("pop909", second))
        for piece, row in item.pieces.items()
    }
    assert first.pieces == second.pieces, "the same music by two names"
    assert own.accuracy == first.accuracy == second.accuracy
    found = load(config, result.key)
    (made,) = found.tables
    assert made.tasks == ("line", "line on sample", "line on pop909", "line on solo")
    for name in (MAJORITY, TRAINING, PLAIN):
        assert all(made.trivial("clean", task, name) for task in made.tasks), name
    rows = melody_or_not(found.outcomes, found.baselines, found.tables)
    for name in (SKYLINE, TOP_NOTE, PLAIN, "scratch"):
        assert [item.task for item in rows if item.name == name] == [*made.tasks]
    assert len({sum(item.counts) for item in rows if item.task == "line on solo"}) == 1, "the same notes"
    run = next(iter(found.children.values()))
    assert run.data.metrics["test/solo/accuracy"] == besides[2].accuracy
    assert found.tracker.artifact(run.info.run_id, "predictions-solo.parquet")
    assert pipeline.plan(config, study=True).open_trials == []
    page = render(found)
    assert "line on solo" in page and "skyline" in page
