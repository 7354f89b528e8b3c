"""The learning rate as a function of the budget fraction spent (docs/fairness.md, clause 6)."""

import math
from dataclasses import dataclass
from pathlib import Path

from kd_megatron.recipe import TrainingRecipe


@dataclass(frozen=True)
class Branch:
    """A run that leaves another one before its end and brings the learning rate down to zero (Hu et al. 2024,
    arXiv 2404.06395; Hagele et al. 2024, arXiv 2405.18392). Fractions are of the whole budget of that other run.
    """

    checkpoint: Path  # of the other run, where this one begins
    step: int  # of that checkpoint
    start: float  # what was spent then
    end: float  # what is spent at the end of this one


def learning_rate(recipe: TrainingRecipe, fraction: float, branch: Branch | None = None) -> float:
    """The rate of the step that begins at budget ``fraction``: linear warm-up to the peak, then decay to zero.

    As usual, the very first step has rate zero: it only fills Adam's moments. In a ``branch``, linear from the rate
    at its start to zero at its end.
    """
    if branch is not None:
        share_left = (branch.end - fraction) / (branch.end - branch.start)
        return learning_rate(recipe, branch.start) * share_left
    fraction = min(1.0, fraction)
    if fraction < recipe.warmup_fraction:
        return recipe.learning_rate * fraction / recipe.warmup_fraction
    progress = (fraction - recipe.warmup_fraction) / max(1.0 - recipe.warmup_fraction, 1e-12)
    shape = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
    return recipe.learning_rate * shape[recipe.schedule]
