"""Figures of quality along the budget: scores at markers, the laws, and what pays the teacher back.

Each returns None where the study has no data for it.
"""

import math
from collections.abc import Callable, Sequence

import numpy
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from kd_megatron.analysis import curves
from kd_megatron.analysis.break_even import BreakEven, num_sharing
from kd_megatron.analysis.curves import CurvePoint
from kd_megatron.analysis.laws import Laws
from kd_megatron.analysis.results import FinishedRun, StudyResults
from kd_megatron.report.page import drawing

COLA = "CoLA"
LOSS = "held-out MLM loss, probe head (nats)"
MOST_STUDENTS = 1e6  # at the top of the axis


def score_against_budget(results: StudyResults) -> Figure | None:
    """Average score of the branches and of the last student, against the fraction of the budget."""
    return _scores(results, None, "fraction")


def cola_against_tokens(results: StudyResults) -> Figure | None:
    """CoLA, which gains most from text, against the tokens seen."""
    return _scores(results, COLA, "tokens") if COLA in results.tasks else None


def loss_against_budget(results: StudyResults) -> Figure | None:
    """Held-out loss of the branches and of the last student, against the fraction of the budget."""
    if not any(run.branches for run in results.all_runs()):
        return None
    return _against(results, "fraction", lambda run: curves.readings(results, run, "probe_loss"), LOSS, 1.0)


def _scores(results: StudyResults, task: str | None, against: str) -> Figure | None:
    if not any(len(curves.score_readings(run, task)) > 1 for run in results.all_runs()):
        return None

    def read(run: FinishedRun) -> list[CurvePoint]:
        found = curves.score_readings(run, task)
        return found if len(found) > 1 else []

    return _against(results, against, read, f"{task or 'average score'} (points)", 100.0)


def _against(
    results: StudyResults, against: str, read: Callable[[FinishedRun], list[CurvePoint]], label: str, scale: float
) -> Figure:
    """What is read of each run, against the ``"fraction"`` of the budget or the ``"tokens"``."""
    figure, axes = pyplot.subplots(figsize=(4.8, 3.2))
    for arm in results.arms:
        found = [points for run in results.runs[arm].values() if (points := read(run))]
        lines = [([getattr(one, against) for one in points], [scale * one.value for one in points]) for points in found]
        drawing.seeds_and_mean(axes, results, arm, lines)
    axes.set_xlabel("tokens seen" if against == "tokens" else "fraction of the budget spent")
    if against == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylabel(label)
    axes.set_xlim(left=0)
    drawing.legend_beside(axes, handlelength=3)
    return figure


def scaling(results: StudyResults, laws: Laws) -> Figure | None:
    """Losses and the laws through them, with their 95 % bands, up to ten times the most text.

    With students of several sizes the laws are those of this study's size, and points of other sizes are pale.
    """
    if not laws.fitted:
        return None
    figure, axes = pyplot.subplots(figsize=(5.4, 3.4))
    for arm, law in laws.of_own_size.items():
        colour, marker, dash = drawing.look(results, arm)
        fewest, most = law.token_range
        tokens = numpy.geomspace(fewest, 10 * most, 120)
        low, high = numpy.percentile(law.predict(tokens, draws=True), [2.5, 97.5], axis=0)
        axes.fill_between(tokens, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(tokens, law.predict(tokens), color=colour, linestyle=dash, label=arm)
        for is_own, opacity in ((True, 1.0), (False, 0.35)):
            shown = [point for point in law.points if (point.parameters == laws.sizes[arm]) == is_own]
            x, y = [point.tokens for point in shown], [point.loss for point in shown]
            axes.plot(x, y, marker, color=colour, mfc="none", markersize=4, linestyle="none", alpha=opacity)
    axes.axvline(max(law.token_range[1] for law in laws.fitted.values()), color="#777777", linewidth=0.9)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.set_xlabel("tokens seen (beyond the grey line: extrapolated)")
    axes.set_ylabel(LOSS)
    drawing.legend_beside(axes, handlelength=3)
    return figure


def _intervals(axes: Axes, results: StudyResults, found: Sequence[BreakEven], scale: float) -> None:
    """Bars of the break-even n at the full budget, side by side; "never" ends above the figure."""
    known = [(one, one.interval) for one in found if one.interval]
    for place, (one, (low, high)) in enumerate(known, start=1):
        if math.isfinite(low):
            where = one.budget * (1 + 0.02 * place) / scale
            colour, _, _ = drawing.look(results, one.arm)
            axes.vlines(where, low, min(high, 10 * MOST_STUDENTS), color=colour, linewidth=1.4)


def break_even(results: StudyResults, found: Sequence[BreakEven]) -> Figure | None:
    """Against the budget, the number of students that must share the teacher before an arm is the cheaper way."""
    shown = [
        (one, [(budget, one.teacher_flops / saved) for budget, saved in one.curve if saved > 0])
        for one in found
        if one.teacher_flops is not None
    ]
    shown = [(one, curve) for one, curve in shown if curve]
    if not shown:
        return None
    figure, axes = pyplot.subplots(figsize=(5.2, 3.2))
    scale, unit = drawing.power_unit(max(budget for _, curve in shown for budget, _ in curve))
    for one, curve in shown:
        colour, marker, dash = drawing.look(results, one.arm)
        quality = "score" if one.quantity == "score" else "held-out loss"
        axes.plot(
            [budget / scale for budget, _ in curve],
            [students for _, students in curve],
            color=colour,
            linestyle=dash if one.quantity == "score" else ":",
            marker=marker,
            markevery=max(1, len(curve) // 6),
            markersize=4.5,
            label=f"{one.arm}, by {quality}" + ("" if one.is_ahead else "\n(lead undecided)"),
        )
    axes.axhline(num_sharing(results), **drawing.REFERENCE)
    axes.set_yscale("log")
    ends = [end for one, _ in shown for end in one.interval or () if math.isfinite(end)]
    axes.set_ylim(top=min(max([axes.get_ylim()[1], *(1.5 * end for end in ends)]), MOST_STUDENTS))
    _intervals(axes, results, [one for one, _ in shown], scale)
    axes.set_xlabel(f"budget of {results.reference} for each student ({unit})")
    axes.set_ylabel("students that must share the teacher")
    drawing.legend_beside(axes, handlelength=3)
    return figure
