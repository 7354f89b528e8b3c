"""What all figures share: colours, markers and lines of arms, axes, interval bars, and writing a figure."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.statistics import Estimate
from kd_megatron.report.page.style import DOTS_PER_INCH

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D3B")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
REFERENCE: Any = {"color": "#777777", "linewidth": 0.9, "linestyle": (0, (4, 3))}  # a line of what is compared with
PANEL_COLUMNS = 3
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlesize": 9.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.dpi": DOTS_PER_INCH,
    "savefig.bbox": "tight",
    "figure.constrained_layout.use": True,
    "hatch.linewidth": 0.5,
}


def write(directory: Path, draws: dict[str, Callable[[], Figure | None]]) -> dict[str, Path]:
    """Draw what there is data for: name -> PNG file."""
    written = {}
    for name, draw in draws.items():
        with matplotlib.rc_context(STYLE):
            figure = draw()
            if figure is not None:
                written[name] = directory / f"{name}.png"
                figure.savefig(written[name])
                pyplot.close(figure)
    return written


def interval_bars(estimates: Sequence[Estimate], scale: float) -> list[list[float]]:
    """How far intervals reach below their means and above them, as error bars are given; 0 without an interval."""
    below = [0.0 if one.low is None else scale * (one.mean - one.low) for one in estimates]
    above = [0.0 if one.high is None else scale * (one.high - one.mean) for one in estimates]
    return [below, above]


def seeds_and_mean(
    axes: Axes, results: StudyResults, arm: str, curves: Sequence[tuple[Sequence[float], Sequence[float]]]
) -> None:
    """Thin lines for the (x, y) of seeds, where there are several, and a thick one for their mean as far as all go."""
    if not curves:
        return
    colour, marker, dash = look(results, arm)
    for x, y in curves if len(curves) > 1 else []:
        axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.5)
    length = min(len(x) for x, _ in curves)
    mean = (numpy.mean([one[axis][:length] for one in curves], axis=0) for axis in (0, 1))
    axes.plot(*mean, color=colour, linestyle=dash, marker=marker, markersize=4.5, label=arm)


def line_of_means(axes: Axes, points: Sequence[tuple[float, Estimate]], scale: float, **how: Any) -> None:
    """A line through means, with their intervals as bars; ``points``: (place, mean)."""
    y = [scale * mean.mean for _, mean in points]
    bars = interval_bars([mean for _, mean in points], scale)
    axes.errorbar([x for x, _ in points], y, yerr=bars, markersize=4.5, **how)


def mean_and_seeds(
    axes: Axes, row: int, mean: Estimate, seeds: Iterable[float], scale: float, marker: dict[str, Any], **bar: Any
) -> None:
    """In a row of `rows_of`: the mean, filled, with its interval, and the single seeds, open, below it."""
    centre, values = scale * mean.mean, [scale * value for value in seeds]
    if mean.has_interval:
        axes.errorbar(centre, row, xerr=interval_bars([mean], scale), color=marker["color"], capsize=3.5, **bar)
    axes.plot(centre, row, **marker, zorder=4)
    axes.plot(values, [row + 0.22] * len(values), "o", mfc="white", mec=marker["color"], markersize=4, zorder=3)


def rows_of(axes: Axes, names: Sequence[str], edge: float = 0.45) -> None:
    """One row for each name, the first at the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - edge, edge - 1)
    axes.grid(axis="y", visible=False)


def panels(num: int, size: Callable[[int, int], tuple[float, float]], **how: Any) -> tuple[Figure, list[Axes]]:
    """A figure of ``num`` panels, three in a row, of the ``size`` that its columns and rows need."""
    num_columns = min(num, PANEL_COLUMNS)
    num_rows = -(-num // num_columns)
    figure, grid = pyplot.subplots(num_rows, num_columns, figsize=size(num_columns, num_rows), squeeze=False, **how)
    for axes in grid.flat[num:]:
        axes.set_visible(False)
    return figure, list(grid.flat[:num])


def legend_above(figure: Figure, axes: Axes) -> None:
    """The legend of one panel above all of them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def legend_beside(axes: Axes, **how: Any) -> None:
    """The legend at the right of the axes."""
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), **how)


def power_unit(flops: float) -> tuple[float, str]:
    """(a power of ten near ``flops``, its name for an axis)."""
    power = math.floor(math.log10(flops)) if flops > 0 else 0
    return 10.0**power, rf"$10^{{{power}}}$ FLOPs"


def look(results: StudyResults, arm: str) -> tuple[str, str, object]:
    """(colour, marker, dash) of an arm: by its place in the recipe, so that it is the same in every figure."""
    return look_of(list(results.recipe.arms).index(arm))


def look_of(place: int) -> tuple[str, str, object]:
    """(colour, marker, dash) of what is drawn as number ``place``."""
    return COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)], DASHES[place % len(DASHES)]
