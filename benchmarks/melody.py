"""A model that finds the melody, on music that it has not seen: note F1 and accuracy, beside skyline and top note.

    MIDIBERT_CORPORA=/data python benchmarks/melody.py --write                     # the model that ships
    MIDIBERT_CORPORA=/data python benchmarks/melody.py --model exports/melody --most 20
    MIDIBERT_CORPORA=/data python benchmarks/melody.py --precisions --write        # what fewer bits change
    MIDIBERT_CORPORA=/data python benchmarks/melody.py --card                      # into the card of that model as well

Test pieces of POP909 (its songs aligned to their beats, as in training, and as the files are) and of Lieder (composers
that are in no other split), and all of `solo`, a corpus that nothing is trained on. Each goes through the model as
`midibert annotate` does it. A note counts as melody where it is in the melody's track (POP909's bridge is none), or the
model answers `melody`. F1 and accuracy are over all notes of a set; the F1 of a piece is the mean over
pieces. `unlike` is the share of pieces of which the model says that they are unlike the music that it knows; the last
table has it for piano music without a marked melody, too. With `--precisions` the model answers in fp32, in bf16, and
with layers in int8 (products.py), which no setting of ours does.
"""

import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import harness
import numpy as np
import products
from numpy.typing import NDArray

from midibert_ray.corpora.catalogue import corpus
from midibert_ray.corpora.labels import list_pieces
from midibert_ray.corpora.tokens import read_piece
from midibert_ray.inference.annotator import Annotator
from midibert_ray.inference.load import load
from midibert_ray.inference.sources import Song, read_song
from midibert_ray.model.calibration import THRESHOLDS
from midibert_ray.music.midi import notes_to_pretty_midi
from midibert_ray.music.protocol import CLEAN
from midibert_ray.music.skyline import skyline, top_note
from midibert_ray.settings import shipped

SETS = {
    "POP909 test": ("pop909", True),
    "POP909 test, files as they are": ("pop909", False),
    "Lieder test": ("lieder", True),
    "Solo": ("solo", True),
}
"""Name -> corpus, and whether pieces are read as the corpus says (tracks named, notes aligned to beats)."""
UNLABELLED = {
    "ASAP, scores": "asap",
    "EMOPIA, transcribed performances": "emopia",
    "Pianist8, transcribed performances": "pianist8",
}
"""Name -> corpus of piano music whose melody nobody has marked; files as they are."""
MOST_UNLABELLED = 40
"""Pieces of each of them, evenly out of all; nothing is learned from any."""
MELODY, TRACK = "melody", "MELODY"
LEAST = {"POP909 test": 0.88, "Lieder test": 0.80, "Solo": 0.70}
"""The targets: note F1 of the model."""
RULES = {"skyline": skyline, "top note": top_note}
CARD = """
## Music that it has not seen

`python benchmarks/melody.py` says what the rows are.

<!-- melody: begin -->
<!-- melody: end -->

## Made again

```
python jobs/study.py weights --preset small corpora.root=DATA storage.root=OUT
python jobs/export.py run=line-pretrained-clean-seed2021 storage.root=OUT weights=bf16 output=weights
python benchmarks/melody.py --corpora DATA --model weights --card
```
"""
"""What is added to a model's card."""
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One piece."""

    truth: Bools
    said: dict[str, Bools]
    """By model or rule: [notes] melody or not."""
    confidence: NDArray[np.float32]
    """Probability of the model's answer, melody or not: [notes]."""
    unlike: bool


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--corpora", default=os.environ.get("MIDIBERT_CORPORA", ""), help="folder of the corpora")
    parser.add_argument("--model", default="melody", help="folder of a model, or the name of one that ships")
    parser.add_argument("--precisions", action="store_true", help="what numbers of fewer bits change, and nothing else")
    parser.add_argument("--most", type=int, default=0, help="pieces of each set at most, evenly out of the list")
    parser.add_argument("--card", action="store_true", help="put the tables into the model's card, its README.md")
    options = parser.parse_args()
    model = load(options.model, "cpu")
    software = harness.versions("torch", "transformers", "symusic")
    if MELODY not in model.classes:
        parser.error(f"--model {options.model} has the classes {', '.join(model.classes)}, and no {MELODY}")
    if options.precisions:
        rows = precisions(options)
        harness.publish("melody precisions", rows, options, hardware=harness.machine(), software=software)
        return
    found = {name: list(score(model, songs(*place, options))) for name, place in SETS.items()}
    shown = {name: pieces for name, pieces in found.items() if pieces}
    strange = {
        name: list(flags(model, songs(where, False, options, MOST_UNLABELLED))) for name, where in UNLABELLED.items()
    }
    tables = [scores(shown), verdict(shown), abstention(shown), familiarity(strange)]
    if options.card:
        own = shipped.is_shipped(options.model)
        write_card(shipped.FOLDER / options.model if own else Path(options.model), "\n\n".join(tables))
    harness.publish("melody", "\n\n".join(tables), options, hardware=harness.machine(), software=software)


