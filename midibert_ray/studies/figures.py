"""Pictures of a study, drawn with matplotlib without a display: confusion matrices, bars, curves, piano rolls."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from midibert_ray.studies.outcome import Outcome
from midibert_ray.studies.table import MAJORITY, Cell

INK, FAINT = "#22303c", "#d9dfe4"
COLOURS = ("#2a6f97", "#e07a5f", "#81b29a", "#f2cc8f", "#6d597a", "#b56576", "#8d99ae", "#355070")


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.tick_params(colors=INK, labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def confusion(result: Outcome) -> Figure:
    """Confusion matrix in % of each true class, as in the paper's Figs. 3 and 5 to 7."""
    counts = np.asarray(result.confusion, dtype=np.float64)
    rows = counts.sum(axis=1, keepdims=True)
    share = np.divide(100 * counts, rows, out=np.zeros_like(counts), where=rows > 0)
    size = 1.6 + 0.45 * len(counts)
    figure, axes = _figure(size + 0.6, size)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for row, column in np.ndindex(share.shape):
        colour = "white" if share[row, column] > 55 else INK
        axes.text(column, row, f"{share[row, column]:.0f}", ha="center", va="center", fontsize=8, color=colour)
    ticks = range(len(counts))
    axes.set_xticks(ticks, result.classes, rotation=40, ha="right")
    axes.set_yticks(ticks, result.classes)
    axes.set_xlabel("predicted", fontsize=8, color=INK)
    axes.set_ylabel("true", fontsize=8, color=INK)
    axes.set_title(f"{result.task}, {result.variant}", fontsize=9, color=INK)
    return figure


def bars(table: Sequence[Cell]) -> Figure:
    """Accuracy of every cell with its 95 % interval, grouped by task, the trivial baseline as a line."""
    models = [cell for cell in table if cell.variant != MAJORITY]
    tasks = list(dict.fromkeys(cell.task for cell in models))
    variants = list(dict.fromkeys(cell.variant for cell in models))
    figure, axes = _figure(1.5 + 2.6 * len(tasks), 3.2)
    width = 0.8 / max(len(variants), 1)
    for number, variant in enumerate(variants):
        mine = [cell for cell in models if cell.variant == variant]
        at = [tasks.index(cell.task) - 0.4 + width * (number + 0.5) for cell in mine]
        errors = [[cell.accuracy - cell.low for cell in mine], [cell.high - cell.accuracy for cell in mine]]
        heights = [100 * cell.accuracy for cell in mine]
        colour = COLOURS[number % len(COLOURS)]
        axes.bar(
            at, heights, width * 0.92, color=colour, label=variant, yerr=100 * np.array(errors), ecolor=INK, capsize=2
        )
    for cell in table:
        if cell.variant == MAJORITY and cell.task in tasks:
            middle = tasks.index(cell.task)
            axes.hlines(100 * cell.accuracy, middle - 0.45, middle + 0.45, colors=INK, linestyles=":", linewidth=1.2)
    axes.plot([], [], ":", color=INK, linewidth=1.2, label=MAJORITY)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_ylabel("test accuracy, %", fontsize=8, color=INK)
    axes.set_ylim(0, 100)
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def curves(lines: Mapping[str, Sequence[tuple[int, float]]], *, x: str, y: str) -> Figure:
    """Values over steps or epochs, one line each."""
    figure, axes = _figure(6.4, 3.0)
    for number, (name, points) in enumerate(lines.items()):
        if points:
            steps, values = zip(*points, strict=True)
            style = "-" if number < len(COLOURS) else "--"
            axes.plot(steps, values, style, marker=".", markersize=4, color=COLOURS[number % len(COLOURS)], label=name)
    axes.set_xlabel(x, fontsize=8, color=INK)
    axes.set_ylabel(y, fontsize=8, color=INK)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def piano_rolls(
    rolls: Mapping[str, NDArray[np.int64]],
    *,
    onset: NDArray[Any],
    pitch: NDArray[Any],
    duration: NDArray[Any],
    classes: Sequence[str],
) -> Figure:
    """The same notes several times, one panel each, coloured by class.

    Args:
        rolls: title -> class of every note, int [n].
        onset: sub-beats, [n].
        pitch: MIDI numbers, [n].
        duration: thirty-seconds, [n].
        classes: names of the classes.
    """
    figure = Figure(figsize=(9.5, 1.9 * len(rolls) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.atleast_1d(figure.subplots(len(rolls), 1, sharex=True, sharey=True))
    start, end = onset / 16 + 1, (onset + duration / 2) / 16 + 1
    for axes, (title, chosen) in zip(panels, rolls.items(), strict=True):
        notes = [((a, p), (b - 0.02, p)) for a, b, p in zip(start, end, pitch, strict=True)]
        colours = [COLOURS[int(number) % len(COLOURS)] for number in chosen]
        axes.add_collection(LineCollection(notes, colors=colours, linewidths=2.2))
        axes.set_xlim(start.min(), end.max())
        axes.set_ylim(pitch.min() - 2, pitch.max() + 2)
        axes.set_title(title, fontsize=9, color=INK, loc="left")
        axes.tick_params(colors=INK, labelsize=8)
        axes.set_ylabel("MIDI pitch", fontsize=8, color=INK)
    panels[-1].set_xlabel("bar", fontsize=8, color=INK)
    marks = [Line2D([], [], color=COLOURS[number], linewidth=3, label=name) for number, name in enumerate(classes)]
    panels[0].legend(
        handles=marks, fontsize=7, frameon=False, ncols=len(classes), loc="lower right", bbox_to_anchor=(1, 1)
    )
    return figure
