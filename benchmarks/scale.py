"""How cost grows with a corpus: ten thousand pieces, a hundred thousand, a million.

    python benchmarks/scale.py --write                   # a quarter of an hour, 2 GiB of disk
    python benchmarks/scale.py --pieces 1000 10000 --rounds 1

A token store of so many short pieces is made by a writer of its own, and a folder with as many empty files: what
grows with the number of pieces is looked for, not what grows with the notes. Every size has a process of its own.

* cold: the node's copy is made from the shards, with digests; warm: it is there, and was compared since the boot.
* cut: the segments of all pieces; batch: 64 of them, gathered, anywhere in the store; MiB: the largest resident memory
  of the process that did all of this, less what it had after its imports.
* list, plan, manifest: the files below a folder; pieces, splits and the address of the store; and what a job that finds
  everything done reads and compares. MiB: likewise.

Seconds are CPU seconds of the process (user and system), the least of `--rounds`: on a shared machine those of the wall
tell of the neighbours. `exponent` is the slope of a straight line through the points of log(cost) by log(pieces): 1 is
a cost in proportion. Columns that hardly grow have less.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

MOST = 1.05
NOTES, BATCH = 64, 64
COLUMNS = {
    "cold": "cold s",
    "warm": "warm s",
    "cut": "cut s",
    "batch": f"batch of {BATCH} ms",
    "memory": "MiB",
    "list": "list s",
    "plan": "plan s",
    "manifest": "manifest s",
    "plan_memory": "MiB, files",
}


def main() -> None:
    options = _options()
    if options.worker:
        print(json.dumps(WORKERS[options.worker](options)))
        return
    found: dict[int, dict[str, float]] = {}
    for pieces in options.pieces:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            command = [sys.executable, __file__, "--folder", folder, "--pieces", pieces, "--worker"]
            harness.measure([*command, "write"])
            rounds = [
                harness.measure([*command, "open"]) | harness.measure([*command, "list"]) for _ in range(options.rounds)
            ]
        found[pieces] = {name: min(each[name] for each in rounds) for name in COLUMNS}
        print(f"{pieces:,} pieces: " + "  ".join(f"{name} {found[pieces][name]:.3f}" for name in COLUMNS), flush=True)
    facts = {"hardware": harness.machine(), "software": harness.versions("numpy", "pyarrow")}
    harness.publish("scale", _table(found), options, **facts)


def _options() -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--pieces", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", help="where files may lie for the while; by default the system's")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def _write(options: argparse.Namespace) -> None:
    """Write a token store and a folder of files below `--folder`."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from midibert_ray.data import format as layout

    (count,), folder = options.pieces, Path(options.folder, "store")
    folder.mkdir()
    random, digests, shards = np.random.default_rng(0), [], {}
    in_shard = max(64, -(-count // 1024))
    for number, first in enumerate(range(0, count, in_shard)):
        rows = min(in_shard, count - first)
        names = [_name(at) for at in range(first, first + rows)]
        values = {
            "tokens": random.integers(0, 2, (rows, NOTES * 4)).astype(np.uint8),
            "onset": np.sort(random.integers(0, 4096, (rows, NOTES)).astype(np.int32), axis=1),
            "velocity": random.integers(0, 128, (rows, NOTES)).astype(np.uint8),
            "part": np.zeros((rows, NOTES), np.uint8),
        }
        for at, name in enumerate(names):
            spans = (values[column][at].tobytes() for column in layout.COLUMNS)
            digests.append((name, layout.piece_digest(name, "pretrain", None, spans)))
        lists = [
            pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * each.shape[1], each.ravel())
            for each in values.values()
        ]
        columns = [pa.array(names), pa.array(["pretrain"] * rows), pa.nulls(rows, pa.string()), *lists]
        shard = folder / layout.shard_name(number, "made")
        pq.write_table(pa.Table.from_arrays(columns, schema=layout.SCHEMA), shard)
        shards[shard.name] = shard.stat().st_size
    counts = {"pieces": count, "notes": count * NOTES}
    layout.write_manifest(
        str(folder),
        {
            "corpus": "made",
            "protocol": "clean",
            "settings": {"format_version": layout.FORMAT_VERSION},
            "counts": counts,
            "digest": layout.store_digest(digests),
            layout.SHARDS: shards,
        },
    )
    for at in range(count):
        path = Path(options.folder, "music", _name(at))
        if at % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.touch()


def _name(number: int) -> str:
    return f"{number // 1000:04d}/{number:07d}.mid"


def _open(options: argparse.Namespace) -> dict[str, float]:
    import numpy as np

    from midibert_ray.data.segments import Segments
    from midibert_ray.data.store import TokenStore

    uri, cache, before = f"{options.folder}/store", Path(options.folder, "cache"), _peak()
    found: dict[str, float] = {}
    found["cold"], store = _timed(lambda: TokenStore.open(uri, str(cache)))
    del store
    found["warm"], store = _timed(lambda: TokenStore.open(uri, str(cache)))
    found["cut"], segments = _timed(lambda: Segments([store], splits={"pretrain"}))
    rows = np.random.default_rng(0).integers(0, len(segments), (200, BATCH))
    seconds = [_timed(lambda at=at: segments.gather(rows[at]))[0] for at in range(len(rows))]
    memory = _peak() - before
    shutil.rmtree(cache)
    return found | {"batch": 1000 * statistics.mean(seconds), "memory": memory}


def _list(options: argparse.Namespace) -> dict[str, float]:
    from midibert_ray.data.format import MANIFEST, write_manifest
    from midibert_ray.music.protocol import CLEAN
    from midibert_ray.tokenizing.plan import list_corpus, plan_corpus

    name, before = f"folder:{options.folder}/music", _peak()
    listing, found = _timed(lambda: list_corpus(name, ""))
    planning, plan = _timed(
        lambda: plan_corpus(name, corpora_root="", storage_root=options.folder, protocol=CLEAN, found=found)
    )
    address, _ = _timed(lambda: plan.uri)
    made = json.loads(Path(options.folder, "store", MANIFEST).read_text(encoding="utf-8"))
    checked = {"checked": {"listings": [plan.listing], "unread": []}}
    Path(plan.uri).mkdir(parents=True, exist_ok=True)
    for shard in made["parts"]:
        if not (place := Path(plan.uri, shard)).exists():
            os.link(Path(options.folder, "store", shard), place)
    write_manifest(plan.uri, made | checked)
    del plan.__dict__["listing"]
    manifest, current = _timed(plan.is_current)
    assert current, "a job that finds everything done"
    return {"list": listing, "plan": planning + address, "manifest": manifest, "plan_memory": _peak() - before}


WORKERS: dict[str, Callable[[argparse.Namespace], Any]] = {"write": _write, "open": _open, "list": _list}


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and what it gives."""
    begin = time.process_time()
    done = work()
    return time.process_time() - begin, done


def _peak() -> float:
    """Largest resident memory of this process so far, MiB."""
    return 1024 * harness.peak_gib()


def exponent(found: dict[int, float]) -> float:
    """Slope of a straight line through (log pieces, log cost)."""
    points = [(math.log(pieces), math.log(max(cost, 1e-9))) for pieces, cost in found.items()]
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def _table(found: dict[int, dict[str, float]]) -> str:
    rows = [[f"{pieces:,}", *(f"{costs[name]:.3g}" for name in COLUMNS)] for pieces, costs in found.items()]
    slopes = {name: exponent({pieces: costs[name] for pieces, costs in found.items()}) for name in COLUMNS}
    rows.append(["exponent", *(f"{slope:.2f}" for slope in slopes.values())])
    rows.append([f"≤ {MOST}", *(harness.verdict(slope, most=MOST) for slope in slopes.values())])
    return harness.table(("pieces", *COLUMNS.values()), rows)


if __name__ == "__main__":
    main()
