"""What the teacher's own training is worth: how many students, or how large a budget, pay it back.

At a budget C, the reference reaches a quality Q(C). The arm reaches the same quality for c(C), teacher's forward passes
included, its training not. It saves C - c(C) for each student. With T FLOPs for the teacher's training, shared by n
students, the arm is the cheaper way to Q(C) when T / n <= C - c(C):

    break-even n at C          the smallest whole n at or above T / (C - c(C))
    break-even budget for n    the smallest C with C - c(C) >= T / n

Both are read off measured curves, with straight lines between readings in (log FLOPs, quality); nothing is
extrapolated. A student owes the teacher when it learns from it or begins from its layers; where the reference owes it
as well, T is common to both and there is nothing to pay back.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from kd_megatron.analysis import comparisons, curves
from kd_megatron.analysis.curves import CurvePoint
from kd_megatron.analysis.measure import PROBE, SCORE
from kd_megatron.analysis.once import once
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.statistics import Estimate, estimate

NUM_PLACES = 200  # of budgets between the first reading of the reference and its last


@dataclass(frozen=True)
class BreakEven:
    """One arm against the reference, in one quality, at the full budget."""

    arm: str
    quantity: str
    budget: float  # FLOPs of the reference, mean over the seeds
    saved: Estimate | None  # FLOPs per student, over seeds that reach the reference's quality; None: not all of them do
    num_seeds: int
    num_reaching: int
    num_readings: int  # of the arm's curve, in the seed with the fewest
    is_ahead: bool  # whether its lead at the end is beyond doubt (`Comparison.verdict`)
    teacher_flops: float | None
    curve: tuple[tuple[float, float], ...]  # (budget, FLOPs saved), means over the seeds, where all of them reach it

    @property
    def students(self) -> float | None:
        """Break-even n; infinity when nothing is saved; None when it is unknown."""
        return None if self.saved is None else self._students(self.saved.mean)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The n of the ends of the interval of what is saved; None without one."""
        if self.saved is None or self.saved.low is None or self.saved.high is None or self.teacher_flops is None:
            return None
        return self._students(self.saved.high) or 1.0, self._students(self.saved.low) or math.inf

    def _students(self, saved: float) -> float | None:
        if self.teacher_flops is None:
            return None
        return float(math.ceil(self.teacher_flops / saved)) if saved > 0 else math.inf

    def budget_for(self, num_students: int) -> float | None:
        """Break-even budget for so many students, in FLOPs; None when no measured budget is large enough.

        The full budget where it pays and nothing before it can be read off: a smaller one may do as well.
        """
        if self.teacher_flops is None:
            return None
        share = self.teacher_flops / num_students
        whole = [(self.budget, self.saved.mean)] if self.saved is not None else []
        return next((budget for budget, saved in (*self.curve, *whole) if saved >= share), None)

    @property
    def in_words(self) -> str:
        """The finding, or why there is none."""
        if self.num_reaching < self.num_seeds or self.saved is None:
            missed = self.num_seeds - self.num_reaching
            return f"the reference's result is not reached in {missed} of {self.num_seeds} seeds"
        if self.teacher_flops is None:
            return "unknown: nobody stated what the teacher's training cost"
        if self.saved.mean <= 0:
            surely = self.saved.high is not None and self.saved.high <= 0
            return "never: nothing is saved" if surely else "never, by the mean of the seeds: undecided"
        students = f"{self.students:,.0f} student{'' if self.students == 1 else 's'}"
        if not self.is_ahead:  # seeds in which it is ahead by chance save something, the others count as not reaching
            return f"{students}, if it is ahead at all: undecided"
        if self.saved.low is not None and self.saved.low <= 0:
            return f"{students}, or never: the interval of what is saved includes zero"
        return students


