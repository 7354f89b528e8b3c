"""How sure a number is: intervals of means, differences paired by seed, corrections, effect sizes, sources of variance.

The unit of replication is the pretraining seed: a student's score is the mean over its fine-tuning seeds, and the n of
every interval counts students. Scores have two levels, students and their fine-tunings; an interval is never narrower
than fine-tunings alone would make it (``floor``). Formulae, sources and what none of this can say: docs/statistics.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from kd_megatron.console.units import counted
from kd_megatron.errors import RecipeError
from kd_megatron.study.power import ERROR_RATE

CONFIDENCE = 1 - ERROR_RATE
Method = Literal["t", "bootstrap"]
FEWEST_FOR_BOOTSTRAP = 10  # below it, resampled means take few values and the interval is much too narrow
NUM_RESAMPLES = 9_999
ROUNDING = 1e-9  # of the largest value: differences of equal scores differ by less
RESAMPLING_SEED = 20_240_619


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval; ``low`` and ``high`` are None when n is below 2."""

    n: int
    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def has_interval(self) -> bool:
        """Whether there were at least two values."""
        return self.low is not None and self.high is not None

    @property
    def half_width(self) -> float | None:
        """Half the interval's width, None without one."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and zero lies outside it.

        Values that do not vary give an interval of no width, which is no evidence: two students at chance, one that
        always says yes and one that always says no, differ by the same amount with every seed.
        """
        return self.low is not None and self.high is not None and self.low < self.high and self.low * self.high > 0


def estimate(
    values: Sequence[float], confidence: float = CONFIDENCE, method: Method = "t", floor: float = 0.0
) -> Estimate | None:
    """Mean of ``values`` and its interval; None when there are none (or one of them is not finite).

    Args:
        values: one for each seed.
        floor: variance that each value has of its fine-tunings alone (`finetuning_variance`). Where the values vary by
            less, it is taken in place of their variance: what students have of their own is not below zero.
        method: ``"t"``: Student's, mean +- t * s / sqrt(n), for independent and roughly normal values; with two or
            three it is wide, and that is the honest answer. ``"bootstrap"``: `scipy.stats.bootstrap`'s BCa (Efron
            1987), which assumes no shape.

    Raises:
        RecipeError: a bootstrap interval of fewer than `FEWEST_FOR_BOOTSTRAP` values.
    """
    if not values or not all(math.isfinite(value) for value in values):
        return None
    num = len(values)
    mean = math.fsum(values) / num
    if method == "bootstrap":
        return Estimate(num, mean, *_bootstrap_interval(values, confidence))
    if num == 1:
        return Estimate(1, mean)
    half = _quantile((1 + confidence) / 2, num - 1) * _standard_error(values, floor)
    return Estimate(num, mean, mean - half, mean + half)


@cache
def _quantile(probability: float, degrees: int) -> float:
    from scipy import stats  # here: timing training steps imports this module and needs none of it

    return float(stats.t.ppf(probability, degrees))


def _standard_error(values: Sequence[float], floor: float) -> float:
    """Of the mean; zero for values that do not vary, whatever ``floor`` is: those are no evidence."""
    spread = deviation(values)
    return math.sqrt(max(spread**2, floor) / len(values)) if spread else 0.0


