"""The table of what pays the teacher's training back."""

import math
from collections.abc import Mapping
from typing import Any

from kd_megatron.analysis import break_even
from kd_megatron.analysis.break_even import BreakEven
from kd_megatron.analysis.comparison import TITLES
from kd_megatron.analysis.crossover import paid_back
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.scaling import Fit
from kd_megatron.analysis.statistics import Estimate
from kd_megatron.console import units
from kd_megatron.report.page.table import Column, Table, texts


def table(results: StudyResults, found: list[BreakEven], laws: Mapping[str, Fit] | None = None) -> Table | None:
    """Per arm and quality: what is saved, and what pays the teacher back.

    Args:
        results: of the study.
        found: `break_even.all_break_evens`.
        laws: arm -> its law of the loss for students of this study's size, whose answer is then given too.
    """
    if not found:
        return None
    num_sharing = break_even.num_sharing(results)
    columns = [
        *texts("arm", quantity="measured by"),
        Column("readings", "readings a run"),
        Column("saved", "FLOPs saved per student", _flops_with_interval),
        *texts(finding="teacher is paid back by", interval="95 % interval"),
        Column("budget_alone", "break-even budget, 1 student", _budget),
        Column("budget_shared", f"the same, {num_sharing} students", _budget),
    ]
    by_laws = {one.arm: words_of for one in found if (words_of := _by_laws(results, one, laws or {}))}
    if by_laws:
        columns.append(Column("budget_by_laws", "break-even budget by the laws, 1 student", is_text=True))
    note = (
        f"Saved: FLOPs of {results.reference} less those after which the arm is as good as {results.reference} at its "
        "end, paired by seed. Paid back: when the teacher's training, divided by the students that share it, is no "
        "more than what each saves. Break-even budget: the smallest at which that many students pay it back (the full "
        f"one where none before it can be read off); none: not within the budgets measured. {_half_way(results)} The "
        "probe's loss favours arms that train MLM. See docs/statistics.md."
    )
    rows = [_row(one, num_sharing, by_laws) for one in found]
    return Table("break_even", "What pays the teacher's training back", columns, rows, note)


def _row(one: BreakEven, num_sharing: int, by_laws: Mapping[str, str]) -> dict[str, Any]:
    return {
        "arm": one.arm,
        "quantity": TITLES[one.quantity],
        "readings": one.num_readings,
        "saved": one.saved,
        "finding": one.in_words,
        "students": one.students,
        "interval": _interval_in_words(one.interval),
        "teacher_flops": one.teacher_flops,
        "budget": one.budget,
        "budget_alone": _budget_for(one, 1),
        "budget_shared": _budget_for(one, num_sharing),
        "budget_by_laws": by_laws.get(one.arm) if one.quantity == "probe_loss" else None,
    }


def _half_way(results: StudyResults) -> str:
    if any(marker.decayed for run in results.all_runs() for marker in run.branches):
        return "Readings on the way are of branches whose learning rate came down."
    return (
        "Half-way a learning rate has not come down, so what an arm saves at the full budget is understated; at "
        "smaller budgets this holds for both arms, and what is read there may be too low or too high."
    )


def _by_laws(results: StudyResults, one: BreakEven, laws: Mapping[str, Fit]) -> str | None:
    """The break-even budget of one student by the laws of the arm and of the reference; None without these."""
    if one.arm not in laws or results.reference not in laws or one.teacher_flops is None:
        return None
    arm, reference = ((laws[name], _price(results, name)) for name in (one.arm, results.reference))
    paid = paid_back(arm, reference, one.teacher_flops)
    high = "none" if math.isinf(paid.high) else units.flops(paid.high)
    if paid.at is None:
        low = "" if math.isinf(paid.low) else f" (interval from {units.flops(paid.low)})"
        return f"none up to 100 times the budgets measured{low}"
    far = ", extrapolated" if paid.is_extrapolated else ""
    return f"{units.flops(paid.at)} [{units.flops(paid.low)} to {high}]{far}"


def _price(results: StudyResults, arm: str) -> float:
    """FLOPs that a token costs."""
    runs = results.runs[arm].values()
    return math.fsum(run.summary.flops for run in runs) / math.fsum(run.summary.tokens for run in runs)


def _flops_with_interval(value: Estimate | None) -> str:
    if value is None:
        return units.NOTHING
    show = [units.signless(units.flops(end)) for end in (value.mean, value.low, value.high) if end is not None]
    return show[0] + (f" [{show[1]}, {show[2]}]" if len(show) == 3 else "")


def _interval_in_words(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return units.NOTHING
    few, many = ("never" if math.isinf(end) else f"{end:,.0f}" for end in interval)
    return few if few == many else f"{few} to {many}"


def _budget_for(one: BreakEven, num_students: int) -> float | str | None:
    return "unknown" if one.teacher_flops is None else one.budget_for(num_students)


def _budget(value: float | str | None) -> str:
    return value if isinstance(value, str) else "none" if value is None else units.flops(value)
