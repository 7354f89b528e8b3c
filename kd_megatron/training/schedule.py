"""The learning rate as a function of the budget fraction spent (docs/fairness.md, clause 6)."""

import math

from kd_megatron.schema import TrainingRecipe


def learning_rate(recipe: TrainingRecipe, fraction: float) -> float:
    """The rate of the step that begins at budget ``fraction``: linear warm-up to the peak, then decay to zero.

    As usual, the very first step has rate zero: it only fills Adam's moments.
    """
    fraction = min(1.0, fraction)
    if fraction < recipe.warmup_fraction:
        return recipe.learning_rate * fraction / recipe.warmup_fraction
    progress = (fraction - recipe.warmup_fraction) / max(1.0 - recipe.warmup_fraction, 1e-12)
    shape = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
    return recipe.learning_rate * shape[recipe.schedule]
