"""Labels beside a token store: what a corpus's own table or folders say of its pieces, and how these are divided.

    {root}/tokens/<corpus>-<hash>/<corpus>-labels-<hash>/labels.parquet    one row a piece, in the order of the store
                                                        /manifest.json     the store's, and an account of the labels

Such a folder opens as a token store (`data.store`). A changed label makes a new one, and no file is tokenized again.
Where nothing else is said pieces are divided by groups, else by near-duplicates (`music.fingerprint`), else by files.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from midibert_ray import storage
from midibert_ray.corpora import table
from midibert_ray.corpora.catalogue import corpus
from midibert_ray.corpora.labels import PRETRAIN, Piece
from midibert_ray.corpora.table import LabelError, Labels
from midibert_ray.data.format import LABELS, LABELS_TABLE, SHARDS, find_manifest, read_manifest, write_manifest
from midibert_ray.music import fingerprint
from midibert_ray.music.tasks import MELODY, TASKS, Task, split_tags
from midibert_ray.settings.config import require_some_of
from midibert_ray.tokenizing.division import SHARES, divide
from midibert_ray.tokenizing.listing import open_file
from midibert_ray.tokenizing.plan import CorpusFiles, CorpusPlan

NOTES = "notes"
"""The task of labels of single notes."""
VERSION = 1
"""Counts up when the same labels are divided otherwise, or kept in another form."""

_FEWEST = 3  # folds: one to test, one to validate, one to train
_MOST_CLASSES = 64  # of a column, for its labels to be evenly divided
_FIFTHS = 5  # parts of a column of numbers, for them to be evenly divided
_NAMED = 5  # crossing groups and pairs, in the account

Rows = Sequence[dict[str, Any]]


def find_labels(found: CorpusFiles, plan: CorpusPlan) -> Labels | None:
    """The labels of a corpus: its table, else its class folders; None where it has neither.

    A table of one of the paper's corpora must have the column `file_name` (ASAP has a metadata.csv of another kind).

    Raises:
        LabelError: for two tables, or one that cannot be used.
    """
    names = [name for name in table.TABLES if name in found.listing.files]
    if len(names) > 1:
        raise LabelError(f"corpus {plan.corpus.name} has {' and '.join(names)} at its top; keep one")
    if names:
        with open_file(plan.corpus.location(plan.root), found.listing.files[names[0]].path) as stream:
            columns = table.read_columns(names[0], stream.read())
        if plan.corpus.is_own or table.FILE in columns:
            return table.from_columns(names[0], columns, plan.there)
    return table.from_folders(plan.there) if plan.corpus.is_own else None


def note_task(plan: CorpusPlan) -> Task | None:
    """The task of the labels that single notes have in a folder; None where `corpora.notes` names no classes."""
    if not plan.notes:
        return None
    melody = next((name for name in plan.notes if name.lower() == MELODY.name), "")
    return Task(
        name=NOTES, level="note", classes=plan.notes, corpus=plan.corpus.name, column="part", metric="f1", melody=melody
    )


def require_column(name: str, labels: Labels | None, column: str) -> None:
    """Refuse a task that is no column of a corpus's own labels, unless it is one of the paper's.

    Raises:
        ConfigError: with the nearest column.
        LabelError: for a corpus without labels.
    """
    if column == NOTES and NOTES not in (labels.columns if labels else ()):
        raise LabelError(
            f"the task {NOTES} needs the names of its classes: corpora.notes=left,right, for MIDI tracks so named or "
            "NAME.notes.csv beside NAME.mid"
        )
    if labels is None and column not in TASKS:
        tables = " or ".join(table.TABLES)
        raise LabelError(
            f"corpus {name} has no labels of its own, which the task {column!r} needs; put {tables} at its top, with "
            f"{table.FILE} and a column a label, or make a folder for each class"
        )
    if labels is not None:
        paper = tuple(TASKS) if not corpus(name).is_own else ()
        require_some_of("study.tasks", (column,), (*labels.columns, *paper))


@dataclass(frozen=True, kw_only=True)
class LabelPlan:
    """The plan of a corpus's labels beside its tokens, divided in one way."""

    tokens: CorpusPlan
    labels: Labels
    seed: int
    folds: int = 0
    """Parts of a k-fold division; 0: train, valid and test."""
    fold: int = 0
    """1..folds: the part that is tested; the next one validates, all others train."""

    @functools.cached_property
    def uri(self) -> str:
        """The address of the store with labels; the hash covers labels, groups, splits, division and token store."""
        made_from = [storage.basename(self.tokens.uri), self.labels.digest, self.seed, self.folds, self.fold, VERSION]
        digest = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
        plain = corpus(storage.without_query(self.tokens.corpus.name))
        return storage.join(self.tokens.uri, f"{plain.slug}-labels-{digest[:12]}")

    @property
    def is_given(self) -> bool:
        """True where splits are those of the table, or of the corpus's own lists."""
        return not self.folds and (self.labels.splits is not None or not self.tokens.corpus.is_own)

    def is_current(self) -> bool:
        """Tell whether it has been written, for the tokens as they are now."""
        made, tokens = find_manifest(self.uri), find_manifest(self.tokens.uri)
        return made is not None and tokens is not None and made["digest"] == tokens["digest"]

    def require_divisible(self, task: Task) -> None:
        """Refuse a class of which all pieces are one group: what is tested of it could not be learned.

        Raises:
            LabelError: names it.
        """
        if self.is_given or task.kind == "number" or task.level == "note":
            return
        units = self.units(task)
        name = min(task.classes, key=lambda name: len(units[name]))
        if len(units[name]) < 2:
            raise LabelError(
                f"{self.labels.source} of {self.tokens.corpus.name}: {task.name}={name!r} has one group alone "
                f"({min(units[name])!r}), which cannot be both learned and tested; give it a second one, merge it with "
                "another class, or leave its cells empty"
            )

    def units(self, task: Task) -> dict[str, set[str]]:
        """The groups (or pieces without one) of each class of a task, near-duplicates not counted."""
        labels, found = self.labels, {name: set[str]() for name in task.classes}
        groups = labels.groups or (None,) * len(labels.pieces)
        cells = labels.columns[task.column.removeprefix(table.PREFIX)]
        for piece, group, cell in zip(labels.pieces, groups, cells, strict=True):
            for name in (split_tags(cell) if task.kind == "tags" else [cell]) if cell else ():
                found[name].add(group or piece)
        return found

    def table(self, pieces: Sequence[Piece] | None = None, twins: Mapping[str, str] | None = None) -> pa.Table:
        """Piece, split, label, group, near-duplicate (`twin`) and a column for each of the table's, a row a piece.

        Args:
            pieces: those of the token store in its order; those whose files are there, before it is made.
            twins: piece -> the first of its near-duplicates, if it has any.

        Raises:
            LabelError: where pieces cannot be divided.
        """
        chosen, twins = pieces or self.tokens.there, twins or {}
        number = {piece: row for row, piece in enumerate(self.labels.pieces)}
        rows = [number.get(piece.piece, -1) for piece in chosen]
        groups = self._column(self.labels.groups, rows)
        alike = [twins.get(piece.piece) for piece in chosen]
        columns = {
            "piece": [piece.piece for piece in chosen],
            "split": self._divide(chosen, rows, groups, alike),
            "label": [piece.label for piece in chosen],
            "group": groups,
            "twin": alike,
        }
        own = {table.PREFIX + name: self._column(cells, rows) for name, cells in self.labels.columns.items()}
        return pa.table({name: pa.array(values, pa.string()) for name, values in (columns | own).items()})

    @staticmethod
    def _column(cells: Sequence[str | None] | None, rows: Sequence[int]) -> list[str | None]:
        return [cells[row] if cells and row >= 0 else None for row in rows]

    def _divide(
        self, pieces: Sequence[Piece], rows: Sequence[int], groups: Sequence[str | None], twins: Sequence[str | None]
    ) -> list[str]:
        """The split of each piece."""
        if self.is_given:
            given = self._column(self.labels.splits, rows) if self.labels.splits else [piece.split for piece in pieces]
            return self._complete([split or PRETRAIN for split in given], pieces, rows, groups, twins)
        chosen = [number for number, row in enumerate(rows) if row >= 0]
        shares = [1 / self.folds] * self.folds if self.folds else list(SHARES.values())
        parts = self._deal(chosen, shares, pieces, rows, groups, twins)
        splits = [piece.split if piece.split != PRETRAIN and not self.folds else PRETRAIN for piece in pieces]
        names = list(SHARES)
        if self.folds:
            tested, validates = self.fold - 1, self.fold % self.folds
            names = [{tested: "test", validates: "valid"}.get(number, "train") for number in range(self.folds)]
        for number, part in zip(chosen, parts, strict=True):
            splits[number] = names[part]
        return splits

    def _complete(self, splits: list[str], *known: Any) -> list[str]:
        """Given splits, with a ninth of train for validation where that is not given.

        Raises:
            LabelError: where there is no train or no test.
        """
        for name in ("train", "test"):
            if name not in splits:
                raise LabelError(
                    f"{self.labels.source} of {self.tokens.corpus.name}: no piece has split={name}; give some, or "
                    "leave the column split out (groups are divided 8:1:1 then), or set study.folds=5"
                )
        if "valid" not in splits:
            chosen = [number for number, split in enumerate(splits) if split == "train"]
            for number, part in zip(chosen, self._deal(chosen, [8 / 9, 1 / 9], *known), strict=True):
                splits[number] = ("train", "valid")[part]
        return splits

    def _deal(
        self,
        chosen: Sequence[int],
        shares: Sequence[float],
        pieces: Sequence[Piece],
        rows: Sequence[int],
        groups: Sequence[str | None],
        twins: Sequence[str | None],
    ) -> list[int]:
        """The part of each chosen piece."""
        found = (("group", groups[at]) if groups[at] else ("piece", twins[at] or pieces[at].piece) for at in chosen)
        units = [":".join(map(str, unit)) for unit in found]
        if (count := len(set(units))) < len(shares):
            fewer = f", or set study.folds={count}" if self.folds and count >= _FEWEST else ""
            raise LabelError(
                f"corpus {self.tokens.corpus.name}: {count} groups (or files) cannot be divided into {len(shares)} "
                f"parts; give more of them{fewer}"
            )
        pairs, soft = self._strata([rows[at] for at in chosen])
        parts = divide(units, pairs[:, 0], pairs[:, 1], shares, self.seed, soft)
        return parts[np.unique(np.asarray(units), return_inverse=True)[1]].tolist()

    def _strata(self, rows: Sequence[int]) -> tuple[NDArray[np.int64], int]:
        """Pairs [m, 2] of a piece and a label, of all columns that look like classes, and of fifths of numbers.

        The second value counts the fifths; theirs are the highest numbers of labels.
        """
        pairs = [np.zeros((0, 2), dtype=np.int64)]
        offset = fifths = 0
        for kind, found, labels in sorted(self._numbered(rows), key=lambda column: column[0] == "number"):
            pairs.append(found + np.array([0, offset]))
            offset += labels
            fifths += labels * (kind == "number")
        return np.concatenate(pairs), fifths

    def _numbered(self, rows: Sequence[int]) -> Iterator[tuple[str, NDArray[np.int64], int]]:
        """The kind of each column, pairs of a piece and the number of its label (or fifth), and how many there are.

        Each distinct cell is looked at once: a table may have many rows, and has few classes.
        """
        for _, cells in sorted(self.labels.columns.items()):
            codes, distinct = pd.factorize(np.array([*cells, None], dtype=object)[list(rows)])  # row -1: None
            pieces = np.flatnonzero(codes >= 0)
            codes = codes[pieces]
            kind = table.guess_kind(dict(zip(distinct, np.bincount(codes).tolist(), strict=True)))
            split = [split_tags(cell) if kind == "tags" else [cell] for cell in distinct]
            names = sorted({name for each in split for name in each})
            if kind == "number" and len(names) > _FIFTHS:
                values = np.array([float(cell) if table.is_number(cell) else np.nan for cell in distinct])[codes]
                edges = np.nanquantile(values, np.linspace(0, 1, _FIFTHS + 1)[1:-1])
                fifths, number = np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)
                yield kind, np.stack([pieces, number], axis=1), len(fifths)
            elif 1 < len(names) <= _MOST_CLASSES:
                known = {name: number for number, name in enumerate(names)}
                of_cells = pd.Series([[known[name] for name in each] for each in split])
                labels = of_cells.iloc[codes].set_axis(pieces).explode().dropna().astype(np.int64)
                yield "classes", np.stack([labels.index, labels], axis=1), len(names)

    def write(self, pieces: Sequence[Piece], twins: Mapping[str, str]) -> None:
        """Write it beside its tokens, the manifest last.

        Raises:
            LabelError: where pieces cannot be divided.
        """
        rows = self.table(pieces, twins)
        content = storage.parquet(rows)
        storage.write_bytes(storage.join(self.uri, LABELS_TABLE), content)
        about = {"source": self.labels.source, "folds": self.folds, "fold": self.fold, "given": self.is_given}
        about |= {"divided_by": self.divided_by(bool(twins)), "crossing": crossing(rows.to_pylist())}
        about |= {"pieces": dict(Counter(rows["split"].to_pylist()))}
        manifest = read_manifest(self.tokens.uri)
        write_manifest(self.uri, {**manifest, SHARDS: {LABELS_TABLE: len(content)}, LABELS: about})

    def divided_by(self, twins: bool) -> str:
        """The unit that stays whole when pieces are divided."""
        if self.is_given:
            return "the table's splits" if self.labels.splits else "the corpus's lists"
        return "groups" if self.labels.groups and any(self.labels.groups) else "near-duplicates" if twins else "files"


