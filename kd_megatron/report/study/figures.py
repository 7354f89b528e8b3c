"""The report's figures, for a paper's column: units on every axis, readable in grey (marker and dash beside colour).

Colours are Okabe and Ito's (2008), which people with colour-blindness can tell apart.
"""

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from kd_megatron.analysis.curves import PROBE_METRIC
from kd_megatron.analysis.measure import Measure, measure_of
from kd_megatron.analysis.results import StudyResults
from kd_megatron.report.page import drawing
from kd_megatron.report.study import tables
from kd_megatron.report.study.tables import activity_in_words

ACTIVITY_STYLE = {
    "student": ("#0072B2", ""),
    "teacher": ("#E69F00", "///"),
    "loss": ("#009E73", "..."),
    "data_wait": ("#D55E00", "xxx"),
    "other": ("#BBBBBB", ""),
}


def scores(results: StudyResults) -> Figure | None:
    """Score per arm: seeds as points, mean and 95 % interval beside them; probe loss when nothing is fine-tuned."""
    return dots(results, measure_of(results))


def dots(results: StudyResults, measure: Measure) -> Figure | None:
    """One measure per arm; None where no arm has it."""
    arms = [arm for arm in results.arms if results.by_seed(arm, measure.quantity)]
    if not arms:
        return None
    figure, axes = pyplot.subplots(figsize=(5.2, 0.9 + 0.48 * len(arms)))
    _dots(axes, results, arms, measure, None)
    direction = "" if measure.higher_is_better else ", lower is better"
    name = "average score" if measure.quantity == "score" else measure.name
    axes.set_xlabel(f"{name} ({measure.unit}{direction})")
    return figure


def scores_by_task(results: StudyResults) -> Figure | None:
    """The same, one panel per task."""
    tasks = [task for task in results.tasks if any(results.by_seed(arm, "task", task) for arm in results.arms)]
    if len(tasks) < 2:
        return None
    height = 0.85 + 0.36 * len(results.arms)
    figure, grid = drawing.panels(len(tasks), lambda columns, rows: (0.9 + 1.9 * columns, height * rows), sharey=True)
    for axes, task in zip(grid, tasks, strict=True):
        _dots(axes, results, results.arms, Measure("task", task, "points", 100, 1, True), task)
        axes.set_title(tables.task_heading(results, task))
    figure.supxlabel("score (points)", fontsize=9)
    return figure


def _dots(axes: Axes, results: StudyResults, arms: list[str], measure: Measure, task: str | None) -> None:
    reference = results.mean(results.reference, measure.quantity, task)
    if reference:
        axes.axvline(measure.scale * reference.mean, **drawing.REFERENCE, zorder=1)
    for row, arm in enumerate(arms):
        if mean := results.mean(arm, measure.quantity, task):
            seeds = results.by_seed(arm, measure.quantity, task).values()
            colour, marker, _ = drawing.look(results, arm)
            how = {"marker": marker, "color": colour, "markersize": 7.5}
            drawing.mean_and_seeds(axes, row, mean, seeds, measure.scale, how, linewidth=1.8)
    drawing.rows_of(axes, arms)
    axes.margins(x=0.08)


def loss(results: StudyResults) -> Figure | None:
    """Probe MLM loss against tokens and against the budget: thin lines are seeds, thick ones their mean."""
    if not any(run.curve(PROBE_METRIC, "tokens")[0] for run in results.all_runs()):
        return None
    figure, panels = pyplot.subplots(1, 2, figsize=(7.2, 3.0), sharey=True)
    for axes, against in zip(panels, ("tokens", "budget_fraction"), strict=True):
        for arm in results.arms:
            curves = [run.curve(PROBE_METRIC, against) for run in results.runs[arm].values()]
            drawing.seeds_and_mean(axes, results, arm, [curve for curve in curves if curve[0]])
    panels[0].set_ylabel("held-out MLM loss, probe head (nats)")
    panels[0].set_xlabel("tokens seen")
    panels[0].xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[1].set_xlabel("fraction of the budget spent")
    panels[0].set_xlim(left=0)
    panels[1].set_xlim(0, 1.04)
    panels[1].legend(*panels[0].get_legend_handles_labels(), handlelength=3)
    return figure


def score_against_tokens(results: StudyResults) -> Figure | None:
    """One open point per run, one filled point per arm's mean."""
    if not any(run.score is not None for run in results.all_runs()):
        return None
    figure, axes = pyplot.subplots(figsize=(4.8, 3.2))
    for arm in results.arms:
        scored = [run for run in results.runs[arm].values() if run.score is not None]
        mean = results.mean(arm, "score")
        if mean is None:
            continue
        colour, marker, _ = drawing.look(results, arm)
        tokens = [float(run.summary.tokens) for run in scored]
        values = [100 * run.score for run in scored if run.score is not None]
        axes.plot(tokens, values, marker, mfc="none", mec=colour, markersize=4.5, linestyle="none")
        centre = sum(tokens) / len(tokens)
        axes.plot(centre, 100 * mean.mean, marker, color=colour, markersize=8, label=arm)
    axes.set_xlabel("tokens seen within the budget")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylabel("average score (points)")
    axes.margins(x=0.12)
    drawing.legend_beside(axes)
    return figure


def ledger(results: StudyResults) -> Figure | None:
    """Stacked bars: what the seconds and the FLOPs were spent on, mean over seeds."""
    if not results.arms:
        return None
    figure, panels = pyplot.subplots(1, 2, figsize=(7.2, 1.15 + 0.38 * len(results.arms)), sharey=True)
    for axes, unit in zip(panels, ("seconds", "flops"), strict=True):
        spent = {arm: tables.activities(list(results.runs[arm].values()), unit) for arm in results.arms}
        longest = max(sum(parts.values()) for parts in spent.values())
        scale, name = _clock_unit(longest) if unit == "seconds" else drawing.power_unit(longest)
        left = [0.0] * len(results.arms)
        for activity, (colour, hatch) in ACTIVITY_STYLE.items():
            widths = [spent[arm][activity] / scale for arm in results.arms]
            label = activity_in_words(results, activity)
            rows = range(len(results.arms))
            axes.barh(
                rows, widths, 0.66, left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4, label=label
            )
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.set_xlabel(name)
        drawing.rows_of(axes, results.arms, edge=0.5)
    drawing.legend_above(figure, panels[0])
    return figure


def _clock_unit(seconds: float) -> tuple[float, str]:
    if seconds < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")
