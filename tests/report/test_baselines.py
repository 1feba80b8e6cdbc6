"""Trivial baselines: on made and sample stores, and exactly as published on the real test splits."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from midibert_ray.data.store import TokenStore
from midibert_ray.music.protocol import PROTOCOLS
from midibert_ray.music.tokens import Tokens
from midibert_ray.report.baselines import MAJORITY, NO_MELODY, SKYLINE, SONG, TOP_NOTE, TRAINING, Baseline, baselines
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from tests.stores import Piece, read_corpus, sample, write_store

ORDERS = ("", "track", "pitch")


def settings(task: str, protocol: str = "paper", **changes: str) -> Config:
    return replace(Config(), {"finetune.task": task, "tokens.protocol": protocol, **changes})


def by_name(config: Config, store: TokenStore) -> dict[str, Baseline]:
    return {item.name: item for item in baselines(config, store)}


def opened(folder: Path, pieces: list[Piece], corpus: str, protocol: str = "paper") -> TokenStore:
    uri = write_store(folder / f"{corpus}-{protocol}", pieces, corpus, in_shard=100, protocol=protocol)
    return TokenStore.open(uri, str(folder / "cache"))


@pytest.fixture(scope="module")
def paper_sample(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return opened(tmp_path_factory.mktemp("sample"), sample("paper"), "sample")


def notes(n: int) -> Tokens:
    """A piece of n notes, one bar each."""
    return Tokens(
        tokens=np.tile(np.array([0, 0, 40, 3], np.uint8), (n, 1)),
        onset=np.arange(0, 16 * n, 16, dtype=np.int32),
        velocity=np.full(n, 64, np.uint8),
        part=np.zeros(n, np.uint8),
    )


# ------------------------------------------------------------------------------------ majority class


@pytest.mark.parametrize("representation", ["cp", "remi"])
def test_notes_are_scored_once_in_either_representation(paper_sample: TokenStore, representation: str) -> None:
    tested = [np.arange(*paper_sample.offsets[i : i + 2]) for i in paper_sample.select({"test"})]
    parts = np.bincount(paper_sample.part[np.concatenate(tested)], minlength=4).tolist()
    config = settings("melody", **{"model.representation": representation})
    found = by_name(config, paper_sample)[MAJORITY]
    assert list(found.detail.values()) == parts[1:]
    assert (found.correct, found.scored) == (max(parts), sum(parts))
    assert found.note == "always accompaniment, the most frequent class of the test split"


@pytest.mark.parametrize(
    ("protocol", "segments"), [("paper", {"Bethel": 2, "Yiruma": 1}), ("clean", {"Bethel": 2, "Yiruma": 3})]
)
def test_only_papers_composer_drops_short_segments(tmp_path: Path, protocol: str, segments: dict[str, int]) -> None:
    pieces = [
        ("Bethel/1.mid", "test", "Bethel", notes(512 + 256)),
        ("Yiruma/1.mid", "test", "Yiruma", notes(512 + 255)),
        ("Yiruma/2.mid", "test", "Yiruma", notes(255)),
        ("Hancock/1.mid", "train", "Hancock", notes(5000)),
    ]
    found, usual = baselines(settings("composer", protocol), opened(tmp_path, pieces, "pianist8", protocol))
    assert {name: count for name, count in found.detail.items() if count} == segments
    assert (found.correct, found.scored) == (max(segments.values()), sum(segments.values()))
    assert (usual.name, usual.correct, usual.scored) == (TRAINING, 0, found.scored), "no test piece is Hancock's"
    assert usual.note == "always Hancock, the most frequent class of the training split"


def test_a_store_without_test_pieces_is_refused(tmp_path: Path) -> None:
    store = opened(tmp_path, [("x.mid", "pretrain", None, notes(9))], "folder")
    with pytest.raises(ValueError, match="is left of splits"):
        baselines(settings("melody"), store)


# ------------------------------------------------------------------------------------ skyline


def test_skyline_tells_melody_from_the_rest(paper_sample: TokenStore) -> None:
    found = by_name(settings("melody"), paper_sample)
    assert list(found) == [MAJORITY, TRAINING, SKYLINE, TOP_NOTE, NO_MELODY]
    counts, trivial = found[SKYLINE].detail, found[NO_MELODY]
    assert found[SKYLINE].correct == counts["TP"] + counts["TN"]
    assert counts["TP"] + counts["FN"] == found[MAJORITY].detail["melody"] == trivial.detail["FN"]
    assert {item.scored for item in found.values()} == {sum(counts.values())}
    assert trivial.correct == trivial.detail["TN"] == counts["FP"] + counts["TN"]


def test_the_order_of_notes_is_that_of_the_store(tmp_path: Path) -> None:
    """Of equal notes skyline takes the first, which by track is the melody's."""
    found = {
        (protocol, order): by_name(
            settings("melody", protocol), opened(tmp_path / f"by-{order}", sample(protocol, order), "sample", protocol)
        )[SKYLINE].detail
        for protocol in PROTOCOLS
        for order in ORDERS
    }
    assert found["paper", ""] == found["paper", "track"] == found["clean", "track"]
    assert found["clean", ""] == found["clean", "pitch"] == found["paper", "pitch"]
    assert found["paper", "track"]["TP"] > found["clean", "pitch"]["TP"]


