"""A folder of MIDI and labels of one's own, from the files to the table of results."""

import csv
import json
import signal
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midibert_ray import pipeline, storage, tracking
from midibert_ray.cli import dry_run
from midibert_ray.corpora.catalogue import CORPORA
from midibert_ray.corpora.labels import list_pieces
from midibert_ray.corpora.table import LabelError
from midibert_ray.data.format import LABELS
from midibert_ray.data.store import TokenStore, open_store
from midibert_ray.music.protocol import PROTOCOLS
from midibert_ray.music.tasks import note_labels
from midibert_ray.report import table
from midibert_ray.report.baselines import GROUP, MEAN, PLAIN, SKYLINE, baselines
from midibert_ray.settings.config import Config, ConfigError
from midibert_ray.settings.overrides import replace as changed
from midibert_ray.studies.plan import TrialSpec
from midibert_ray.studies.trials import grid
from midibert_ray.tokenizing import tokenize
from midibert_ray.training.task_data import TaskData
from tests.jobs.head import Cluster
from tests.jobs.test_pipeline import command, run
from tests.labelled import tune, write_folder, write_midi
from tests.s3 import S3
from tests.stores import make_here
from tests.tiny import tiny_study

PIECES = [f"{register}/{number:02}.mid" for register in ("high", "low") for number in range(12)]
HEAD = ("file_name", "genre", "year", "mood", "group")
ROWS = [
    (name, name.split("/")[0], 1900 + number, "calm;sad" if number % 3 else "sad", f"g{number // 2}")
    for number, name in enumerate(PIECES)
]


def write_table(folder: Path, head: Sequence[str] = HEAD, rows: Iterable[Sequence[Any]] = ROWS) -> None:
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])


