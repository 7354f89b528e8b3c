"""Figures of the fine-tuning page: scores with their seeds, learning curves, and the score over the grid.

Units on every axis; settings differ by colour and by dash or marker, so that they are told apart in grey too.
"""

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullLocator

from kd_megatron.report.finetune import tables
from kd_megatron.report.finetune.results import FinetuneResults, setting_of
from kd_megatron.report.page import drawing

OTHERS = "#9A9A9A"  # settings that were not chosen


def scores(results: FinetuneResults) -> Figure:
    """Per task: seeds as open points, their mean and its 95 % interval above them."""
    figure, axes = pyplot.subplots(figsize=(5.2, 0.9 + 0.48 * len(results.tasks)))
    for row, task in enumerate(results.tasks):
        found = results.scores(task, results.best(task))
        if found is None:
            continue
        marker = {"marker": "o", "color": drawing.COLOURS[0], "markersize": 7}
        drawing.mean_and_seeds(axes, row, found, results.tasks[task].scores.values(), 100, marker)
    drawing.rows_of(axes, [tables.heading(results, task) for task in results.tasks])
    axes.margins(x=0.08)
    axes.set_xlabel("score (points)")
    return figure


def learning_curves(results: FinetuneResults) -> Figure | None:
    """Per task: training loss against examples. Thin: each cell; thick: mean over the seeds of the best setting."""
    return _curves(results, "learning_curve", "training loss (nats; of a regression: squared error)")


def dev_curves(results: FinetuneResults) -> Figure | None:
    """Per task: its first metric on dev, in points, where the recipe asked for it on the way."""
    return _curves(results, "dev_curve", "first metric on dev (points)", scale=100)


def has_curves(results: FinetuneResults, part: str) -> bool:
    """Whether a cell has a ``"learning_curve"``, or a ``"dev_curve"``."""
    return any(cell.get(part) for cells in results.cells.values() for cell in cells)


def _curves(results: FinetuneResults, part: str, label: str, scale: float = 1.0) -> Figure | None:
    if not has_curves(results, part):
        return None
    figure, panels = _panels(results)
    for axes, task in zip(panels, results.tasks, strict=True):
        curves = [(setting_of(cell), _curve(cell[part], scale)) for cell in results.cells[task] if cell.get(part)]
        best = [curve for setting, curve in curves if setting == results.best(task)]
        for setting, (x, y) in curves:
            chosen = setting == results.best(task)
            axes.plot(x, y, color=drawing.COLOURS[0] if chosen else OTHERS, linewidth=0.6, alpha=0.6, zorder=1 + chosen)
        if best:
            num_points = min(len(x) for x, _ in best)
            mean = [sum(y[i] for _, y in best) / len(best) for i in range(num_points)]
            axes.plot(best[0][0][:num_points], mean, color=drawing.COLOURS[0], zorder=3)
        axes.set_title(tables.heading(results, task))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlim(left=0)
    figure.supxlabel("examples trained on", fontsize=9)
    figure.supylabel(label, fontsize=9)
    return figure


def _curve(points: list[dict[str, float]], scale: float) -> tuple[list[float], list[float]]:
    """Examples, and the first quantity of a curve's points."""
    name = next(key for key in points[0] if key not in ("step", "examples"))
    return [point["examples"] for point in points], [scale * point[name] for point in points]


def grid(results: FinetuneResults) -> Figure | None:
    """Per task: the mean score against the learning rate, a line for each batch size; None without a choice."""
    settings = {task: results.settings(task) for task in results.tasks}
    if all(len({rate for rate, _ in found}) < 2 for found in settings.values()):
        return None
    figure, panels = _panels(results)
    batch_sizes = sorted({batch for found in settings.values() for _, batch in found})
    for axes, task in zip(panels, results.tasks, strict=True):
        for number, batch_size in enumerate(batch_sizes):
            _line_of_grid(axes, results, task, batch_size, number)
        axes.set_title(tables.heading(results, task))
        axes.set_xscale("log")
        axes.set_xticks(sorted({rate for rate, _ in settings[task]}))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
        axes.tick_params(axis="x", labelsize=7)
    figure.supxlabel("peak learning rate", fontsize=9)
    figure.supylabel("score (points)", fontsize=9)
    drawing.legend_above(figure, panels[0])
    return figure


def _line_of_grid(axes: Axes, results: FinetuneResults, task: str, batch_size: int, number: int) -> None:
    rates = sorted(rate for rate, batch in results.settings(task) if batch == batch_size)
    found = [(rate, score) for rate in rates if (score := results.scores(task, (rate, batch_size)))]
    colour, marker, dash = drawing.look_of(number)
    how = {"color": colour, "linestyle": dash, "marker": marker, "capsize": 2.5, "label": f"batch {batch_size}"}
    drawing.line_of_means(axes, found, 100, **how)


def _panels(results: FinetuneResults) -> tuple[Figure, list[Axes]]:
    return drawing.panels(len(results.tasks), lambda columns, rows: (1.0 + 2.2 * columns, 0.6 + 1.9 * rows))