def crossing(rows: Rows) -> dict[str, list[str]]:
    """Groups, and near-duplicates by the first of them, that stand both in the training split and in another."""
    found = {}
    for column in ("group", "twin"):
        sides: dict[str, set[bool]] = {}
        for row in rows:
            if row[column] and row["split"] in ("train", "valid", "test"):
                sides.setdefault(row[column], set()).add(row["split"] == "train")
        found[column] = sorted(name for name, both in sides.items() if len(both) > 1)
    return found


def write_labels(plans: Sequence[LabelPlan]) -> None:
    """Write the labels that have not been written beside their tokens, which must be there.

    Raises:
        LabelError: where pieces cannot be divided.
    """
    todo: dict[str, list[LabelPlan]] = {}
    for plan in plans:
        if not plan.is_current():
            todo.setdefault(plan.tokens.uri, []).append(plan)
    for uri, group in todo.items():
        names, sketches = [], []
        for piece, sketch in read_sketches(uri):
            names.append(piece)
            sketches.append(sketch)
        first = fingerprint.near_duplicates(sketches).tolist()
        size = Counter(first)
        twins = {name: names[at] for name, at in zip(names, first, strict=True) if size[at] > 1}
        known = {piece.piece: piece for piece in group[0].tokens.pieces}
        for plan in group:
            plan.write([known[name] for name in names], twins)


def read_sketches(uri: str) -> Iterator[tuple[str, fingerprint.Sketch]]:
    """The sketch of each piece of a token store, in its order."""
    system, path = storage.filesystem(uri)
    for name in read_manifest(uri)[SHARDS]:
        with system.open_input_file(f"{path}/{name}") as source:
            for batch in pq.ParquetFile(source).iter_batches(batch_size=64, columns=["piece", "tokens", "onset"]):
                for piece, tokens, onset in zip(*(batch.column(at) for at in range(3)), strict=True):
                    pitch = tokens.values.to_numpy().reshape(-1, 4)[:, 2]
                    yield piece.as_py(), fingerprint.sketch(onset.values.to_numpy(), pitch)
