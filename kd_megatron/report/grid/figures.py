"""Figures over a grid of studies: leads against repetition and against the budget."""

from collections.abc import Callable

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd_megatron.analysis.leads import GridCell, GridResults
from kd_megatron.analysis.statistics import Estimate
from kd_megatron.report.page.drawing import interval_bars, legend_beside, look


def lead_against_repetition(grid: GridResults) -> Figure | None:
    """Leads against the epochs of the reference, one panel for each budget; None with one pool of text."""
    label = f"how often {grid.reference} read its text (epochs)"
    return _panels(
        grid, lambda cell: f"{cell.place.budget:g} x budget", lambda cell: cell.epochs(grid.reference) or 0.0, label
    )


def lead_against_budget(grid: GridResults) -> Figure | None:
    """Leads against the budget, one panel for each pool of text; None with one budget."""
    label = "budget (multiples of the study's)"
    return _panels(grid, lambda cell: cell.place.pool_in_words, lambda cell: cell.place.budget, label)


def _panels(
    grid: GridResults, panel_of: Callable[[GridCell], str], place: Callable[[GridCell], float], label: str
) -> Figure | None:
    panels: dict[str, list[GridCell]] = {}
    for cell in grid.cells:
        if cell.epochs(grid.reference) is not None:
            panels.setdefault(panel_of(cell), []).append(cell)
    if not grid.arms or not any(len(cells) > 1 for cells in panels.values()):
        return None
    size = (1.6 + 2.4 * len(panels), 3.0)
    figure, row = pyplot.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    measure = grid.measures[0]
    for axes, (title, cells) in zip(row.flat, panels.items(), strict=True):
        axes.axhline(0.0, color="#777777", linewidth=0.9, linestyle=(0, (4, 3)))
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
    scale = grid.measures[0].scale
    axes.errorbar(
        [x for x, _ in known],
        [scale * lead.mean for _, lead in known],
        yerr=interval_bars([lead for _, lead in known], scale),
        color=colour,
        linestyle=dash,
        marker=marker,
        markersize=4.5,
        capsize=3,
        label=arm,
    )