def precisions(options: Namespace) -> str:
    """A row for each set and precision: note F1, and how the answers differ from those in fp32."""
    models = {name: load(options.model, "cpu", precision=name) for name in ("fp32", "bf16")}
    for name in tuple(models):
        models[f"{name}, int8 layers"] = load(options.model, "cpu", precision=name)
        products.to_int8(models[f"{name}, int8 layers"].encoder)
    head, rows = ("set", "precision", "note F1", "accuracy", "other labels", "probability differs by", "notes"), []
    for name, place in SETS.items():
        answers = {each: list(score(model, songs(*place, options))) for each, model in models.items()}
        if not answers["fp32"]:
            continue
        truth = np.concatenate([piece.truth for piece in answers["fp32"]])
        for each, pieces in answers.items():
            said, probability = _melody(pieces)
            plain, before = _melody(answers["fp32"])
            shares = (f"{f1(truth, said):.4f}", f"{(truth == said).mean():.4f}", f"{(said != plain).mean():.2%}")
            rows.append((name, each, *shares, f"{abs(probability - before).mean():.4f}", f"{len(truth):,}"))
    return harness.table(head, rows)


def _melody(pieces: list[Scored]) -> tuple[Bools, NDArray[np.float32]]:
    """The notes of all pieces: melody or not to the model, and its probability."""
    said = np.concatenate([piece.said["model"] for piece in pieces])
    confidence = np.concatenate([piece.confidence for piece in pieces])
    return said, np.where(said, confidence, 1 - confidence)


