"""A token store, memory-mapped from the node's own copy."""

import copy
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from midibert_ray import storage
from midibert_ray.data.format import LABELS, LABELS_TABLE, SHARDS, read_manifest
from midibert_ray.data.node_copy import node_copy
from midibert_ray.settings.config import StorageConfig
from midibert_ray.storage.node_cache import Copy, NodeCache


class TokenStore:
    """A token store; its arrays are memory maps and stay on disk until they are read."""

    def __init__(self, uri: str, manifest: dict[str, Any], copy: Copy, cache: tuple[str, float]) -> None:
        """Map the node's copy; use `open`, which makes it."""
        self.uri, self.manifest, self._cache = uri, manifest, cache
        self._copy = copy  # stays where it is as long as this store
        folder = copy.folder
        self.tokens: NDArray[np.uint8] = _mapped(folder / "tokens.npy")
        """uint8[N, 4], CP ids of all pieces, one after the other."""
        self.onset: NDArray[np.int32] = _mapped(folder / "onset.npy")
        """int32[N], sub-beats from the start of bar 0."""
        self.velocity: NDArray[np.uint8] = _mapped(folder / "velocity.npy")
        """uint8[N], 0..127."""
        self.part: NDArray[np.uint8] = _mapped(folder / "part.npy")
        """uint8[N], 1 melody, 2 bridge, 3 accompaniment, 0 unknown."""
        self.offsets: NDArray[np.int64] = _mapped(folder / "offsets.npy")
        """int64[P + 1], where each piece starts in the arrays above."""
        self.bars: NDArray[np.int32] = _mapped(folder / "bars.npy")
        """int32[P], bars that are not empty."""
        with pa.memory_map(str(folder / "pieces.arrow")) as source:
            self._pieces = pa.ipc.open_file(source).read_all()

    @classmethod
    def open(cls, uri: str, cache_dir: str, cache_gib: float = 0) -> "TokenStore":
        """Open the store at a URI; the first process of a node copies it to the node's cache (see `NodeCache`).

        Labels that lie beside a token store (`tokenizing.labelling`) open as that store with these labels and splits.

        Raises:
            FileNotFoundError: if no finished store stands there.
            ValueError: if the store is damaged or has another format.
            OSError: if it cannot be read, or the disk of the cache is full.
        """
        cache = NodeCache(Path(cache_dir).expanduser(), cache_gib)
        while True:
            manifest = read_manifest(uri)
            if LABELS in manifest:
                return cls.open(storage.parent(uri), cache_dir, cache_gib)._with_labels(uri, manifest)
            try:
                return cls(uri, manifest, node_copy(uri, manifest, cache), (cache_dir, cache_gib))
            except (ValueError, OSError):
                if _content(read_manifest(uri)) == _content(manifest):
                    raise
                # the store was replaced while it was read: the new one is as good

    def _with_labels(self, uri: str, manifest: dict[str, Any]) -> "TokenStore":
        """The same tokens with the labels at a URI; a ValueError where these were made for other tokens."""
        system, path = storage.filesystem(uri)
        rows = pq.read_table(f"{path}/{LABELS_TABLE}", filesystem=system)
        if manifest["digest"] != self.manifest["digest"] or not rows["piece"].equals(self._pieces["piece"]):
            raise ValueError(
                f"the labels at {uri} belong to other tokens; start the study again, which writes them anew"
            )
        other = copy.copy(self)
        other.uri, other.manifest, other._pieces = uri, manifest, rows
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process or node, a store is opened there: arrays are never pickled."""
        return TokenStore.open, (self.uri, *self._cache)

    def __len__(self) -> int:
        """Number of pieces."""
        return self._pieces.num_rows

    @property
    def corpus(self) -> str:
        """The corpus that the store was made from."""
        return str(self.manifest["corpus"])

    def piece_id(self, index: int) -> str:
        """The id of a piece, as in the published split lists."""
        return str(self._pieces["piece"][index].as_py())

    def split(self, index: int) -> str:
        """`train`, `valid`, `test` or `pretrain`."""
        return str(self._pieces["split"][index].as_py())

    def cluster(self, index: int) -> str:
        """The group of a piece (`group:NAME`), else the first of its near-duplicates, else the piece itself."""
        if "group" not in self._pieces.column_names:
            return self.piece_id(index)
        group, twin = (self._pieces[name][index].as_py() for name in ("group", "twin"))
        return f"group:{group}" if group else str(twin or self.piece_id(index))

    @property
    def clusters(self) -> dict[str, str]:
        """Piece -> its cluster, of pieces that are not alone."""
        found = {self.piece_id(index): self.cluster(index) for index in range(len(self))}
        return {piece: cluster for piece, cluster in found.items() if piece != cluster}

    def label(self, index: int, column: str = "label") -> str | None:
        """The label of a piece as its table spells it (`Task.column`), None where it has none."""
        label: str | None = self._pieces[column][index].as_py()
        return label

    def select(self, splits: AbstractSet[str] | None, labelled: str = "") -> NDArray[np.int64]:
        """The pieces (int64, ascending) of some splits, or all; only those with a label in a column, if named."""
        chosen = np.ones(len(self), dtype=np.bool_)
        if splits is not None:
            chosen &= pc.is_in(self._pieces["split"], value_set=pa.array(sorted(splits), pa.string())).to_numpy()
        if labelled:
            chosen &= pc.is_valid(self._pieces[labelled]).to_numpy()
        return np.flatnonzero(chosen).astype(np.int64)

    @property
    def splits(self) -> set[str]:
        """The splits that occur."""
        return set(pc.unique(self._pieces["split"]).to_pylist())


def open_store(uri: str, config: StorageConfig) -> TokenStore:
    """Open the store at a URI, by way of the cache that is configured; see `TokenStore.open`."""
    return TokenStore.open(uri, config.cache, config.cache_gib)


def _content(manifest: dict[str, Any]) -> tuple[Any, ...]:
    """The part of a manifest by which two stores at one URI differ."""
    return manifest["digest"], manifest[SHARDS]


def _mapped(path: Path) -> NDArray[Any]:
    # a plain view of the map: np.memmap's own __getitem__ is several times slower
    return np.asarray(np.load(path, mmap_mode="r"))