@once
def break_even(results: StudyResults, arm: str, quantity: str, teacher_flops: float | None) -> BreakEven | None:
    """Compare ``arm`` with the reference; None without readings of both at two points of one seed's budget."""
    sign = -1.0 if quantity == "probe_loss" else 1.0
    pairs = []
    for seed in sorted(results.runs.get(arm, {}).keys() & results.runs.get(results.reference, {}).keys()):
        both = (results.runs[name][seed] for name in (arm, results.reference))
        own, reference = (curves.readings(results, run, quantity) for run in both)
        if len(own) >= 2 and reference:
            pairs.append((own, reference))
    if not pairs:
        return None
    saved = []
    for own, reference in pairs:
        needed = flops_to_reach(own, sign * reference[-1].value, sign)
        if needed is not None:
            saved.append(reference[-1].flops - needed)
    budget = math.fsum(reference[-1].flops for _, reference in pairs) / len(pairs)
    whole = estimate(saved, method="t") if len(saved) == len(pairs) else None
    curve = tuple(_saved_curve(pairs, sign))
    fewest = min(len(own) for own, _ in pairs)
    ahead = any(one.arm == arm and one.verdict == "better" for one in comparisons.overall(results, quantity))
    return BreakEven(arm, quantity, budget, whole, len(pairs), len(saved), fewest, ahead, teacher_flops, curve)


def flops_to_reach(readings: Sequence[CurvePoint], target: float, sign: float) -> float | None:
    """FLOPs from which a run is at least as good as ``target`` up to its end; None when its end is not.

    Args:
        target: times ``sign``.
        sign: 1 when higher values are better, -1 when lower ones are.
    """
    values = [sign * reading.value for reading in readings]
    if values[-1] < target:
        return None
    last = max((index for index, value in enumerate(values) if value < target), default=None)
    if last is None:  # reached at the first reading: no later than that
        return readings[0].flops
    share = (target - values[last]) / (values[last + 1] - values[last])
    return readings[last].flops * (readings[last + 1].flops / readings[last].flops) ** share


def _saved_curve(pairs: list[tuple[list[CurvePoint], list[CurvePoint]]], sign: float) -> list[tuple[float, float]]:
    first = max(reference[0].flops for _, reference in pairs)
    last = min(reference[-1].flops for _, reference in pairs)
    found = []
    for budget in numpy.geomspace(first, last, NUM_PLACES) if first < last else []:
        saved = []
        for own, reference in pairs:
            places = numpy.log([reading.flops for reading in reference])
            quality = float(numpy.interp(math.log(budget), places, [sign * reading.value for reading in reference]))
            needed = flops_to_reach(own, quality, sign)
            # a run whose first reading is already as good may have been so before: nothing is read off there
            if needed is not None and needed > own[0].flops:
                saved.append(float(budget) - needed)
        if len(saved) == len(pairs):
            found.append((float(budget), math.fsum(saved) / len(saved)))
    return found


@once
def all_break_evens(results: StudyResults) -> list[BreakEven]:
    """Every arm that owes the teacher, by score where there are scores on the way, and by held-out loss.

    Empty where the reference owes it as well: see `common_cost`.
    """
    if results.owes_the_teacher(results.reference):
        return []
    cost, _ = teacher_flops(results)
    found = (
        break_even(results, arm, quantity, cost)
        for arm in results.arms
        if results.owes_the_teacher(arm)
        for quantity in (SCORE.quantity, PROBE.quantity)
    )
    return [one for one in found if one]


@once
def num_sharing(results: StudyResults) -> int:
    """How many finished students of the study owe the teacher, and so share its training."""
    return sum(len(results.runs[arm]) for arm in results.arms if results.owes_the_teacher(arm))


def common_cost(results: StudyResults) -> str | None:
    """Why there is no break-even where the reference owes the teacher; None where it does not."""
    if not results.owes_the_teacher(results.reference):
        return None
    how = "begins from" if results.begins_from_teacher(results.reference) else "learns from"
    return (
        f"No break-even is given, because the reference ({results.reference}) {how} the teacher as well: its cost is "
        "common to both."
    )


@once
def teacher_flops(results: StudyResults) -> tuple[float | None, str]:
    """(FLOPs of the teacher's own training or None, where the figure comes from)."""
    if results.teacher:
        return float(results.teacher.flops), "trained by this study; its ledger"
    # the recipe is all there is where students begin from the teacher and none learns from it
    stated = next((run.summary.teacher for run in results.all_runs() if run.summary.teacher), results.recipe.teacher)
    if stated is None or not stated.cost_flops:
        return stated.cost_flops if stated else None, "not stated in the recipe: unknown"
    return stated.cost_flops, stated.cost_source or "no source given"