def write_card(folder: Path, tables: str) -> None:
    """Put tables into the card of a model's folder."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8")
    if CARD.split("\n", 2)[1] not in text:
        card.write_text(text + CARD, encoding="utf-8")
    harness.write_section(card, "melody", tables)


def songs(name: str, as_corpus: bool, options: Namespace, most: int = 0) -> Iterator[Song]:
    """The test pieces of a corpus that are there and can be read; of an unlabelled one `most` of all its pieces."""
    most = min(filter(None, (most, options.most)), default=0)
    chosen = corpus(name)
    folder = Path(chosen.location(options.corpora))
    files = {path.relative_to(folder).as_posix(): 0 for path in folder.rglob("*") if path.is_file()}
    listed = [each for each in list_pieces(chosen, files, CLEAN) if each.files[0] in files]
    pieces = [each for each in listed if each.split == "test" or name in UNLABELLED.values()]
    step = max(1, len(pieces) // most) if most else 1
    for piece in pieces[::step][: most or None]:
        if not as_corpus:
            yield read_song(folder / piece.files[0])
            continue
        notes, _ = read_piece(chosen, [(folder / file).read_bytes() for file in piece.files], CLEAN)
        if chosen.four_four:
            notes = replace(notes, metre=notes.metre[:0])
        seconds = np.stack([notes.start, notes.end]) / notes.ticks_per_beat / 2
        frame = partial(notes_to_pretty_midi, notes)
        yield Song(name=piece.piece, notes=notes, onset_s=seconds[0], offset_s=seconds[1], frame=frame)


def score(model: Annotator, given: Iterator[Song]) -> Iterator[Scored]:
    """Each piece with what the model and the rules say of the notes that the model sees."""
    column = model.classes.index(MELODY)
    for song in given:
        annotation = model.annotate(song)
        grid, melody = annotation.grid, annotation.scores[:, column]
        names = np.array([track.name for track in song.notes.tracks])
        said = {"model": annotation.answers == column}
        said |= {name: rule(grid.onset, grid.duration, grid.pitch) for name, rule in RULES.items()}
        yield Scored(
            truth=names[song.notes.track[grid.source]] == TRACK,
            said=said,
            confidence=np.where(said["model"], melody, 1 - melody),
            unlike=bool(annotation.unfamiliar),
        )


def flags(model: Annotator, given: Iterator[Song]) -> Iterator[tuple[bool, float, float]]:
    """Each piece: unlike what the model knows, mean probability of its answers, share of notes that it calls melody."""
    column = model.classes.index(MELODY)
    for song in given:
        annotation = model.annotate(song)
        melody = annotation.answers == column
        yield bool(annotation.unfamiliar), float(annotation.scores.max(axis=1).mean()), float(melody.mean())


def f1(truth: Bools, said: Bools) -> float:
    """Note F1 of melody."""
    return 2 * float((truth & said).sum()) / max(1, int(truth.sum() + said.sum()))


def scores(found: dict[str, list[Scored]]) -> str:
    """A row for each set and way to find its melody."""
    head = ("set", "by", "note F1", "target", "holds", "accuracy", "F1 of a piece", "pieces", "notes", "unlike")
    rows: list[Sequence[str]] = []
    for name, pieces in found.items():
        truth = np.concatenate([piece.truth for piece in pieces])
        for way in pieces[0].said:
            said = np.concatenate([piece.said[way] for piece in pieces])
            figure, least = f1(truth, said), LEAST.get(name) if way == "model" else None
            target = (f"≥ {least}", harness.verdict(figure, least=least)) if least else ("", "")
            each = np.mean([f1(piece.truth, piece.said[way]) for piece in pieces])
            unlike = f"{np.mean([piece.unlike for piece in pieces]):.0%}" if way == "model" else ""
            shares = (f"{(truth == said).mean():.3f}", f"{each:.3f}")
            counts = (f"{len(pieces):,}", f"{len(truth):,}")
            rows.append((name, way, f"{figure:.3f}", *target, *shares, *counts, unlike))
    return harness.table(head, rows)


def verdict(found: dict[str, list[Scored]]) -> str:
    """Whom to trust where, in a sentence: the way with the highest F1 over all notes of each set."""
    best: dict[str, list[str]] = {}
    for name, pieces in found.items():
        truth = np.concatenate([piece.truth for piece in pieces])
        figures = {way: f1(truth, np.concatenate([piece.said[way] for piece in pieces])) for way in pieces[0].said}
        best.setdefault(max(figures, key=figures.__getitem__), []).append(name)
    return "By note F1, trust " + "; ".join(f"the {way} on {', '.join(names)}" for way, names in best.items()) + "."


def abstention(found: dict[str, list[Scored]]) -> str:
    """Shares of the answers that are left where less probable ones are withheld, and of these that are right."""
    head = ("answered / of these right", *(f"p ≥ {threshold}" for threshold in THRESHOLDS))
    rows = []
    for name, pieces in found.items():
        confidence = np.concatenate([piece.confidence for piece in pieces])
        right = np.concatenate([piece.truth == piece.said["model"] for piece in pieces])
        rows.append((name, *(_left(confidence >= threshold, right) for threshold in THRESHOLDS)))
    return harness.table(head, rows)


def familiarity(found: dict[str, list[tuple[bool, float, float]]]) -> str:
    """A row for each set of piano music without a marked melody."""
    head = ("piano music without a marked melody", "unlike", "mean probability", "called melody", "pieces")
    rows = []
    for name, pieces in found.items():
        if pieces:
            unlike, probability, melody = np.mean(pieces, axis=0)
            rows.append((name, f"{unlike:.0%}", f"{probability:.3f}", f"{melody:.0%}", f"{len(pieces):,}"))
    return harness.table(head, rows)


def _left(kept: Bools, right: Bools) -> str:
    return f"{kept.mean():.1%} / {right[kept].mean():.1%}" if kept.any() else "0.0% / –"


if __name__ == "__main__":
    main()
