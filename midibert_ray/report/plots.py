"""Pictures of a study, drawn with matplotlib without a display: accuracies, confusion matrices and curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from midibert_ray.report.baselines import CONSTANT, MAJORITY
from midibert_ray.report.statistics import Floats
from midibert_ray.report.table import Key, ResultTable, mean_confusion
from midibert_ray.studies.result import TrialResult
from midibert_ray.training.metrics import mean_average_precision

INK, GREY, FAINT = "#1f2a33", "#8794a0", "#e3e8ec"
COLOURS = ("#2a6f97", "#e07a5f", "#5f9e7e", "#d9a441", "#6d597a", "#b56576", "#8d99ae", "#355070")
OF_PROTOCOL = {"paper": "#d1603d", "clean": "#2a6f97"}
FAILED = "#b3261e"
LONG = 20
"""Points up to which a curve shows each; beside longer ones, epochs are drawn on a logarithmic axis, as some models
train for ten and others for hundreds."""


def _figure(
    width: float, height: float, *, rows: int = 1, columns: int = 1, spacing: float = 0.02
) -> tuple[Figure, NDArray[Any]]:
    """A figure of so many inches, and its panels, which share their axes."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=spacing))
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, sharex="col", sharey=True, squeeze=False).ravel()
    for axes in panels:
        axes.tick_params(colors=INK, labelsize=8, length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(FAINT)
    return figure, panels


def _label(axes: Any, title: str, *, x: str = "", y: str = "") -> None:
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=8, color=INK)
    axes.set_ylabel(y, fontsize=8, color=INK)


def accuracies(table: ResultTable) -> Figure:
    """Every row's accuracy with its 95 % interval, a panel a task, both protocols and the paper's results in it."""
    tasks, rows = len(table.tasks), len(table.rows)
    figure, panels = _figure(2.4 + 2.3 * tasks, 1.2 + 0.36 * rows, columns=tasks, spacing=0.12)
    for axes, task in zip(panels, table.tasks, strict=True):
        axes.grid(axis="x", color=FAINT, linewidth=0.8)
        _label(axes, task)
        _accuracies(axes, table, task)
    panels[0].set_yticks(range(rows), [row.label for row in table.rows])
    panels[0].set_ylim(rows - 0.5, -0.5)
    marks = [
        Line2D([], [], marker="o", markersize=5, color=OF_PROTOCOL[protocol], label=f"protocol {protocol}")
        for protocol in table.protocols
    ]
    if any(row.printed for row in table.rows):
        marks += [Line2D([], [], marker="|", markersize=9, color=GREY, linestyle="", label="as printed in the paper")]
    constant = dict.fromkeys(item.name for item in table.baselines if item.name in CONSTANT)
    marks.append(Line2D([], [], linestyle=":", color=GREY, label=", ".join(constant) or MAJORITY))
    columns = len(marks) if tasks > 1 else 2
    figure.legend(handles=marks, fontsize=8, frameon=False, loc="outside lower center", ncols=columns)
    return figure


def _accuracies(axes: Any, table: ResultTable, task: str) -> None:
    for number, protocol in enumerate(table.protocols):
        shift, colour = 0.24 * (number - (len(table.protocols) - 1) / 2), OF_PROTOCOL[protocol]
        for place, row in enumerate(table.rows):
            cell = table.cells.get(Key(protocol, task, row.variant))
            if cell and cell.score:
                low, high = cell.score.interval
                axes.plot([100 * low, 100 * high], [place + shift] * 2, color=colour, linewidth=1.6)
                axes.plot(100 * cell.score.accuracy, place + shift, "o", color=colour, markersize=5)
            elif cell:
                where = axes.get_yaxis_transform()
                axes.text(0.02, place + shift, "failed", color=FAILED, fontsize=7, va="center", transform=where)
        if trivial := table.constant(protocol, task):
            axes.axvline(100 * trivial.accuracy, color=colour, linestyle=":", linewidth=1)
    printed = [(row.printed[task], place) for place, row in enumerate(table.rows) if task in row.printed]
    if printed:
        axes.plot(*zip(*printed, strict=True), "|", color=GREY, markersize=13, markeredgewidth=1.6, zorder=0)
    axes.margins(x=0.08)


