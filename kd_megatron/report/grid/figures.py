"""Figures over a grid of studies: leads against repetition and against the budget."""

from functools import partial

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd_megatron.analysis.leads import Axis, GridResults
from kd_megatron.analysis.statistics import Estimate
from kd_megatron.report.page.drawing import REFERENCE, legend_beside, line_of_means, look


def lead_against_repetition(grid: GridResults) -> Figure | None:
    """Leads against the epochs of the reference, one panel for each budget; None with one pool of text."""
    label = f"how often {grid.reference} read its text (epochs)"
    return _panels(grid, "repetition", label)


def lead_against_budget(grid: GridResults) -> Figure | None:
    """Leads against the budget, one panel for each pool of text; None with one budget."""
    label = "budget (multiples of the study's)"
    return _panels(grid, "budget", label)


def _panels(grid: GridResults, axis: Axis, label: str) -> Figure | None:
    panels, place = grid.levels(axis), partial(grid.position, axis)
    if not grid.arms or not any(len(cells) > 1 for cells in panels.values()):
        return None
    size = (1.6 + 2.4 * len(panels), 3.0)
    figure, row = pyplot.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    measure = grid.measures[0]
    for axes, (title, cells) in zip(row.flat, panels.items(), strict=True):
        axes.axhline(0.0, **REFERENCE)
        for number, arm in enumerate(grid.arms):
            aside = 1 + 0.03 * (number - (len(grid.arms) - 1) / 2)  # so that bars do not hide each other
            points = [(aside * place(cell), cell.lead(arm, measure)) for cell in sorted(cells, key=place)]
            _lead_line(axes, grid, arm, points)
        axes.set_title(title)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    row[0, 0].set_ylabel(f"lead over {grid.reference}\n{measure.name} ({measure.unit})")
    figure.supxlabel(label, fontsize=9)
    legend_beside(row[0, -1], handlelength=3)
    return figure


def _lead_line(axes: Axes, grid: GridResults, arm: str, points: list[tuple[float, Estimate | None]]) -> None:
    """The arm's mean leads with their intervals; ``points``: (place, lead)."""
    known = [(x, lead) for x, lead in points if lead is not None]
    if not known:
        return
    colour, marker, dash = look(grid.cells[0].study, arm)
    how = {"color": colour, "linestyle": dash, "marker": marker, "capsize": 3, "label": arm}
    line_of_means(axes, known, grid.measures[0].scale, **how)