# ------------------------------------------------------------------------------------ label of the song


def test_clips_take_the_label_of_their_song(tmp_path: Path) -> None:
    clips = {
        "train": ["Q1_a_0", "Q2_a_1", "Q2_a_2", "Q4__b_-c_0", "Q3__b_-c_3"],
        "valid": ["Q1_unheard_0"],
        "test": ["Q2_a_3", "Q1_a_4", "Q3__b_-c_1", "Q4__b_-c_2", "Q1_unheard_1"],
    }
    pieces = [
        (f"{clip}.mid", split, clip[:2], notes(600 if clip == "Q2_a_3" else 100))
        for split in clips
        for clip in clips[split]
    ]
    found = by_name(settings("emotion"), opened(tmp_path, pieces, "emopia"))
    assert list(found) == [MAJORITY, TRAINING, SONG]
    assert (found[SONG].correct, found[SONG].scored) == (2, 5)  # Q2 of song a; at the tie of _b_-c Q3 is first
    assert found[SONG].detail == {"known": 4, "segments": 6, "segments correct": 3}
    assert "4 of 5 clips have their song there" in found[SONG].note


def test_baselines_survive_json() -> None:
    item = Baseline(protocol="paper", task="melody", name=SKYLINE, correct=1, scored=2, detail={"TP": 1}, note="–")
    assert Baseline.from_json(item.to_json()) == item
    assert {field.name for field in dataclasses.fields(Baseline)} == set(vars(item))


# ------------------------------------------------------------------------------------ the real test splits


PUBLISHED = {
    "melody": {
        MAJORITY: (90_750, 142_577),
        SKYLINE: (112_003, 142_577),
        TOP_NOTE: (113_405, 142_577),
        NO_MELODY: (113_284, 142_577),
    },
    "velocity": {MAJORITY: (54_704, 142_577)},
    "composer": {MAJORITY: (28, 126)},
    "emotion": {MAJORITY: (31, 109), SONG: (79, 107)},
}
"""63.65, 78.556, 79.455; 38.37; 22.2; 28.4 and 73.8 %.

Skyline scores 78.548 % on the MIDI files, as in the paper (TP 17,351, FP 18,644, FN 11,942, TN 94,640). Tokens of
protocol paper have lost where a piece's last onset was, up to one sub-beat: one melody note less is found, and 13
others less are taken for one.
"""


@pytest.fixture(scope="module")
def real(corpora_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], TokenStore]:
    folder = tmp_path_factory.mktemp("real")
    return {
        (name, protocol): opened(folder, read_corpus(name, protocol, corpora_root), name, protocol)
        for name in ("pop909", "pianist8", "emopia")
        for protocol in PROTOCOLS
    }


CORPUS = {"melody": "pop909", "velocity": "pop909", "composer": "pianist8", "emotion": "emopia"}


@pytest.mark.corpora
@pytest.mark.parametrize("task", PUBLISHED)
def test_the_authors_results(real: dict[tuple[str, str], TokenStore], task: str) -> None:
    found = by_name(settings(task), real[CORPUS[task], "paper"])
    known = {name: (item.correct, item.scored) for name, item in found.items() if name != TRAINING}
    assert known == PUBLISHED[task]
    if task == "melody":
        assert found[SKYLINE].detail == {"TP": 17_350, "FP": 18_631, "FN": 11_943, "TN": 94_653}
        assert found[TOP_NOTE].detail == {"TP": 20_513, "FP": 20_392, "FN": 8_780, "TN": 92_892}  # F1 0.584


@pytest.mark.corpora
def test_no_song_is_known_where_the_split_is_by_song(real: dict[tuple[str, str], TokenStore]) -> None:
    found = by_name(settings("emotion", "clean"), real["emopia", "clean"])[SONG]
    assert (found.correct, found.scored, found.detail["known"]) == (0, 107, 0)
