"""Token stores and their segments: what was written comes back, cut as the authors cut it."""

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midibert_ray.data.format import COLUMNS, FORMAT_VERSION, MANIFEST, SCHEMA
from midibert_ray.data.order import holdout_piece
from midibert_ray.data.segments import Segments
from midibert_ray.data.store import TokenStore
from midibert_ray.music.tokens import Tokens, remi_from_cp
from midibert_ray.music.vocabulary import CP_PAD, REMI_PAD
from tests.stores import Piece, write_store

QUICK = settings(max_examples=40, deadline=None)


def made_tokens(notes: int, seed: int) -> Tokens:
    random = np.random.default_rng(seed)
    tokens = random.integers(0, (2, 16, 86, 64), (notes, 4)).astype(np.uint8)
    tokens[0, 0] = 0
    return Tokens(
        tokens=tokens,
        onset=np.arange(notes, dtype=np.int32),
        velocity=random.integers(1, 128, notes).astype(np.uint8),
        part=random.integers(0, 4, notes).astype(np.uint8),
    )


def test_a_store_gives_back_what_was_written(sample_store: TokenStore, sample_pieces: list[Piece]) -> None:
    assert len(sample_store) == len(sample_pieces)
    for index, (piece, split, label, tokens) in enumerate(sample_pieces):
        span = slice(sample_store.offsets[index], sample_store.offsets[index + 1])
        assert (sample_store.piece_id(index), sample_store.split(index)) == (piece, split)
        assert sample_store.label(index) == label
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(sample_store, name)[span], getattr(tokens, name))
        assert sample_store.bars[index] == (tokens.tokens[:, 0] == 0).sum()


def test_arrays_are_maps_and_are_never_pickled(sample_store: TokenStore) -> None:
    assert isinstance(sample_store.tokens.base, np.memmap)
    pickled = pickle.dumps(Segments([sample_store]))
    assert len(pickled) < 5_000
    assert len(pickle.loads(pickled)) == len(Segments([sample_store]))


def test_a_folder_without_manifest_is_no_store(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [("a", "train", None, made_tokens(9, 0))])
    (tmp_path / "store" / MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match=r"no token store at .*the job tokenize writes it"):
        TokenStore.open(str(tmp_path / "store"), str(tmp_path / "cache"))


