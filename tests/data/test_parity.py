"""From the publishers' files through Ray Data, the token store and `Segments` to the authors' published arrays."""

from pathlib import Path

import numpy as np
import pytest

from midibert_ray.data.segments import Segments
from midibert_ray.data.store import TokenStore
from midibert_ray.music.protocol import PAPER
from midibert_ray.music.tasks import TASKS, note_labels, sequence_label
from midibert_ray.tokenizing.tokenize import Summary, tokenize_corpora
from tests.conftest import start_ray
from tests.tokenizing.test_digests import LABELLED

GOLDEN = {"pop909": "pop909_valid", "pianist8": "pianist8_valid", "emopia": "emopia_valid", "asap": "asap"}
TASK = {"pianist8": "composer", "emopia": "emotion"}


@pytest.fixture(scope="module")
def summaries(corpora_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Summary]:
    start_ray()
    root = str(tmp_path_factory.mktemp("paper"))
    return tokenize_corpora(
        list(GOLDEN), corpora_root=str(corpora_root), storage_root=root, protocol=PAPER, segment=512
    )


@pytest.fixture(scope="module")
def stores(summaries: list[Summary], tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenStore]:
    cache = str(tmp_path_factory.mktemp("cache"))
    return {summary.manifest["corpus"]: TokenStore.open(summary.uri, cache) for summary in summaries}


@pytest.mark.ray
@pytest.mark.corpora
def test_the_tokens_are_those_that_they_were(summaries: list[Summary]) -> None:
    digests = {summary.manifest["corpus"]: summary.manifest["digest"] for summary in summaries}
    assert digests == {name: LABELLED["paper"][name] for name in GOLDEN}


@pytest.mark.ray
@pytest.mark.corpora
@pytest.mark.parametrize("representation", ["cp", "remi"])
@pytest.mark.parametrize("name", GOLDEN)
def test_segments_are_the_published_rows(
    stores: dict[str, TokenStore], corpora_root: Path, name: str, representation: str
) -> None:
    golden = np.load(corpora_root / "golden" / f"{GOLDEN[name]}_{representation}.npz")
    order = [piece.split("/")[0] if name == "pop909" else str(piece) for piece in golden["pieces"]]
    task = TASKS[TASK[name]] if name in TASK else None
    segments = Segments(
        [stores[name]],
        representation=representation,
        drop_short_last=task is not None and task.drops_short_rows,
        keep=lambda corpus, piece: piece in order,
    )
    piece, _ = segments.locate(np.arange(len(segments)))
    rank = np.array([order.index(segments.piece_id(number)) for number in range(segments.pieces)])
    batch = segments.gather(np.argsort(rank[piece], kind="stable"))
    assert np.array_equal(batch.tokens, golden["tokens"])
    assert np.array_equal(rank[batch.piece], golden["row_piece"])
    if task:
        labels = [sequence_label(task, segments.label(int(piece)) or "") for piece in batch.piece]
        assert np.array_equal(labels, golden["label"])
    if name == "pop909":
        for note_task in ("melody", "velocity"):
            labels = np.where(batch.note >= 0, note_labels(TASKS[note_task], batch), 0)
            assert np.array_equal(labels, golden[note_task])


def segments_of(store: TokenStore, split: str, name: str, representation: str = "cp") -> Segments:
    return Segments([store], splits={split}, representation=representation, drop_short_last=name == "pianist8")


@pytest.mark.ray
@pytest.mark.corpora
@pytest.mark.parametrize(
    ("name", "representation", "counts"),
    [
        ("pop909", "cp", {"train": 2577, "valid": 317, "test": 320}),
        ("pop909", "remi", {"valid": 885, "test": 897}),
        ("pianist8", "cp", {"train": 1186, "valid": 156, "test": 126}),
        ("emopia", "cp", {"train": 924, "valid": 114, "test": 109}),
        ("asap", "cp", {"pretrain": 317}),
    ],
)
def test_splits_have_as_many_rows_as_the_authors(
    stores: dict[str, TokenStore], name: str, representation: str, counts: dict[str, int]
) -> None:
    found = {split: len(segments_of(stores[name], split, name, representation)) for split in counts}
    assert found == counts


CLASS_ROWS = {
    "composer": {
        "train": [134, 136, 124, 280, 142, 129, 150, 91],
        "valid": [16, 12, 15, 55, 21, 11, 16, 10],
        "test": [17, 11, 18, 28, 20, 9, 14, 9],
    },
    "emotion": {"train": [210, 255, 208, 251], "valid": [26, 32, 25, 31], "test": [26, 27, 25, 31]},
}


@pytest.mark.ray
@pytest.mark.corpora
@pytest.mark.parametrize("name", TASK)
def test_classes_have_as_many_rows_as_the_authors(stores: dict[str, TokenStore], name: str) -> None:
    task = TASKS[TASK[name]]
    for split, counts in CLASS_ROWS[task.name].items():
        segments = segments_of(stores[name], split, name)
        pieces, _ = segments.locate(np.arange(len(segments)))
        labels = [sequence_label(task, segments.label(int(piece)) or "") for piece in pieces]
        assert np.bincount(labels, minlength=len(task.classes)).tolist() == counts


@pytest.mark.ray
@pytest.mark.corpora
def test_notes_per_class(stores: dict[str, TokenStore]) -> None:
    segments = Segments([stores["pop909"]])
    batch = segments.gather(np.arange(len(segments)))
    real = batch.note >= 0
    melody, velocity = (np.bincount(note_labels(TASKS[name], batch)[real]) for name in ("melody", "velocity"))
    assert melody.tolist() == [0, 288206, 230643, 905667]
    assert velocity.tolist() == [0, 3765, 23628, 100365, 349603, 586413, 360742]


@pytest.mark.ray
@pytest.mark.corpora
@pytest.mark.parametrize(
    ("name", "notes", "bars", "distinct_pitches", "duration_index"),
    [("pop909", 1_424_516, 82_057, 62.88, 6.117), ("asap", 144_198, 6_232, 63.11, 2.914)],
)
def test_table_one(
    stores: dict[str, TokenStore], name: str, notes: int, bars: int, distinct_pitches: float, duration_index: float
) -> None:
    """The paper's Table I. "Pitch" and "duration" are means over all notes, the duration that of the 0-based
    index."""
    segments = Segments([stores[name]])
    batch = segments.gather(np.arange(len(segments)))
    table = batch.tokens[batch.note >= 0]
    assert len(table) == notes
    assert int((table[:, 0] == 0).sum()) == bars
    assert table[:, 2].mean() + 22 == pytest.approx(distinct_pitches, abs=0.005)
    assert table[:, 3].mean() == pytest.approx(duration_index, abs=0.0005)
