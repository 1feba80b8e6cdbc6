"""A page that one can listen to: pieces as piano rolls with a label a note, as one file of HTML that fetches nothing.

`document` makes a page, `player` the part of it that shows some pieces, for pages of others; `assets` is the style and
the script that the players of one page share. Templates, style and script are in templates/.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, PrefixLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from pandas import Series

from midibert_ray.settings.text import clock

CATEGORIES = ("#e0603a", "#8268c6", "#3f93b8", "#4a9d78", "#d29a22", "#c0567f", "#279a9a", "#8f6d4c")
"""Colours of classes that stand in no order; they repeat where there are more."""
ORDER = ("#5a7fb5", "#46a0a8", "#6aae73", "#c4aa3d", "#e0873e", "#cf4b3c")
"""Colours from the lowest to the highest class."""


@dataclass(frozen=True, kw_only=True)
class RollPiece:
    """A piece of n notes, in any order; raises ValueError where its columns do not fit together."""

    name: str
    onset_s: NDArray[Any]
    """[n] seconds from the start."""
    offset_s: NDArray[Any]
    """[n] seconds, not before the onset."""
    pitch: NDArray[Any]
    """[n] MIDI numbers."""
    velocity: NDArray[Any]
    """[n] MIDI 0..127."""
    label: NDArray[Any]
    """[n] index of the class; -1: none."""
    probability: NDArray[Any]
    """[n] of the label, 0..1; not a number where there is no label."""
    truth: NDArray[Any] | None = None
    """[n] index of the true class, -1: unknown; None where no truth is known."""
    bars_s: NDArray[Any] | None = None
    """Seconds at which bars begin, ascending; None: the roll has lines by the second."""

    def __post_init__(self) -> None:
        columns = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        for name, values in columns.items():
            if name != "bars_s" and values.shape != self.onset_s.shape:
                raise ValueError(f"piece {self.name!r}: {name} has shape {values.shape}, onset_s {self.onset_s.shape}")
        if (self.offset_s < self.onset_s).any():
            raise ValueError(f"piece {self.name!r}: a note ends before it begins; offset_s must not be below onset_s")

    @property
    def notes(self) -> int:
        return len(self.onset_s)

    @property
    def seconds(self) -> float:
        """End of the last note."""
        return float(self.offset_s.max(initial=0))

    @property
    def accuracy(self) -> float | None:
        """Share of the notes with a known truth whose label is right; None without any."""
        known = None if self.truth is None else self.truth >= 0
        return None if known is None or not known.any() else float((self.label == self.truth)[known].mean())

    @property
    def sure(self) -> float | None:
        """The mean probability of the labels; None without any."""
        told = self.label >= 0
        return float(self.probability[told].mean()) if told.any() else None

    @property
    def unlabelled(self) -> int:
        return int((self.label < 0).sum())

    def counts(self, classes: int) -> list[tuple[int, int | None]]:
        """For each class the notes that are labelled so, and those that truly are, where that is known."""
        said, true = (
            None if values is None else np.bincount(values[values >= 0].astype(np.int64), minlength=classes).tolist()
            for values in (self.label, self.truth)
        )
        return list(zip(said or (), true or [None] * classes, strict=True))

    def columns(self) -> dict[str, Any]:
        """The piece as JSON: notes by onset, in milliseconds from the onset before, probabilities in percent."""
        order = np.lexsort((self.pitch, self.onset_s))
        onset, offset = (np.rint(1000 * values[order]).astype(np.int64) for values in (self.onset_s, self.offset_s))
        bars = None if self.bars_s is None else np.rint(1000 * self.bars_s).astype(np.int64)
        told = np.where(self.label >= 0, np.nan_to_num(self.probability.astype(np.float64)), 0)
        return {
            "name": self.name,
            "onset": np.diff(onset, prepend=0).tolist(),
            "length": (offset - onset).tolist(),
            "probability": np.rint(100 * told[order]).astype(np.int64).tolist(),
            **{name: getattr(self, name)[order].astype(np.int64).tolist() for name in ("pitch", "velocity", "label")},
            "truth": None if self.truth is None else self.truth[order].astype(np.int64).tolist(),
            "bars": None if bars is None else np.diff(bars, prepend=0).tolist(),
        }


@dataclass(frozen=True, kw_only=True)
class Roll:
    """Pieces with labels of one kind; raises ValueError for a label that is no class."""

    title: str
    classes: Sequence[str]
    """Names, by index."""
    pieces: Sequence[RollPiece]
    ordered: bool = False
    """The classes have an order, as loudness has, and so have their colours."""

    def __post_init__(self) -> None:
        for piece in self.pieces:
            highest = max(int(values.max(initial=-1)) for values in (piece.label, piece.truth) if values is not None)
            if highest >= len(self.classes):
                raise ValueError(
                    f"piece {piece.name!r} has label {highest}, but there are {len(self.classes)} classes, from 0: "
                    f"{', '.join(self.classes)}"
                )

    @property
    def has_truth(self) -> bool:
        return any(piece.truth is not None for piece in self.pieces)

    @property
    def data(self) -> dict[str, Any]:
        """All that the script reads."""
        return {"classes": list(self.classes), "pieces": [piece.columns() for piece in self.pieces]}

    @property
    def colours(self) -> str:
        """The colours of the labels, as CSS variables."""
        last = max(len(self.classes) - 1, 1)
        spread = [ORDER[round(number * (len(ORDER) - 1) / last)] for number in range(len(self.classes))]
        chosen = spread if self.ordered else [CATEGORIES[i % len(CATEGORIES)] for i in range(len(self.classes))]
        return ";".join(f"--label-{number}:{colour}" for number, colour in enumerate(chosen))


def document(roll: Roll, sentences: Sequence[str] = ()) -> str:
    """A page of its own: the title, some sentences, the pieces."""
    return environment().get_template("inference/page.html").render(roll=roll, sentences=sentences)


def render(annotation: Any, *sentences: str) -> str:
    """The page of an `Annotation`: the labels of its notes, or in words the piece's probabilities or its number.

    `sentences` stand below the title, before those that the annotation has.
    """
    notes, said = annotation.notes, [*sentences, *filter(None, [annotation.unfamiliar]), *annotation.remarks]
    numbers = {name: number for number, name in enumerate(annotation.classes)}
    blank = np.full(len(notes), -1)
    by_note = annotation.level == "note"
    piece = RollPiece(
        name=annotation.song.name or "a piece",
        **{name: notes[name].to_numpy() for name in ("onset_s", "offset_s", "pitch", "velocity")},
        label=notes["label"].map(numbers).fillna(-1).to_numpy(np.int64) if by_note else blank,
        probability=notes["probability"].to_numpy(np.float64) if by_note else blank,
        bars_s=bar_lines(notes["bar"], notes["position"], notes["onset_s"]),
    )
    if not by_note:
        ranked = annotation.probabilities.sort_values(ascending=False)
        answers = [f"{name} {share(chance)}" for name, chance in ranked.items()] or [annotation.label]  # a number
        said.insert(0, f"The piece: {', '.join(answers)}.")
    return document(Roll(title=piece.name, classes=annotation.classes if by_note else (), pieces=[piece]), said)


def bar_lines(bar: Series, position: Series, onset_s: Series) -> NDArray[np.float64] | None:
    """Seconds at which the bars from 1 on begin, told by the notes that stand there; None where fewer than two do.

    bar: from 1; position: sixteenths in the bar; nothing where a note was not seen.
    """
    known = onset_s[(position == 0).fillna(False).astype(bool)].groupby(bar).min()
    if len(known) < 2:
        return None
    numbers, times = known.index.to_numpy(np.float64), np.maximum.accumulate(known.to_numpy(np.float64))
    wanted = np.arange(1, int(numbers[-1]) + 1)
    before = times[0] - (numbers[0] - wanted) * (times[1] - times[0]) / (numbers[1] - numbers[0])
    return np.where(wanted < numbers[0], before, np.interp(wanted, numbers, times))


def player(roll: Roll) -> Markup:
    """Some pieces as a part of another page, which must have `assets` after all of its players."""
    return Markup(environment().get_template("inference/player.html").render(roll=roll))


def assets() -> Markup:
    """The style and the script of all players of a page."""
    return Markup(environment().get_template("inference/assets.html").render())


@functools.cache
def environment(*rooms: str) -> Environment:
    """The templates of this room and of others; every value is escaped, and a misspelt name is an error."""
    made = Environment(
        loader=PrefixLoader({room: PackageLoader(f"midibert_ray.{room}") for room in ("inference", *rooms)}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    made.filters |= {"clock": clock, "share": share}
    return made


def share(value: float | None) -> str:
    """A share in %; nothing where there is none."""
    return "" if value is None else f"{100 * value:.1f} %"
