"""How likely so many students of an arm are to show an effect (docs/statistics.md)."""

import functools
import math

from kd_megatron.recipe import StudyRecipe

LEVEL = 0.05  # the chance of any false claim in a family of comparisons
PLAIN_EFFECT = 2.0  # standard deviations of the paired differences
ENOUGH_POWER = 0.8


def power(effect: float, num_pairs: int, num_comparisons: int = 1) -> float:
    """The chance that a paired t-test finds a mean difference of ``effect`` standard deviations. Exact.

    Args:
        num_pairs: students of an arm, paired by seed; at least two.
        num_comparisons: of the family, each of which is tested at 0.05 divided by it.
    """
    from scipy import stats

    degrees, shift = num_pairs - 1, effect * math.sqrt(num_pairs)
    critical = float(stats.t.isf(LEVEL / num_comparisons / 2, degrees))
    beyond, opposite = stats.nct.sf(critical, degrees, shift), stats.nct.cdf(-critical, degrees, shift)
    return float(beyond) + (float(opposite) if math.isfinite(opposite) else 0.0)  # too small for scipy: not a number


@functools.cache
def fewest_students(num_comparisons: int) -> int:
    """The fewest pairs with which `power` for an effect of `PLAIN_EFFECT` deviations reaches `ENOUGH_POWER`."""
    num = 2
    while power(PLAIN_EFFECT, num, num_comparisons) < ENOUGH_POWER:
        num += 1
    return num


def students_needed(recipe: StudyRecipe, num_comparisons: int) -> int:
    """The students of an arm with which a family of comparisons gives verdicts: by the protocol, else by power."""
    fixed = recipe.protocol.students if recipe.protocol else None
    return fewest_students(num_comparisons) if fixed is None else fixed
