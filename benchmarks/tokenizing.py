"""MIDI files to tokens: ours beside MidiTok and pretty_midi, a piece at a time, and all corpora through Ray Data.

    MIDIBERT_CORPORA=/data python benchmarks/tokenizing.py --write     # about three minutes
    python benchmarks/tokenizing.py --pieces 8 --rounds 1              # on the 32 songs of the package
    python benchmarks/tokenizing.py --corpora /data --no-corpora-row

A piece: the file's bytes in memory -> token ids, on one thread, the same POP909 pieces for everyone. Ours aligns
the notes to the annotated beats too, and keeps velocities and parts. MidiTok (REMI and CPWord, default settings;
it parses with symusic, as we do) has an environment of its own that this script makes. `pretty_midi` only reads.
Each runs in a fresh process, they take turns, and the first tenth of the pieces does not count. `ms a piece` is
the median over rounds of the mean over pieces; `ours faster` the median over rounds of its time over ours.

All corpora: the five of the paper through `tokenize_corpora` with Ray on this machine, from the listing of files
to published token stores, counted after `ray.init`. It needs the corpora under --corpora, as their publishers lay
them out.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import harness

OURS, READING = "ours, with POP909's beats", "pretty_midi, reading alone"
MIDITOK = {"MidiTok REMI": "REMI", "MidiTok CPWord": "CPWord"}
REQUIREMENTS = ("miditok==3.1.0", "symusic==0.6.0")
MOST_MS, LEAST_FASTER, MOST_SECONDS = 2.0, 10.0, 20.0
CORPORA = ("pop909", "asap", "pop1k7", "pianist8", "emopia")


def main() -> None:
    options = _options()
    if options.worker:
        print(json.dumps(WORKERS[options.worker](options)))
        return
    python = harness.environment("miditok", REQUIREMENTS, options.environments)
    files, name = harness.music(options.corpora, options.pieces)
    found: dict[str, list[float]] = {variant: [] for variant in (OURS, *MIDITOK, READING)}
    for number in range(options.rounds):
        for variant, means in found.items():
            seconds = harness.measure(_command(variant, python, options), files, OMP_NUM_THREADS="1")
            means.append(1000 * mean(seconds[len(seconds) // 10 :]))
            print(f"round {number + 1}  {variant:<26}  {means[-1]:8.2f} ms a piece", flush=True)
    rows = _rows(found, f"{len(files)} pieces of {name}")
    rows.append(_corpora_row(options))
    software = harness.versions("symusic", "numpy", "ray", "pretty_midi") + ", "
    software += harness.versions("miditok", python=python)
    head = ("tokenize", "measured on", "result", "ours faster", "target", "holds")
    harness.publish("tokenize", harness.table(head, rows), options, hardware=harness.machine(), software=software)


def _options() -> argparse.Namespace:
    parser = harness.parser(__doc__)
    root = os.environ.get("MIDIBERT_CORPORA", "")
    parser.add_argument("--corpora", default=root, help="folder of POP909 and the others; else the package's songs")
    parser.add_argument("--pieces", type=int, default=100, help="pieces a round, evenly out of the list")
    parser.add_argument("--rounds", type=int, default=5, help="turns of all tokenizers")
    parser.add_argument("--no-corpora-row", action="store_true", help="leave Ray Data out")
    parser.add_argument("--environments", default=harness.ENVIRONMENTS, help="where MidiTok goes")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _command(variant: str, python: Path, options: argparse.Namespace) -> list[object]:
    if variant in MIDITOK:
        return [python, Path(__file__).with_name("peer_miditok.py"), MIDITOK[variant]]
    return [sys.executable, __file__, "--worker", {OURS: "ours", READING: "reading"}[variant]]


def ours(_: argparse.Namespace) -> list[float]:
    """Seconds of each piece (files on standard input) with our tokenizer."""
    from midibert_ray.corpora.catalogue import corpus
    from midibert_ray.corpora.labels import Piece
    from midibert_ray.corpora.tokens import tokenize_piece
    from midibert_ray.music.protocol import CLEAN

    pop909, seconds = corpus("pop909"), []
    for file in map(Path, json.load(sys.stdin)):
        contents = [file.read_bytes(), file.with_name("beat_audio.txt").read_bytes()]
        piece = Piece(piece=file.stem, files=(file.name, "beat_audio.txt"), split="train", label=None)
        start = time.perf_counter()
        tokens = tokenize_piece(pop909, piece, contents, CLEAN)
        seconds.append(time.perf_counter() - start)
        if not len(tokens.tokens):
            raise ValueError(f"{file} gave no tokens")
    return seconds


def reading(_: argparse.Namespace) -> list[float]:
    """Seconds that pretty_midi takes to read each piece (files on standard input)."""
    import pretty_midi

    seconds = []
    for file in json.load(sys.stdin):
        content = Path(file).read_bytes()
        start = time.perf_counter()
        pretty_midi.PrettyMIDI(io.BytesIO(content))
        seconds.append(time.perf_counter() - start)
    return seconds


def corpora(options: argparse.Namespace) -> dict[str, float]:
    """All corpora through Ray Data: seconds, and pieces that became tokens."""
    from midibert_ray.cli.driver import start_ray
    from midibert_ray.music.protocol import CLEAN
    from midibert_ray.tokenizing.tokenize import tokenize_corpora

    start_ray()
    with tempfile.TemporaryDirectory() as root:
        start = time.perf_counter()
        made = tokenize_corpora(CORPORA, corpora_root=options.corpora, storage_root=root, protocol=CLEAN)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "pieces": sum(summary.manifest["counts"]["pieces"] for summary in made)}


WORKERS: dict[str, Any] = {"ours": ours, "reading": reading, "corpora": corpora}


def _rows(found: dict[str, list[float]], where: str) -> list[list[str]]:
    """A row a tokenizer; the faster one of MidiTok's is what ours is held against."""
    faster = {name: median(x / own for x, own in zip(means, found[OURS], strict=True)) for name, means in found.items()}
    nearest, rows = min(MIDITOK, key=lambda name: faster[name]), []
    for name, means in found.items():
        row, target = [name, where, f"{median(means):.2f} ms a piece"], ["", "", ""]
        if name == OURS:
            target = ["1", f"≤ {MOST_MS:g} ms", harness.verdict(median(means), most=MOST_MS)]
        elif name == nearest:
            target = [
                f"{faster[name]:.1f} ×",
                f"≥ {LEAST_FASTER:g} ×",
                harness.verdict(faster[name], least=LEAST_FASTER),
            ]
        else:
            target[0] = f"{faster[name]:.1f} ×"
        rows.append(row + target)
    return rows


def _corpora_row(options: argparse.Namespace) -> list[str]:
    from midibert_ray.corpora.catalogue import corpus

    name, target = "ours, five corpora, Ray Data", f"≤ {MOST_SECONDS:g} s"
    missing = [x for x in CORPORA if not (options.corpora and Path(corpus(x).location(options.corpora)).is_dir())]
    if options.no_corpora_row or missing:
        print(f"{name}: {harness.NOT_MEASURED}" + (f", no {', '.join(missing)} under --corpora" if missing else ""))
        return [name, "", harness.NOT_MEASURED, "", target, ""]
    found = harness.measure([sys.executable, __file__, "--worker", "corpora", "--corpora", options.corpora])
    rate = found["pieces"] / found["seconds"]
    result = f"{found['seconds']:.1f} s, {rate:,.0f} pieces/s"
    return [
        name,
        f"{found['pieces']:,} pieces",
        result,
        "",
        target,
        harness.verdict(found["seconds"], most=MOST_SECONDS),
    ]


if __name__ == "__main__":
    main()
