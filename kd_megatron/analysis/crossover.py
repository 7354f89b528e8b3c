"""What two arms' laws say of budgets: where one falls below the other, and where a teacher is paid back."""

import math
from dataclasses import dataclass

import numpy

from kd_megatron.analysis.scaling import Array, Fit

FARTHEST = 100.0  # times the largest budget measured: the search ends there
NUM_PLACES = 600  # of the search, evenly spaced in the logarithm


@dataclass(frozen=True)
class Crossover:
    """The last change of order between two arms in the budgets searched; None: there is none.

    ``low`` and ``high`` are the ends of its 95 % interval: 0.0 is below all budgets, infinity beyond the search.
    """

    at: float | None
    low: float
    high: float
    better_after: str  # the arm that is lower at the end of the search
    measured: tuple[float, float]  # budgets at which both arms were measured
    share_throughout: float  # of draws in which that arm is lower at every budget searched

    @property
    def is_extrapolated(self) -> bool:
        """Whether it lies outside the budgets measured."""
        return self.at is not None and not self.measured[0] <= self.at <= self.measured[1]

    @property
    def is_known(self) -> bool:
        """Whether there is one with an interval that ends, narrower than the budgets measured reach."""
        if self.at is None or self.low <= 0 or math.isinf(self.high):
            return False
        return self.high / self.low <= self.measured[1] / self.measured[0]


def crossover(first: tuple[str, Fit, float], second: tuple[str, Fit, float]) -> Crossover:
    """Compare two arms at equal budgets.

    Args:
        first: name of the arm, its law for students of the size asked about (`Fit.of_size`), and what a token costs it
            in the budget's unit.
        second: the same of the other arm.

    Returns:
        The crossover of the laws. Its interval holds 95 % of the crossovers of draws, which are paired at random. A
        draw without one counts as below or beyond all budgets, by which arm is lower throughout.
    """
    (name_a, fit_a, cost_a), (name_b, fit_b, cost_b) = first, second
    lows, highs = zip(*([cost * end for end in fit.token_range] for _, fit, cost in (first, second)), strict=True)
    measured = (max(lows), min(highs))
    budgets = numpy.geomspace(min(lows), FARTHEST * max(highs), NUM_PLACES)
    gap = fit_a.predict(budgets / cost_a) - fit_b.predict(budgets / cost_b)
    after_is_first = bool(gap[-1] < 0)
    num = min(len(fit_a.draws), len(fit_b.draws))
    gaps = fit_a.predict(budgets / cost_a, draws=True)[:num] - fit_b.predict(budgets / cost_b, draws=True)[:num]
    if not after_is_first:  # from here on: below zero where the arm that ends lower is lower
        gap, gaps = -gap, -gaps
    found = numpy.sort([_last_change(row, budgets) for row in gaps])
    low, high = found[int(0.025 * (num - 1))], found[math.ceil(0.975 * (num - 1))]
    at = _last_change(gap, budgets)
    return Crossover(
        None if at == 0.0 else at,
        float(low),
        float(high),
        name_a if after_is_first else name_b,
        (float(measured[0]), float(measured[1])),
        float((found == 0.0).mean()),
    )


def _last_change(gap: Array, budgets: Array) -> float:
    """The budget from which ``gap`` is below zero to the end; 0.0 when everywhere, infinity when not at the end."""
    if gap[-1] >= 0:
        return math.inf
    above = numpy.flatnonzero(gap >= 0)
    if not len(above):
        return 0.0
    last = int(above[-1])
    share = float(gap[last] / (gap[last] - gap[last + 1]))
    return float(budgets[last] * (budgets[last + 1] / budgets[last]) ** share)


@dataclass(frozen=True)
class PaidBack:
    """The smallest budget at which an arm saves its share of the teacher; None: none up to the end of the search."""

    at: float | None
    low: float
    high: float  # infinity: beyond the search
    is_extrapolated: bool


def paid_back(arm: tuple[Fit, float], reference: tuple[Fit, float], share: float) -> PaidBack:
    """Break-even budget by the laws (docs/statistics.md): C less what the arm needs for the reference's loss at C.

    Args:
        arm: its law for students of the size asked about (`Fit.of_size`), and the FLOPs of a token, the teacher's
            forward pass included.
        reference: the same.
        share: FLOPs of the teacher's training for one student.

    Returns:
        In FLOPs, with the 95 % interval over draws, which are paired at random.
    """
    ends = [price * end for fit, price in (arm, reference) for end in fit.token_range]
    budgets = numpy.geomspace(min(ends), FARTHEST * max(ends), NUM_PLACES)
    at = float(_paid_at(arm, reference, share, budgets, draws=False)[0])
    found = numpy.sort(_paid_at(arm, reference, share, budgets, draws=True))
    low, high = found[int(0.025 * (len(found) - 1))], found[math.ceil(0.975 * (len(found) - 1))]
    return PaidBack(
        None if math.isinf(at) else at, float(low), float(high), at > reference[0].token_range[1] * reference[1]
    )


def _paid_at(arm: tuple[Fit, float], reference: tuple[Fit, float], share: float, budgets: Array, draws: bool) -> Array:
    """[draws] (or [1]) smallest budgets at which enough is saved, infinity where none is."""
    (own, own_price), (other, price) = arm, reference
    target = numpy.atleast_2d(other.predict(budgets / price, draws=draws))
    num = min(len(target), len(own.draws))
    needed = own.tokens_for(target[:num], draws) * own_price
    enough = budgets - needed >= share
    return numpy.where(enough.any(axis=1), budgets[enough.argmax(axis=1)], numpy.inf)
