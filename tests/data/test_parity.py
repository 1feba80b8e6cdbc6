"""From the publishers' files through Ray Data, the token store and `Segments` to the authors' published arrays."""

from pathlib import Path

import numpy as np
import pytest

from midibert_ray.data.store import Segments, TokenStore
from midibert_ray.music.tasks import TASKS, note_labels, sequence_label
from midibert_ray.tokenizing.tokenize import tokenize_corpora

GOLDEN = {"pop909": "pop909_valid", "pianist8": "pianist8_valid", "emopia": "emopia_valid", "asap": "asap"}
TASK = {"pianist8": "composer", "emopia": "emotion"}


@pytest.fixture(scope="module")
def stores(corpora_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenStore]:
    import ray

    if not ray.is_initialized():
        ray.init("local", num_cpus=4, log_to_driver=False)
    folder = tmp_path_factory.mktemp("paper")
    summaries = tokenize_corpora(
        list(GOLDEN), corpora_root=str(corpora_root), storage_root=str(folder), protocol="paper", segment=512
    )
    return {
        summary.manifest["corpus"]: TokenStore.open(summary.address, str(folder / "cache")) for summary in summaries
    }


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
        piece_order=order,
    )
    batch = segments.gather(np.arange(len(segments)))
    assert np.array_equal(batch.tokens, golden["tokens"])
    assert np.array_equal(batch.piece, golden["row_piece"])
    if task:
        labels = [sequence_label(task, segments.label(int(piece)) or "") for piece in batch.piece]
        assert np.array_equal(labels, golden["label"])
    if name == "pop909":
        for note_task in ("melody", "velocity"):
            labels = np.where(batch.note >= 0, note_labels(TASKS[note_task], batch), 0)
            assert np.array_equal(labels, golden[note_task])
