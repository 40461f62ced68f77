"""Numbers -> PNG bytes. Every label is plain text: a dollar sign in a name is no formula."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from beholder_training.evaluation.metrics import ReliabilityBin
from beholder_training.evaluation.statistics import Estimate, Values

COLOURS = ("#8a8f98", "#d9822b", "#1f6feb", "#2da44e", "#a475f9", "#bf3989", "#6e5494", "#1b7c83")
INK = "#1f2328"
DPI = 150
LABEL_WIDTH = 14  # characters, under a group of bars
PANELS_ACROSS = 3


@dataclass(frozen=True, slots=True)
class Series:
    """A line: `low` and `high` bound a band around `y`, where given."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def weight_series(name: str, history: Sequence[Mapping[str, float]]) -> Series | None:
    """The mean weight of pairs and its 5% and 95% quantiles from training's log lines; None where none was logged."""
    logged = [line for line in history if "weight" in line]
    low, high = ([line.get(f"weight_{level}", line["weight"]) for line in logged] for level in ("0.05", "0.95"))
    return (
        Series(name, [line["step"] for line in logged], [line["weight"] for line in logged], low, high)
        if logged
        else None
    )


def heat_map(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], outlined: Any = ()
) -> bytes:
    """A matrix of accuracies, red at chance or below, green at 1. `outlined` (row, column) cells are framed."""
    figure = Figure(figsize=(2.2 + 1.15 * len(columns), 1.4 + 0.55 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.asarray(values), cmap="RdYlGn", vmin=0.3, vmax=1.0, aspect="auto")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            axes.text(column, row, f"{100 * value:.1f}", ha="center", va="center", color=INK, fontsize=11)
    for row, column in outlined:
        axes.add_patch(_frame(row, column))
    axes.set_xticks(range(len(columns)), [plain(name) for name in columns], rotation=20, ha="right")
    axes.set_yticks(range(len(rows)), [plain(name) for name in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return png(figure)


def bars(
    groups: Sequence[str], series: Mapping[str, Sequence[Estimate | None]], label: str, chance: float | None = 0.5
) -> bytes:
    """A bar, of a share, for each series in every group, with its 95% interval; None leaves a gap.

    `chance` is a dashed line.
    """
    figure = Figure(figsize=(max(6.0, 1.2 + 0.42 * len(groups) * (len(series) + 1)), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(series), 1)
    for number, (name, values) in enumerate(series.items()):
        shown = [(place, value) for place, value in enumerate(values) if value is not None]
        places = [place + (number - (len(series) - 1) / 2) * width for place, _ in shown]
        heights, errors = [value.mean for _, value in shown], [value.half_width for _, value in shown]
        axes.bar(places, heights, width * 0.92, yerr=errors, color=_colour(number), label=plain(name), ecolor=INK)
    if chance is not None:
        axes.axhline(chance, color=INK, linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(groups)), [fill(plain(group), LABEL_WIDTH) for group in groups])
    axes.set_ylabel(label)
    axes.set_ylim(0, 1.02)  # of shares; an interval may reach beyond
    _finish(axes, legend=len(series) > 1)
    return png(figure)


def lines(series: Sequence[Series], x_label: str, y_label: str, whole: bool = True) -> bytes:
    """Lines with their bands; the ticks of x are `whole` numbers."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    _draw(axes, series, [line.name for line in series])
    axes.xaxis.set_major_locator(MaxNLocator(integer=whole))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _finish(axes, legend=len(series) > 1)
    return png(figure)


@dataclass(frozen=True, slots=True)
class Panel:
    """Two plots over one axis, one above the other, in a scale of their own where they are not `comparable`."""

    x_label: str
    above: Sequence[Series]
    below: Sequence[Series]
    comparable: bool = True


def panels(shown: Sequence[Panel], y_labels: tuple[str, str], names: Sequence[str]) -> bytes:
    """Panels side by side with a line at zero; ticks are where values are. `names`: of series, in order of colours."""
    across, rows = min(PANELS_ACROSS, len(shown)), 2 * math.ceil(len(shown) / PANELS_ACROSS)
    figure = Figure(figsize=(3.7 * across, 2.4 * rows), layout="constrained")
    grid = figure.subplots(rows, across, squeeze=False)
    pairs = [grid[2 * (place // across) : 2 * (place // across) + 2, place % across] for place in range(len(shown))]
    for panel, pair in zip(shown, pairs, strict=True):
        for axes, series, label in zip(pair, (panel.above, panel.below), y_labels, strict=True):
            _draw(axes, series, names)
            axes.axhline(0, color=INK, linewidth=0.8, linestyle="--")
            axes.set_xticks(sorted({x for line in series for x in line.x}))
            axes.set_ylabel(label)
            _finish(axes, legend=False)
        pair[1].set_xlabel(panel.x_label)
    for half in (0, 1):
        _common_scale([pair[half] for panel, pair in zip(shown, pairs, strict=True) if panel.comparable])
    for unused in grid[-2:, (len(shown) - 1) % across + 1 :].flat:
        unused.remove()
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    return png(figure)


def _common_scale(plots: Sequence[Any]) -> None:
    limits = [axes.get_ylim() for axes in plots]
    for axes in plots:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def reliability_plot(models: Mapping[str, Sequence[ReliabilityBin]]) -> bytes:
    """How often the preferred response is right, over the confidence sigmoid(|margin|); the diagonal is ideal."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0.5, 1], [0.5, 1], color=INK, linewidth=0.8, linestyle="--")
    for number, (name, bins) in enumerate(models.items()):
        x, y = [each.confidence for each in bins], [each.accuracy.mean for each in bins]
        errors = [each.accuracy.half_width for each in bins]
        axes.errorbar(x, y, errors, color=_colour(number), label=plain(name), marker="o", markersize=4, capsize=2)
    axes.set_xlabel("confidence: sigmoid(|margin|)")
    axes.set_ylabel("accuracy")
    _finish(axes, legend=True)
    return png(figure)


def histogram(values: Mapping[str, Values], label: str) -> bytes:
    """Outlines of the distributions, over a common range, with a line at zero."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    low, high = np.quantile(np.concatenate(list(values.values())), [0.005, 0.995])
    edges = np.linspace(low, high if high > low else low + 1, 40).tolist()
    for number, (name, each) in enumerate(values.items()):
        axes.hist(
            np.clip(each, low, high), edges, histtype="step", color=_colour(number), label=plain(name), linewidth=1.6
        )
    axes.axvline(0, color=INK, linewidth=0.8, linestyle="--")
    axes.set_xlabel(label)
    axes.set_ylabel("pairs")
    _finish(axes, legend=len(values) > 1)
    return png(figure)


def plain(text: str, limit: int = 40) -> str:
    """`text` as matplotlib draws it literally, shortened."""
    shown = text if len(text) <= limit else text[: limit - 1] + "…"
    return shown.replace("$", r"\$")


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _draw(axes: Any, series: Sequence[Series], names: Sequence[str]) -> None:
    """Lines with their bands; a name has the same colour in every plot that has the same `names`."""
    for line in series:
        colour = _colour(names.index(line.name))
        axes.plot(line.x, line.y, color=colour, label=plain(line.name), marker="o", markersize=3)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)


def _finish(axes: Any, legend: bool) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#d0d7de", linewidth=0.6)
    axes.set_axisbelow(True)
    if legend:
        axes.figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)


def _frame(row: int, column: int) -> Any:
    return Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, fill=False, edgecolor=INK, linewidth=1.6)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
