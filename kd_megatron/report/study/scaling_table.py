"""The laws of a study's arms for its report: which points, the table, and what the data cannot say."""

import math
from typing import Any

from kd_megatron.analysis.crossover import Crossover
from kd_megatron.analysis.laws import Laws
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.scaling import Fit, num_amounts
from kd_megatron.analysis.statistics import Estimate
from kd_megatron.console.units import NOTHING, by_arm, count, flops, percent, unit_in_words
from kd_megatron.report.page.table import Column, Table, numbers, texts


def table(study: StudyResults, found: Laws) -> Table | None:
    """Per arm: floor, exponent and the crossover with the reference; None when no arm has a law."""
    if not found.fitted:
        return None
    unit = unit_in_words(study.recipe.budget.unit)
    columns = [
        *texts("arm"),
        *numbers(num_points="points", amounts="amounts of text"),
        *numbers(_with_interval, floor="floor E (nats)", exponent="exponent alpha"),
        Column("deviation", "scatter", percent),
        Column("crossover", f"order with {study.reference} changes at ({unit})", is_text=True),
    ]
    rows = [_row(study, found, arm, law) for arm, law in found.fitted.items()]
    units = {"points": "points around the law", "seeds": "whole seeds"}
    resampled = " or ".join(sorted({units[law.unit] for law in found.fitted.values()}))
    note = (
        "L(D) = E + A D^-alpha through the probe's held-out loss, least squares on log L; in brackets 95 % intervals "
        f"by bootstrap, resampling {resampled}. The crossover is at equal budgets, where arms see different amounts of "
        f"text; it is looked for up to 100 times the largest budget.{_sizes_in_words(found)} What laws say of an "
        "order describes fitted curves: it is corrected for nothing, and is no verdict. See docs/statistics.md."
    )
    return Table("scaling", "", columns, rows, note)


def _sizes_in_words(found: Laws) -> str:
    """The terms of size, and the size that is asked about; empty where none was fitted."""
    terms = {arm: term for arm, law in found.fitted.items() if (term := law.size_term)}
    if not terms:
        return ""
    listed = "; ".join(f"{arm}: B {scale:.3g}, beta {power:.3g}" for arm, (scale, power) in terms.items())
    own = by_arm({arm: count(found.sizes[arm]) for arm in terms})
    return (
        f" Students differ in size, so the laws have a term B N^-beta as well ({listed}); crossovers, break-even "
        f"budgets and the figure are for N = {own} parameters, this study's own."
    )


def _with_interval(value: Estimate) -> str:
    return f"{value.mean:.3g} [{value.low:.3g}, {value.high:.3g}]"


def _row(study: StudyResults, found: Laws, arm: str, law: Fit) -> dict[str, Any]:
    return {
        "arm": arm,
        "num_points": len(law.points),
        "amounts": num_amounts(law.points),
        "floor": Estimate(len(law.points), law.floor, *law.interval(0)),
        "exponent": Estimate(len(law.points), law.exponent, *law.interval(2)),
        "coefficient": law.coefficient,
        "deviation": law.deviation,
        "crossover": _change_in_words(found, arm, study.reference),
    }


def _change_in_words(found: Laws, arm: str, reference: str) -> str:
    change = found.crossovers.get(arm)
    if change is None:
        return NOTHING
    if found.objection:
        return f"{found.objection}: none"
    other = reference if change.better_after == arm else arm
    if change.at is None:
        share = change.share_throughout
        sure = "" if share >= 0.975 else f", throughout in {100 * share:.0f} % of resamples"
        return f"none in the budgets searched: {change.better_after} is lower than {other}{sure}"
    if not change.is_known:
        return f"cannot be said: {_ends(change)}"
    far = ", extrapolated" if change.is_extrapolated else ""
    return f"{flops(change.at)} [{_ends(change)}]{far}; {change.better_after} is lower beyond"


def _ends(change: Crossover) -> str:
    low = "below all budgets" if change.low <= 0 else flops(change.low)
    high = "beyond 100 times the largest" if math.isinf(change.high) else flops(change.high)
    return f"{low} to {high}"