@pytest.mark.parametrize("damage", ["lost", "changed"])
def test_a_damaged_store_is_noticed_and_leaves_no_copy(tmp_path: Path, damage: str) -> None:
    pieces: list[Piece] = [(f"{i:02d}", "train", None, made_tokens(9, i)) for i in range(12)]
    uri = write_store(tmp_path / "store", pieces)
    victim = tmp_path / "store" / "part-00001.parquet"
    if damage == "lost":
        victim.unlink()
    else:
        table = pq.read_table(victim)
        pq.write_table(table.set_column(1, SCHEMA.field("split"), pa.array(["test"] * len(table))), victim)
    problem = {"lost": "part-00001.parquet is missing", "changed": r".* pieces of digest .*"}[damage]
    with pytest.raises(ValueError, match=f"damaged: {problem}; delete it and tokenize again"):
        TokenStore.open(uri, str(tmp_path / "cache"))
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_another_format_is_refused(tmp_path: Path) -> None:
    uri = write_store(tmp_path / "store", [("a", "train", None, made_tokens(9, 0))])
    file = tmp_path / "store" / MANIFEST
    file.write_text(file.read_text().replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 99'))
    with pytest.raises(ValueError, match="has format 99"):
        TokenStore.open(uri, str(tmp_path / "cache"))


def test_many_readers_make_one_copy(tmp_path: Path) -> None:
    pieces: list[Piece] = [(f"{i:02d}", "train", None, made_tokens(2000, i)) for i in range(40)]
    uri = write_store(tmp_path / "store", pieces)
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: TokenStore.open(uri, str(tmp_path / "cache")), range(4)))
    assert [len(store) for store in stores] == [40] * 4
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_a_damaged_copy_is_made_again_while_others_have_it_mapped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pieces: list[Piece] = [(f"{i:02d}", "train", None, made_tokens(9, i)) for i in range(12)]
    uri = write_store(tmp_path / "store", pieces)
    first = TokenStore.open(uri, str(tmp_path / "cache"))
    expected = first.tokens.copy()
    (copy,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    content = (copy / "tokens.npy").read_bytes()
    (copy / "tokens.npy").unlink()
    (copy / "tokens.npy").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    again = pickle.loads(pickle.dumps(first))
    assert "the content of tokens.npy is not what was written" in caplog.text
    np.testing.assert_array_equal(again.tokens, expected)
    np.testing.assert_array_equal(first.tokens, expected)
    del first
    np.testing.assert_array_equal(again.tokens, expected)


def test_a_copy_stays_as_long_as_its_store_is_open(tmp_path: Path) -> None:
    uris = [write_store(tmp_path / f"s{i}", [("a", "train", None, made_tokens(9, i))]) for i in range(3)]
    cache = str(tmp_path / "cache")
    held = pickle.loads(pickle.dumps(TokenStore.open(uris[0], cache, 1e-9)))
    for uri in uris[1:]:
        TokenStore.open(uri, cache, 1e-9)
    left = sorted(path.name[:2] for path in (tmp_path / "cache").iterdir() if path.is_dir())
    assert left == ["s0", "s2"]
    del held
    TokenStore.open(uris[1], cache, 1e-9)
    assert [path.name[:2] for path in (tmp_path / "cache").iterdir() if path.is_dir()] == ["s1"]


# -------------------------------------------------------------------------------------------- the segments


def naive(pieces: list[Piece], length: int, representation: str, drop: bool) -> dict[str, np.ndarray]:
    """All segments, by slicing piece after piece."""
    parts: dict[str, list[np.ndarray]] = {"tokens": [], "velocity": [], "part": []}
    for *_, tokens in pieces:
        if representation == "cp":
            values = {"tokens": tokens.tokens, "velocity": tokens.velocity, "part": tokens.part}
        else:
            remi = remi_from_cp(tokens.tokens)
            values = {"tokens": remi.ids}
            for name in ("velocity", "part"):
                values[name] = np.zeros(len(remi.ids), dtype=np.uint8)
                values[name][remi.pitch_at] = getattr(tokens, name)
        for name, value in values.items():
            pad = {"cp": CP_PAD, "remi": REMI_PAD}[representation] if name == "tokens" else 0
            rest = len(value) % length
            filling = np.broadcast_to(np.asarray(pad, value.dtype), (-len(value) % length, *value.shape[1:]))
            cut = np.concatenate([value, filling]).reshape(-1, length, *value.shape[1:])
            parts[name].append(cut[:-1] if drop and 0 < rest < length / 2 else cut)
    return {name: np.concatenate(values) for name, values in parts.items()}


@pytest.mark.parametrize(("notes", "count"), [(255, 0), (256, 1), (512, 1), (512 + 255, 1), (512 + 256, 2)])
def test_a_short_last_segment_is_less_than_half_full(tmp_path: Path, notes: int, count: int) -> None:
    pieces: list[Piece] = [("a", "train", None, made_tokens(notes, 0)), ("b", "train", None, made_tokens(512, 1))]
    store = TokenStore.open(write_store(tmp_path / "store", pieces), str(tmp_path / "cache"))
    assert len(Segments([store], length=512, drop_short_last=True)) == count + 1
    assert len(Segments([store], length=512)) == -(-notes // 512) + 1


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("length", [512, 100])
@pytest.mark.parametrize("representation", ["cp", "remi"])
def test_gather_equals_naive_slicing(
    sample_store: TokenStore, sample_pieces: list[Piece], representation: str, length: int, drop: bool
) -> None:
    segments = Segments([sample_store], length=length, representation=representation, drop_short_last=drop)
    expected = naive(sample_pieces, length, representation, drop)
    assert len(segments) == len(expected["tokens"])
    indices = np.random.default_rng(0).integers(0, len(segments), 3 * len(segments))
    batch = segments.gather(indices)
    assert batch.tokens.dtype == np.uint8
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(batch, name), values[indices])
    np.testing.assert_array_equal(batch.length, segments.lengths(indices))
    pad = np.array(CP_PAD if representation == "cp" else (REMI_PAD,))
    is_pad = (batch.tokens.reshape(len(indices), length, -1) == pad).all(axis=-1)
    np.testing.assert_array_equal((~is_pad).sum(axis=1), batch.length)


@QUICK
@given(data=st.data())
def test_several_stores_and_splits(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    sizes = data.draw(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=3))
    length, remi = data.draw(st.integers(2, 16)), data.draw(st.booleans())
    folder = tmp_path_factory.mktemp("stores")
    everything: list[Piece] = []
    stores = []
    for number, notes in enumerate(sizes):
        pieces: list[Piece] = [
            (f"{number}/{i}", "train" if n % 2 else "test", f"label {n}", made_tokens(n, n))
            for i, n in enumerate(notes)
        ]
        everything += pieces
        uri = write_store(folder / f"{number}", pieces, f"corpus {number}")
        stores.append(TokenStore.open(uri, str(folder / "cache")))
    chosen = [piece for piece in everything if piece[1] == "train"]
    shape = {"length": length, "representation": "remi" if remi else "cp"}
    if not chosen:
        with pytest.raises(ValueError, match="no segment"):
            Segments(stores, splits={"train"}, **shape)
        return
    segments = Segments(stores, splits={"train"}, **shape)
    batch = segments.gather(np.arange(len(segments)))
    for name, values in naive(chosen, length, shape["representation"], drop=False).items():
        np.testing.assert_array_equal(getattr(batch, name), values)
    assert [segments.piece_id(i) for i in np.unique(batch.piece)] == [piece[0] for piece in chosen]
    assert [segments.label(i) for i in range(segments.pieces)] == [piece[2] for piece in chosen]
    assert (batch.start % length == 0).all()


def test_composer_rule_drops_short_last_segments(tmp_path: Path) -> None:
    notes = {"a": 255, "b": 256, "c": 512 + 255, "d": 512 + 256, "e": 1024}
    uri = write_store(tmp_path / "store", [(n, "train", None, made_tokens(k, k)) for n, k in notes.items()])
    segments = Segments([TokenStore.open(uri, str(tmp_path / "cache"))], drop_short_last=True)
    batch = segments.gather(np.arange(len(segments)))
    assert batch.length.tolist() == [256, 512, 512, 256, 512, 512]
    assert [segments.piece_id(piece) for piece in batch.piece] == ["b", "c", "d", "d", "e", "e"]


def test_keep_selects_pieces_by_their_ids(sample_store: TokenStore) -> None:
    def held_out(corpus: str, piece: str) -> bool:
        return holdout_piece(piece, corpus=corpus, seed=0)

    valid = Segments([sample_store], keep=held_out)
    train = Segments([sample_store], keep=lambda *piece: not held_out(*piece))
    assert 0 < valid.pieces < train.pieces
    assert len(train) + len(valid) == len(Segments([sample_store]))
    assert all(held_out("sample", valid.piece_id(piece)) for piece in range(valid.pieces))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"splits": {"valdi"}}, r"splits \['valdi'\]; there are"),
        ({"representation": "midi"}, "'cp' or 'remi', got 'midi'"),
    ],
)
def test_wrong_selections_say_what_there_is(sample_store: TokenStore, settings_: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Segments([sample_store], **settings_)


def test_segments_beyond_the_end_are_refused(sample_store: TokenStore) -> None:
    segments = Segments([sample_store])
    for index in (-1, len(segments)):
        with pytest.raises(IndexError, match=f"got {index}"):
            segments.gather(np.array([index]))


_GATHERER = """
import sys
import numpy as np
from midibert_ray.data.order import BatchOrder
from midibert_ray.data.segments import Segments
from midibert_ray.data.store import TokenStore

def private() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

TokenStore.open(sys.argv[2], sys.argv[3])
store = TokenStore.open(sys.argv[1], sys.argv[3])
before = private()
segments = Segments([store], representation=sys.argv[4])
order = BatchOrder(n=len(segments), batch_size=16, seed=0)
for k in range(100):
    segments.gather(order.indices(k // order.batches_per_epoch, k % order.batches_per_epoch))
print(private() - before)
"""


@pytest.fixture(scope="module")
def small_large_tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Stores of 3 and of 30 MB, and one to warm up with."""
    folder = tmp_path_factory.mktemp("sizes")
    tokens = [made_tokens(4_000, seed) for seed in range(100)]

    def write(copies: int) -> str:
        pieces: list[Piece] = [
            (f"{copy}-{i:03d}", "train", None, piece) for copy in range(copies) for i, piece in enumerate(tokens)
        ]
        return write_store(folder / f"{copies}", pieces, in_shard=100)

    return write(1), write(10), write_store(folder / "tiny", [("a", "train", None, made_tokens(600, 0))])


@pytest.mark.slow
@pytest.mark.parametrize("representation", ["cp", "remi"])
def test_memory_of_a_gatherer_does_not_grow_with_the_store(
    small_large_tiny: tuple[str, str, str], tmp_path: Path, representation: str
) -> None:
    """Private memory: pages of the map belong to the page cache, which gives them up when asked."""
    *stores, tiny = small_large_tiny
    used = []
    for uri in stores:
        command = [sys.executable, "-c", _GATHERER, uri, tiny, str(tmp_path / "cache"), representation]
        used.append(int(subprocess.run(command, capture_output=True, check=True, text=True).stdout))
    assert used[1] - used[0] < 4_096, f"KiB by size: {used}"
