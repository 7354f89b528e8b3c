"""The learning rate as a function of the budget fraction spent (docs/fairness.md, clause 6)."""

import math

from kd_megatron.schema import TrainingRecipe


def learning_rate(recipe: TrainingRecipe, fraction: float, first_step_fraction: float = 0.0) -> float:
    """The rate at budget ``fraction`` (0 to 1): linear warm-up to the peak, then the recipe's decay to zero.

    Args:
        first_step_fraction: the share of the budget that one step spends; a warm-up counts the step being made,
            so that the first update is not made at a rate of zero.
    """
    fraction = min(1.0, fraction)
    warmup = recipe.warmup_fraction
    if fraction < warmup:
        return recipe.learning_rate * min(1.0, (fraction + first_step_fraction) / warmup)
    progress = (fraction - warmup) / (1.0 - warmup) if warmup < 1.0 else 1.0
    shape = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
    return recipe.learning_rate * shape[recipe.schedule]