def in_percent(group: Sequence[TrialResult]) -> tuple[list[str], list[str], Floats]:
    """A confusion matrix, the mean over some seeds, in % of each true class, as in the paper's Figs. 3 and 5 to 7.

    Returns:
        Names of the classes that occur, of those that occur or are predicted, and the percentages [true, predicted].
    """
    counts = mean_confusion(group)
    true = counts.sum(axis=1) > 0
    said = true | (counts.sum(axis=0) > 0)
    names = np.array(group[0].classes)
    shares = 100 * counts[true] / counts[true].sum(axis=1, keepdims=True)
    return names[true].tolist(), names[said].tolist(), shares[:, said]


def answers(result: TrialResult) -> Figure:
    """The answers of one trial: a confusion matrix, numbers beside the true ones, or the precision of each tag."""
    drawn = {"classes": confusion, "number": scatter, "tags": tag_precision}
    return drawn[result.kind](result)


def scatter(result: TrialResult) -> Figure:
    """Predicted numbers over the true ones, a point a piece; on the line they are equal."""
    figure, (axes,) = _figure(4.6, 4.2)
    true, said = np.array(list(result.pieces.values()), np.float64).T
    ends = [min(true.min(), said.min()), max(true.max(), said.max())]
    axes.plot(ends, ends, ":", color=GREY, linewidth=1)
    axes.plot(true, said, "o", color=COLOURS[0], markersize=4, alpha=0.6, markeredgewidth=0)
    title = f"{result.task}, {result.variant}, {result.protocol}: R² {result.accuracy:.2f}"
    _label(axes, title, x="true", y="predicted")
    return figure


def tag_precision(result: TrialResult) -> Figure:
    """The average precision of each tag, and the share of pieces that have it, which chance would reach."""
    precision, share = by_tag(result)
    figure, (axes,) = _figure(5.2, 1.0 + 0.3 * len(precision))
    places = np.arange(len(precision))
    axes.barh(places, 100 * precision, color=COLOURS[0], height=0.6)
    axes.plot(100 * share, places, "|", color=COLOURS[1], markersize=11, markeredgewidth=2)
    axes.set_yticks(places, result.classes)
    axes.set_ylim(len(precision) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    _label(axes, f"{result.task}, {result.variant}, {result.protocol}", x="average precision and share of pieces, %")
    return figure


def by_tag(result: TrialResult) -> tuple[Floats, Floats]:
    """Average precision of each tag, and the share of the pieces that have it: [tags] each."""
    rows = np.array(list(result.pieces.values()), np.float64)
    truth, said = np.split(rows, 2, axis=1)
    each = [mean_average_precision(truth[:, [tag]], said[:, [tag]])[0] for tag in range(truth.shape[1])]
    return np.array(each), truth.mean(axis=0)


def confusion(result: TrialResult) -> Figure:
    """The confusion matrix of one trial."""
    true, said, shares = in_percent([result])
    figure, (axes,) = _figure(2.0 + 0.45 * len(said), 1.4 + 0.45 * len(true))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for row, column in np.ndindex(shares.shape):
        colour = "white" if shares[row, column] > 55 else INK
        axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(said)), said, rotation=40, ha="right")
    axes.set_yticks(range(len(true)), true)
    title = f"{result.task}, {result.variant}, {result.protocol}: % of each true class"
    _label(axes, title, x="predicted", y="true")
    return figure


def curves(lines: Mapping[str, Sequence[tuple[int, float]]], *, x: str, y: str) -> Figure:
    """Values over steps or epochs, one line each."""
    figure, (axes,) = _figure(6.4, 3.0)
    for number, (name, points) in enumerate(lines.items()):
        if points:
            steps, values = zip(*points, strict=True)
            style = ("-", "--", ":")[number // len(COLOURS) % 3]
            marker = "." if len(points) <= LONG else ""
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(steps, values, style, marker=marker, markersize=4, linewidth=1.3, color=colour, label=name)
    ends = [points[-1][0] for points in lines.values() if points]
    if ends and x == "epoch" and max(ends) > LONG > min(ends):
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", integer=True)  # there is no half an epoch
    _label(axes, y, x=x)
    axes.grid(color=FAINT, linewidth=0.6)
    if ends:
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
