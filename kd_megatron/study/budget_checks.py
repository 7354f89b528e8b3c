"""A budget that is too small for what the recipe asks is refused before anything is spent.

`require_enough` needs no data and no GPU where the unit is tokens or FLOPs; of hours it can judge only when somebody
says how fast an arm is.
"""

import math

from kd_megatron.errors import RecipeError
from kd_megatron.recipe import BudgetRecipe, StudyRecipe

SLACK = 1e-9  # of a step: a fraction that falls on the end of a step, but for rounding, is reached there


def require_enough(
    recipe: StudyRecipe,
    arm: str,
    flops_per_token: float,
    tokens_per_second: float | None = None,
    num_devices: int = 1,
) -> None:
    """Refuse a budget below one optimizer step of ``arm``, or with fewer steps than ``validation.at`` has places.

    Args:
        recipe: the study; the budget of a teacher that it trains is not looked at.
        arm: the one to look at.
        flops_per_token: charged FLOPs per token of it.
        tokens_per_second: of it, all devices together; without it, hours are not judged.
        num_devices: that share the work, for budgets in GPU hours.

    Raises:
        RecipeError: the arm, what a step of it costs, and the least budget that will do.
    """
    if price := step_price(recipe, flops_per_token, tokens_per_second, num_devices):
        _require_a_step(recipe.budget, arm, price)
        _require_the_validations(recipe, arm, price)


def step_price(
    recipe: StudyRecipe, flops_per_token: float, tokens_per_second: float | None = None, num_devices: int = 1
) -> float | None:
    """What one optimizer step takes off the budget, in the budget's unit; None when only the machine could tell."""
    tokens = recipe.training.global_batch_size * recipe.data.sequence_length
    if recipe.budget.unit == "tokens":
        return float(tokens)
    if recipe.budget.unit == "flops":
        return tokens * flops_per_token
    if tokens_per_second is None:
        return None
    hours = tokens / tokens_per_second / 3600.0
    return hours * num_devices if recipe.budget.unit == "gpu_hours" else hours


def steps_at(fractions: list[float], limit: float, price: float) -> list[int]:
    """The step after which each fraction of the budget is reached, as the training loop finds it."""
    return [math.ceil(fraction * limit / price - SLACK) for fraction in fractions]


def _require_a_step(budget: BudgetRecipe, arm: str, price: float) -> None:
    if budget.limit < price * (1.0 - SLACK):
        raise RecipeError(
            given=f"budget.{budget.unit} {budget.limit:.4g}: one optimizer step of arm {arm} costs {price:.4g}",
            expected="a budget of at least one step, and of some hundreds for a result that means something",
            fix=f"raise budget.{budget.unit} to {_rounded_up(price)} or more, or lower training.global_batch_size",
        )


def _require_the_validations(recipe: StudyRecipe, arm: str, price: float) -> None:
    """Two validations after one and the same step would be one measurement that the report shows as two."""
    budget, fractions = recipe.budget, sorted(set(recipe.validation.at))
    steps = steps_at(fractions, budget.limit, price)
    if len(set(steps)) == len(fractions):
        return
    gaps = [after - before for before, after in zip([0.0, *fractions], fractions, strict=False) if after > before]
    raise RecipeError(
        given=f"budget.{budget.unit} {budget.limit:.4g} buys arm {arm} {max(steps)} optimizer steps, so that "
        f"validations at {', '.join(f'{fraction:g}' for fraction in fractions)} of it would come after steps "
        f"{', '.join(map(str, steps))}",
        expected="a step of its own for each validation",
        fix=f"raise budget.{budget.unit} to {_rounded_up(price / min(gaps))} or more, or name fewer in validation.at",
    )


def _rounded_up(amount: float) -> str:
    """Three digits, never below ``amount``: it is meant to be typed."""
    unit = 10.0 ** (math.floor(math.log10(amount)) - 2)
    return f"{math.ceil(amount / unit - SLACK) * unit:.3g}"
