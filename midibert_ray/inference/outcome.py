"""The end of a job that applies a model: the table of files, what says that all is there, and what to do next."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from midibert_ray import storage
from midibert_ray.inference.formats import ending
from midibert_ray.inference.plan import Plan, current
from midibert_ray.inference.state import VECTORS, Record, State, is_of
from midibert_ray.settings.text import aligned


@dataclass(frozen=True)
class Summary:
    """A finished output."""

    plan: Plan
    records: Sequence[Record] = field(repr=False)
    """By name of the file."""
    found: int
    """Files that were done already."""

    def __str__(self) -> str:
        """The outcome as a table, the first files that give nothing, and what to do next."""
        good = [row for row in self.records if not row["reason"]]
        bad = [row for row in self.records if row["reason"]]
        notes = sum(row["notes"] for row in good)
        rows = [("", "files", "notes"), (_DONE[self.plan.spec.kind], f"{len(good):,}", f"{notes:,}")]
        rows += [(f"  {label}", files, count) for label, files, count in _by_label(good)]
        rows += [("with a remark", f"{n:,}", "")] if (n := sum(bool(row["remark"]) for row in good)) else []
        rows += [("unreadable", f"{len(bad):,}", ""), ("done before", f"{self.found:,}", "")]
        lines = [aligned(rows, numbers=True), ""]
        lines += [f"unreadable  {row['file']}: {row['reason']}" for row in bad[:10]]
        lines += [f"unreadable  {len(bad) - 10:,} more are in the table of files"] if len(bad) > 10 else []
        return "\n".join([*lines, *_next(self.plan, good)])


_DONE = {"annotate": "annotated", "embed": "embedded"}


def _by_label(records: Sequence[Record]) -> Iterator[tuple[str, str, str]]:
    """Labels with the files or notes that have them; of numbers, which have no probability, their range in one row."""
    notes: Counter[str] = Counter()
    for row in records:
        notes.update(json.loads(row["labels"]))
    numbers = [float(row["label"]) for row in records if row["label"] and math.isnan(row["probability"])]
    files = Counter(row["label"] for row in records if row["label"] and not math.isnan(row["probability"]))
    if numbers:
        span = f"{min(numbers):.6g} to {max(numbers):.6g}, mean {sum(numbers) / len(numbers):.6g}"
        yield span, f"{len(numbers):,}", ""
    yield from ((label, "", f"{count:,}") for label, count in notes.items())
    yield from ((label, f"{count:,}", "") for label, count in sorted(files.items()))


def _next(plan: Plan, good: Sequence[Record]) -> Iterator[str]:
    output = storage.without_query(plan.spec.output)
    yield f"files       {storage.without_query(plan.table)}"
    yield f"output      {output}"
    if plan.spec.kind == "embed":
        yield f"next        python -c \"import pandas; print(pandas.read_parquet('{output}'))\""
    elif good:
        first = storage.without_query(storage.join(plan.spec.output, name := good[0]["file"]))
        shown = "html" if "html" in plan.spec.formats else plan.spec.formats[0]
        where = {"html": "open it in a browser", "midi": "open it in any sequencer: a track a label"}
        yield f"next        {first}{ending(name, shown)}: {where.get(shown, f'the notes of one piece, as {shown}')}"


def finish(made: Plan) -> Summary:
    """Write the table of files and the last file, and close the state, unless all of it is there."""
    if made.is_complete:
        return Summary(made, list(made.done.values()), len(made.done))
    state = State(made.spec.state)
    records = list(current(state.records(), made.inputs).values())
    if missing := made.inputs.files.keys() - {row["file"] for row in records}:
        raise RuntimeError(f"{len(missing):,} files were not heard of, such as {min(missing)}; start the job again")
    storage.write_bytes(made.table, _table(made, records).to_csv(index=False, lineterminator="\n").encode())
    if made.spec.kind == "annotate":
        storage.write_json(made.last, _manifest(made, records))
    else:
        _merge(made, state)
    state.close(records)
    return Summary(made, records, len(made.done))


def _table(made: Plan, records: Sequence[Record]) -> pd.DataFrame:
    """A row a file, places that could not be looked at included; of a note-level model with the notes of each label."""
    labels: dict[str, int] = {}
    for row in records:
        labels |= dict.fromkeys(json.loads(row["labels"]), 0)
    whole = ["label", "probability"] if any(row["label"] for row in records) else []
    rows = [{**row, **labels, **json.loads(row["labels"])} for row in records]
    rows += [{"file": name, "notes": 0, "unseen": 0, "reason": why} for name, why in made.inputs.unlisted.items()]
    columns = ["file", "notes", "unseen", *labels, *whole, "remark", "reason"]
    return pd.DataFrame(rows, columns=columns).sort_values("file").fillna(dict.fromkeys(labels, 0))


def _manifest(made: Plan, records: Sequence[Record]) -> dict[str, Any]:
    """The contents of an output; the same for any number of actors, and wherever the input lies."""
    good = [row for row in records if not row["reason"]]
    labels: Counter[str] = Counter()
    for row in good:
        labels.update(json.loads(row["labels"]))
    digest = hashlib.sha256("".join(f"{row['file']}\0{row['digest']}\n" for row in records).encode())
    counts = {"files": len(records), "annotated": len(good), "notes": sum(row["notes"] for row in good)}
    counts |= {"unreadable": len(records) - len(good), "unseen": sum(row["unseen"] for row in good)}
    settings = {key: value for key, value in made.settings.items() if key != "input"}
    return {**settings, "counts": counts, "labels": dict(labels), "digest": digest.hexdigest()}


def _merge(made: Plan, state: State) -> None:
    """All embeddings in one file, by name of the file and number of the note."""
    seen: set[str] = set()
    tables = []
    for row in state.vectors():
        name = row["file"]
        if name not in seen and name in made.inputs.files and is_of(row, made.inputs.files[name]) and row[VECTORS]:
            seen.add(name)
            tables.append(_vectors(row, of_notes=made.spec.pool is None))
    if storage.exists(made.last):
        before = pq.read_table(pa.BufferReader(storage.read_bytes(made.last)))
        keep = [name in made.inputs.files and name not in seen for name in before["file"].to_pylist()]
        tables.append(before.filter(pa.array(keep)).replace_schema_metadata(None))
    if not tables:
        raise ValueError(f"none of the files of {storage.without_query(made.inputs.uri)} can be used; see {made.table}")
    keys = [("file", "ascending"), ("note", "ascending")][: 1 + (made.spec.pool is None)]
    whole = pa.concat_tables(tables).sort_by(keys)
    storage.write_bytes(made.last, storage.parquet(whole, row_group_size=1 << 16))


def _vectors(row: dict[str, Any], *, of_notes: bool) -> pa.Table:
    """The rows of one file in the output: file, the number of the note where each has one, and the embedding."""
    values = np.frombuffer(row[VECTORS], dtype=np.float32)
    rows = row["notes"] if of_notes else 1
    columns = {"file": pa.array([row["file"]] * rows, pa.string())}
    if of_notes:
        columns["note"] = pa.array(range(rows), pa.int32())
    return pa.table({**columns, "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values), len(values) // rows)})