@pytest.fixture
def music(tmp_path: Path) -> Path:
    write_folder(tmp_path / "my music", PIECES)
    return tmp_path / "my music"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenize without Ray."""
    monkeypatch.setattr(tokenize, "_stream", make_here)


def settings(music: Path, **changes: Any) -> Config:
    corpus = f"folder:{music}"
    own = {"corpora__names": (corpus,), "study__corpus": corpus, "study__tasks": ("genre",), "tokens__segment": 32}
    few = {"study__variants": ("scratch",), "compute__max_concurrent_trials": 1}
    return tiny_study(music.parent, **own | few | changes)


def made(config: Config) -> list[tuple[TrialSpec, TokenStore]]:
    """The trials of a study, and the stores with labels that they read."""
    plan = pipeline.plan(config, study=True)
    pipeline.tokenize(plan)
    assert plan.study
    return [(spec, open_store(spec.stores[0], config.storage)) for spec in plan.study.trials.values()]


def divided(store: TokenStore) -> dict[str, str]:
    return {store.piece_id(piece): store.split(piece) for piece in range(len(store))}


def sides(store: TokenStore) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for piece in range(len(store)):
        found.setdefault(store.cluster(piece), set()).add(store.split(piece))
    return found


@pytest.mark.ray
def test_every_piece_is_tested_once_in_folds_of_whole_groups(music: Path, ray_cluster: Any) -> None:
    write_table(music)
    config = settings(music, study__folds=3, study__tasks=("genre", "year", "mood"))
    plan = pipeline.plan(config, study=True)
    pipeline.tokenize(plan)
    result = pipeline.study(plan)
    assert not result.failed
    assert len(result.outcomes) == 9
    (found,) = table.build(result.outcomes, {})
    for task in ("genre", "year", "mood"):
        tested = [set(item.pieces) for item in result.outcomes if item.task == task]
        assert sum(map(len, tested)) == 24
        assert set.union(*tested) == set(PIECES)
        score = found.cells[table.Key("clean", task, "scratch")].score
        assert score and len(score.tally) == 24 and len(set(score.clusters.values())) == 12
    assert pipeline.plan(config, study=True).open_trials == []
    page = pipeline.outcome(config, result)
    assert "genre" in page and "year" in page and "mood" in page


@pytest.mark.ray
def test_a_sweep_chooses_settings_for_own_labels_by_validation(music: Path, ray_cluster: Any) -> None:
    write_table(music)
    config = settings(music, study__name="sweep", study__draws=2, study__tasks=("mood",), finetune__epochs=2)
    plan = pipeline.plan(config, study=True)
    pipeline.tokenize(plan)
    result = pipeline.study(plan)
    assert not result.failed and len(result.outcomes) + len(result.stopped) == 2
    assert plan.study
    store = open_store(next(iter(plan.study.trials.values())).stores[0], config.storage)
    valid = {piece for piece, split in divided(store).items() if split == "valid"}
    assert valid and all(set(item.pieces) == valid and "test/accuracy" not in item.metrics for item in result.outcomes)
    said = pipeline.outcome(config, result)
    assert "validation mean average precision in %" in said and "Best for mood, for another study: `finetune." in said


@pytest.mark.ray
def test_a_study_of_folds_that_is_killed_goes_on_where_it_stopped_on_a_cluster(
    music: Path, head: Cluster, no_ray: None
) -> None:
    write_table(music)
    config = settings(music, study__folds=3, study__tasks=("genre", "year"), finetune__epochs=3)

    def outcomes() -> dict[str, int]:
        found = (music.parent / "root").glob("studies/*/*/checkpoint_*/outcome.json")
        return {path.parts[-3]: path.stat().st_mtime_ns for path in found}

    code, said = run(config, job="study", kill_when=lambda: len(outcomes()) >= 2)
    before = outcomes()
    assert code == -signal.SIGKILL and 2 <= len(before) < 6, said
    code, output, said = head.submit(*command("study", config)[1:])
    assert code == 0 and "goes on where it stopped" in output, output + said
    after = outcomes()
    assert len(after) == 6 and {name: after[name] for name in before} == before, "a finished trial was run again"
    assert "explained variance (R²) of year" in output and PLAIN in output
    assert sum(line.startswith(("scratch", PLAIN)) for line in output.splitlines()) == 2
    genre = next((music.parent / "root").glob("studies/*/genre-*/checkpoint_*/outcome.json"))
    assert json.loads(genre.read_text())["classes"] == ["high", "low"]
    tracker = tracking.Tracker(tracking.uris(config))
    experiment = tracking.study_experiment(config.study.name)
    (parent,) = tracker.parents(experiment)
    children = tracker.children(experiment, parent.info.run_id)
    assert [child.info.status for child in (parent, *children)] == ["FINISHED"] * 7
    for child in children:
        assert [step for step, _ in tracker.curve(child.info.run_id, "train/loss")] == [1, 2, 3]


def test_groups_stay_whole_and_labels_get_their_share(music: Path, here: None) -> None:
    write_table(music)
    ((spec, store),) = made(settings(music))
    assert spec.task.classes == ("high", "low")
    splits = divided(store)
    assert Counter((piece.split("/")[0], split) for piece, split in splits.items()) == {
        **{(register, "train"): 8 for register in ("high", "low")},
        **{(register, split): 2 for register in ("high", "low") for split in ("valid", "test")},
    }
    assert all(len(found) == 1 for found in sides(store).values())
    data = TaskData(settings(music, finetune__task="genre", finetune__corpus="emopia"), store, spec.task)
    assert {data.splits["test"].label(piece, "label.genre") for piece in range(data.splits["test"].pieces)} == {
        "high",
        "low",
    }


@pytest.mark.slow
def test_music_and_labels_in_a_bucket_are_divided_as_on_a_disk(music: Path, s3: S3, here: None) -> None:
    write_table(music)
    place = s3.address(f"{s3.bucket()}/my music")
    for path in (path for path in music.rglob("*") if path.is_file()):
        storage.write_bytes(storage.join(place, path.relative_to(music).as_posix()), path.read_bytes())
    root = s3.address(f"{s3.bucket()}/out")
    own = {"corpora__names": (f"folder:{place}",), "study__corpus": f"folder:{place}", "storage__root": root}
    (spec, far), (_, years) = made(settings(music, study__tasks=("genre", "year"), **own))
    ((_, near),) = made(settings(music))
    assert spec.stores[0].startswith("s3://") and storage.exists(spec.stores[0])
    assert divided(far) == divided(near) and far.manifest[LABELS]["divided_by"] == "groups"
    assert [far.label(row, "label.genre") for row in range(24)] == [near.label(row, "label.genre") for row in range(24)]
    assert float(years.label(0, "label.year")) == 1900
    assert np.array_equal(far.tokens, near.tokens)


def test_a_changed_label_makes_new_labels_and_no_new_tokens(music: Path, here: None) -> None:
    write_table(music)
    ((first, _),) = made(settings(music))
    write_table(music, rows=[(PIECES[0], "low", *ROWS[0][2:]), *ROWS[1:]])
    plan = pipeline.plan(settings(music), study=True)
    ((second, store),) = made(settings(music))
    assert [found.found for found in pipeline.tokenize(plan)] == [True]
    assert Path(first.stores[0]).parent == Path(second.stores[0]).parent
    assert first.stores != second.stores
    assert first.key != second.key
    assert store.label(0, "label.genre") == "low"


def test_near_duplicates_stay_on_one_side(music: Path, here: None) -> None:
    for number in range(12):  # the high pieces again, a tone lower and without their beginning
        (music / f"low/{number:02}.mid").unlink()
        notes = [(onset - 40, length, pitch - 2) for onset, length, pitch in tune(number, 150, 60) if onset >= 40]
        write_midi(music / f"high/{number:02}.mid", tune(number, 150, 60))
        write_midi(music / f"low/{number:02}.mid", notes)
    ((_, store),) = made(settings(music, study__tasks=("label",)))
    assert store.manifest[LABELS]["divided_by"] == "near-duplicates"
    assert len(sides(store)) == 12
    assert all(len(found) == 1 for found in sides(store).values())
    assert store.manifest[LABELS]["crossing"] == {"group": [], "twin": []}


def test_given_splits_are_kept_and_what_crosses_them_is_named_and_measured(music: Path, here: None) -> None:
    splits = ("train", "test", "validation", "train")
    write_table(
        music,
        (*HEAD, "split"),
        [(*row, splits[at % 4]) for at, row in enumerate(ROWS)],
    )
    config = settings(music, study__tasks=("genre", "year", "mood"))
    (spec, store), (year, _), (mood, _) = made(config)
    assert Counter(divided(store).values()) == {"train": 12, "test": 6, "valid": 6}
    assert store.manifest[LABELS]["crossing"]["group"] == sorted(f"g{number}" for number in range(12))
    found = {item.name: item for item in baselines(spec.config, store, spec.task)}
    assert (found[GROUP].correct, found[GROUP].scored) == (6, 6)
    numbers = {item.name: item for item in baselines(year.config, store, year.task)}
    assert numbers[GROUP].metrics["mae"] == pytest.approx(1), "the other piece of a group is a year older"
    assert "where 6 of 6 pieces have it" in numbers[GROUP].note
    assert numbers[GROUP].accuracy > 0.9 > numbers[MEAN].accuracy
    tags = {item.name: item for item in baselines(mood.config, store, mood.task)}
    for row in store.select({"test"}).tolist():
        other = PIECES.index(store.piece_id(row)) - 1
        calm, sad = tags[GROUP].pieces[store.piece_id(row)][2:]
        assert (round(calm), round(sad)) == (int("calm" in ROWS[other][3]), 1)
    text = dry_run.describe_plan(pipeline.plan(config, study=True), estimates=False)
    assert "12 groups stand in train and beside it, which flatters: g0, g1, g10 and 9 more" in text


def test_the_dry_run_shows_what_was_understood(music: Path) -> None:
    rows = [*ROWS[:-2], (*ROWS[-2][:1], "", *ROWS[-2][2:]), ("gone.mid", "high", 1900, "sad", "g1")]
    write_table(music, rows=rows)
    (music / "low/copy.mid").write_bytes((music / "low/00.mid").read_bytes())
    config = settings(music, study__tasks=("genre", "year", "mood"), study__folds=4)
    text = dry_run.describe_plan(pipeline.plan(config, study=True), estimates=False)
    for line in (
        "metadata.csv, 23 pieces; 2 files are in no row: low/11.mid, low/copy.mid",
        "1 rows name no file below the folder: gone.mid",
        "genre: 2 classes: high 12, low 10",
        "genre: 1 empty labels take no part, the first in row 24 of metadata.csv",
        "genre: the smallest class is low, 10 pieces in 5 groups: at most 5 folds can test it",
        "year: 23 numbers, 1900 to 1922, the middle one 1911",
        "mood: 2 tags: calm 15, sad 23",
        "12 groups of 1 to 2 pieces; 0 pieces have none",
        "1 files hold the same bytes as others and do not count: low/copy.mid as low/00.mid",
        "divided by groups, fold 1 of 4: train ",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"study__tasks": ("gerne",)}, r"study\.tasks='gerne' is not allowed.*did you mean 'genre'"),
        ({"study__tasks": ("notes",)}, r"the task notes needs the names of its classes: corpora\.notes=left,right"),
        ({"study__folds": 20}, r"12 groups \(or files\) cannot be divided into 20 parts; .* or set study\.folds=12"),
        (
            {"study__tasks": ("rare",)},
            r"rare='b' has one group alone \('g11'\), which cannot be both learned and tested",
        ),
    ],
)
def test_a_study_that_cannot_be_made_says_why_before_it_starts(
    music: Path, here: None, changes: dict[str, Any], problem: str
) -> None:
    rare = ["ab"[at >= 22] for at in range(24)]
    write_table(music, (*HEAD, "rare"), [(*row, label) for row, label in zip(ROWS, rare, strict=True)])
    with pytest.raises((LabelError, ConfigError), match=problem):
        pipeline.tokenize(pipeline.plan(settings(music, **changes), study=True))


def test_a_probe_is_among_the_rows_that_stand_where_none_are_asked_for(music: Path) -> None:
    write_table(music)
    standard = Config().study.variants
    study = pipeline.plan(settings(music, study__variants=standard), study=True).study
    assert study and [spec.trial.variant for spec in study.trials.values()] == [*standard, "probe"]
    assert "probe" not in {trial.variant for trial in grid(Config())}


def test_a_folder_without_labels_says_how_to_give_them(tmp_path: Path) -> None:
    write_folder(tmp_path / "music", ["a.mid", "b.mid"])
    with pytest.raises(LabelError, match=r"has no labels of its own.*metadata\.csv or .*make a folder for each class"):
        pipeline.plan(settings(tmp_path / "music"), study=True)
    write_table(tmp_path / "music", ("file_name", "split", "genre"), [("a.mid", "train", "x"), ("b.mid", "train", "y")])
    config = settings(tmp_path / "music")
    with pytest.raises(LabelError, match=r"no piece has split=test; give some, or leave the column split out"):
        dry_run.describe_plan(pipeline.plan(config, study=True), estimates=False)


def test_notes_are_labelled_by_tracks_and_by_tables(tmp_path: Path, here: None) -> None:
    folder = tmp_path / "music"
    for number in range(10):
        high, low = tune(number, 40, 70), tune(100 + number, 40, 30)
        if number % 2:
            write_midi(folder / f"{number}.mid", {"Melody": high, "left hand": low})
            continue
        write_midi(folder / f"{number}.mid", [*high, *low])
        named = [("Melody", note) for note in high] + [("left hand", note) for note in low[1:]] + [("odd", low[0])]
        rows = [(onset * 120 if number % 4 else onset * 0.125, pitch, name) for name, (onset, _, pitch) in named]
        with (folder / f"{number}.notes.csv").open("w", newline="") as file:
            csv.writer(file).writerows(
                [("onset", "pitch", "label"), *rows, (99999 if number % 4 else 999.5, 60, "odd")]
            )
    config = settings(folder, study__tasks=("notes",), corpora__notes=("Melody", "left hand"))
    ((spec, store),) = made(config)
    assert (spec.task.level, spec.task.classes, spec.task.melody) == ("note", ("Melody", "left hand"), "Melody")
    labels, high = note_labels(spec.task, store), store.tokens[:, 2] + 22 >= 60
    assert (labels[high] == 1).all()
    assert Counter(labels[~high].tolist()) == {2: 395, 0: 5}
    remarks = store.manifest["remarks"]
    assert remarks["rows of the table of notes that are no note"] == 5
    assert remarks["labels of notes that corpora.notes does not name"] == 5
    assert Counter(divided(store).values()) == {"train": 8, "valid": 1, "test": 1}
    data = TaskData(spec.config, store, spec.task)
    assert set(np.unique(data.labels("test", np.arange(1)))) <= {-100, 0, 1}
    assert SKYLINE in {item.name for item in baselines(spec.config, store, spec.task)}


@pytest.mark.corpora
def test_emopia_with_a_table_is_the_task_of_emotion(tmp_path: Path, corpora_root: Path, here: None) -> None:
    """The same labels, splits and segments come to the same batches."""
    corpus = CORPORA["emopia"]
    (tmp_path / corpus.folder).parent.mkdir(parents=True)
    (tmp_path / corpus.folder).mkdir()
    listed = list_pieces(corpus, {}, PROTOCOLS["clean"])
    for piece in listed:
        (tmp_path / corpus.folder / piece.files[0]).symlink_to(corpora_root / corpus.folder / piece.files[0])
    own = {"corpora__names": ("emopia",), "study__corpus": "emopia", "study__tasks": ("emotion",)}
    config = settings(tmp_path / "x", **own, corpora__root=str(tmp_path), study__variants=("scratch",))
    ((paper, bare),) = made(config)
    write_table(
        tmp_path / corpus.folder, ("file_name", "emotion", "split"), [(p.files[0], p.label, p.split) for p in listed]
    )
    ((spec, store),) = made(config)
    assert spec.stores != paper.stores
    assert replace(spec.task, column="label") == paper.task
    first, second = TaskData(paper.config, bare, paper.task), TaskData(spec.config, store, spec.task)
    for split in ("train", "valid", "test"):
        assert len(first.splits[split]) == len(second.splits[split])
        rows = np.arange(len(first.splits[split]))
        (one, raw), (other, same) = (data.batch(split, rows, "cpu") for data in (first, second))
        assert one.tokens.equal(other.tokens) and one.targets.equal(other.targets)
        assert np.array_equal(raw.piece, same.piece)


def test_a_pretraining_on_the_same_folder_leaves_out_what_is_tested(music: Path, here: None) -> None:
    write_table(music)
    config = settings(music, study__folds=3, study__tasks=("genre", "year"), study__variants=("pretrained",))
    study = pipeline.plan(config, study=True).study
    assert study
    assert (len(study.trials), len(study.pretrainings)) == (6, 3)
    assert {spec.stores for spec in study.pretrainings.values()} == {spec.stores for spec in study.trials.values()}
    shared = pipeline.plan(changed(config, {"protocol.pretrains_on_test": True}), study=True).study
    assert shared
    assert (len(shared.trials), len(shared.pretrainings)) == (6, 1)