def _bootstrap_interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    if len(values) < FEWEST_FOR_BOOTSTRAP:
        raise RecipeError(
            given=f"a bootstrap interval of {counted(len(values), 'value')}, one for each seed",
            expected=f"at least {FEWEST_FOR_BOOTSTRAP} seeds: resampling fewer gives an interval that is too narrow",
            fix="use Student's t (--interval t), or run more seeds",
        )
    if deviation(values) == 0:
        return values[0], values[0]
    import numpy
    from scipy import stats

    generator = numpy.random.default_rng(RESAMPLING_SEED)
    found = stats.bootstrap(
        (values,), numpy.mean, confidence_level=confidence, n_resamples=NUM_RESAMPLES, method="BCa", rng=generator
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def verdict(plain: Estimate, corrected: Estimate, objection: str | None, in_words: str) -> str:
    """``in_words`` where the interval that holds together with its family's excludes zero, else why nothing is said.

    Args:
        objection: what takes the verdict away (`analysis.fitness`), in a word or two; None: nothing does.
    """
    if objection:
        return f"{objection}: none"
    if not plain.has_interval:
        return "one seed: no evidence"
    if plain.low == plain.high:
        return "no variation: undecided"
    return in_words if corrected.excludes_zero else "undecided"


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation, n - 1 in its denominator; of at least two values. Zero when rounding alone varies."""
    if max(values) - min(values) <= ROUNDING * max(map(abs, values)):
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def paired_values(arm: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    """``arm`` minus ``reference`` for each seed of both: pairs share data order and masks, whose noise cancels."""
    return [arm[seed] - reference[seed] for seed in sorted(arm.keys() & reference.keys())]


def paired_difference(
    arm: Mapping[int, float], reference: Mapping[int, float], method: Method = "t", floor: float = 0.0
) -> Estimate | None:
    """Mean of `paired_values` and its interval; None when they share no seed. Arguments and errors as of `estimate`."""
    return estimate(paired_values(arm, reference), method=method, floor=floor)


def simultaneous_confidence(num_comparisons: int) -> float:
    """What each of several intervals needs so that all hold together with `CONFIDENCE` (Bonferroni)."""
    return 1 - (1 - CONFIDENCE) / max(num_comparisons, 1)


def paired_p_value(differences: Sequence[float], floor: float = 0.0) -> float | None:
    """Two-sided p of the paired t-test that the mean difference is zero; None for fewer than two, or no variation.

    Args:
        differences: one for each seed.
        floor: as of `estimate`; 0.0 gives `scipy.stats.ttest_1samp`.
    """
    if len(differences) < 2 or deviation(differences) == 0:
        return None
    from scipy import stats

    mean = math.fsum(differences) / len(differences)
    return float(2 * stats.t.sf(abs(mean) / _standard_error(differences, floor), len(differences) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the given order (Holm 1979): the k-th smallest of m times m - k + 1, never decreasing.

    Rejecting those at or below 0.05 keeps the chance of any false claim among the m below 0.05, however they depend
    on each other.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


Judged = tuple[Estimate, Estimate, int, float | None, float | None]  # plain, corrected, family's size, p, p by Holm


def judged(
    family: Sequence[Sequence[float]], method: Method, num_comparisons: int, floors: Sequence[float] | None = None
) -> list[Judged | None]:
    """What may be claimed of each mean difference of a family; None where a value is not finite.

    The corrected interval is Student's whatever the method: resampling ten values says nothing of one in a thousand.

    Args:
        family: of each member, the differences seed by seed.
        method: of the plain interval, as of `estimate`.
        num_comparisons: of the family, known before its values are: those without a value count, and have p = 1.
        floors: of each member, as of `estimate`; None: 0.0.
    """
    num = max(num_comparisons, len(family))
    floors = floors or [0.0] * len(family)
    p_values = [paired_p_value(differences, floor) for differences, floor in zip(family, floors, strict=True)]
    adjusted = holm([*(1.0 if p is None else p for p in p_values), *[1.0] * (num - len(family))])[: len(family)]
    found: list[Judged | None] = []
    for differences, floor, p, by_holm in zip(family, floors, p_values, adjusted, strict=True):
        plain = estimate(differences, CONFIDENCE, method, floor)
        corrected = estimate(differences, simultaneous_confidence(num), "t", floor)
        found.append((plain, corrected, num, p, None if p is None else by_holm) if plain and corrected else None)
    return found


def hedges_g(differences: Sequence[float]) -> float | None:
    """Paired standardised mean difference with Hedges' (1981) correction: mean / s * J(n - 1), in deviations.

    s is the deviation of the differences (Lakens 2013 calls the result g_z), and
    J(m) = Gamma(m / 2) / (sqrt(m / 2) Gamma((m - 1) / 2)) takes away the bias of small samples.

    Returns:
        None for fewer than three differences, where the correction does not exist, and where they do not vary.
    """
    degrees = len(differences) - 1
    if degrees < 2 or deviation(differences) == 0:
        return None
    correction = math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees - 1) / 2)) / math.sqrt(degrees / 2)
    return math.fsum(differences) / len(differences) / deviation(differences) * correction


@dataclass(frozen=True)
class VarianceComponents:
    """Where a score's noise comes from, as standard deviations in the score's unit."""

    pretraining: float  # between students, beyond what fine-tuning explains
    finetuning: float  # between fine-tuning seeds of one student
    num_students: int
    num_scores: int


def finetuning_variance(scores: Sequence[Sequence[float]]) -> float:
    """Variance of a student's mean score by its fine-tunings alone: mean square within, times the mean of 1 / n_i.

    Args:
        scores: for each student, the score of each fine-tuning seed; those with one alone say nothing of it.

    Returns:
        In the score's unit squared; 0.0 where no student has two scores.
    """
    groups = [group for group in scores if len(group) > 1]
    if not groups:
        return 0.0
    squares = math.fsum(deviation(group) ** 2 * (len(group) - 1) for group in groups)
    within = squares / sum(len(group) - 1 for group in groups)
    return within * math.fsum(1 / len(group) for group in groups) / len(groups)


def variance_components(scores: Sequence[Sequence[float]]) -> VarianceComponents | None:
    """Split the variance of scores by one-way random-effects analysis of variance (Searle, Casella, McCulloch 1992).

    Args:
        scores: for each pretraining seed, the score of each fine-tuning seed.

    Returns:
        None unless two students have two scores each. An estimate of variance below zero is given as zero.
    """
    groups = [list(group) for group in scores if group]
    total, num_groups = sum(map(len, groups)), len(groups)
    if sum(len(group) > 1 for group in groups) < 2:
        return None
    means = [math.fsum(group) / len(group) for group in groups]
    grand = math.fsum(value for group in groups for value in group) / total
    within = math.fsum((value - mean) ** 2 for group, mean in zip(groups, means, strict=True) for value in group) / (
        total - num_groups
    )
    between = math.fsum(len(group) * (mean - grand) ** 2 for group, mean in zip(groups, means, strict=True)) / (
        num_groups - 1
    )
    per_group = (total - sum(len(group) ** 2 for group in groups) / total) / (num_groups - 1)
    return VarianceComponents(math.sqrt(max(0.0, between - within) / per_group), math.sqrt(within), num_groups, total)
