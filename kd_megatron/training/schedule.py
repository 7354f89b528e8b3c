"""The learning rate as a function of the budget fraction spent (docs/fairness.md, clause 6)."""

import math
from dataclasses import dataclass
from pathlib import Path

from kd_megatron.recipe import TrainingRecipe

FIRST_SHARE = 0.01  # of the peak, for the first step of a warm-up whose length in steps is not known yet


@dataclass(frozen=True)
class Branch:
    """A run that leaves another one before its end and brings the learning rate down to zero (Hu et al. 2024,
    arXiv 2404.06395; Hagele et al. 2024, arXiv 2405.18392). Fractions are of the whole budget of that other run.
    """

    checkpoint: Path  # of the other run, where this one begins
    step: int  # of that checkpoint
    start: float  # what was spent then
    end: float  # what is spent at the end of this one


def learning_rate(
    recipe: TrainingRecipe, fraction: float, num_steps: int, length: int, branch: Branch | None = None
) -> float:
    """The rate of one step: a linear warm-up to the peak, then the schedule's decay to zero.

    Args:
        recipe: says how.
        fraction: of the budget, at which the step begins.
        num_steps: that were taken before it.
        length: tokens of a sequence.
        branch: the rate comes down linearly, from what it was where the branch left its run to zero at its end.
    """
    if branch is not None:
        share_left = (branch.end - fraction) / (branch.end - branch.start)
        return learning_rate(recipe, branch.start, branch.step, length) * share_left
    fraction = min(1.0, fraction)
    warmup = 0.0 if recipe.warmup_tokens is not None else recipe.warmup_fraction
    progress = max(0.0, fraction - warmup) / max(1.0 - warmup, 1e-12)
    shape = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        "wsd": (1.0 - fraction) / recipe.decay_fraction,  # of the peak, from where it falls below 1
    }
    return recipe.learning_rate * min(warm_up(recipe, fraction, num_steps, length), shape[recipe.schedule])


def warm_up(recipe: TrainingRecipe, fraction: float, num_steps: int, length: int) -> float:
    """The share of the peak that the step after ``num_steps`` may have: what will be done of the warm-up after it.

    So the first step has a rate above zero. What a step will spend of the budget is told by the steps before it; of the
    first one nothing is known, and it has `FIRST_SHARE`.
    """
    done = [1.0, (num_steps + 1) / recipe.warmup_min_steps]
    if recipe.warmup_tokens is not None:
        done.append((num_steps + 1) * recipe.global_batch_size * length / recipe.warmup_tokens)
    elif recipe.warmup_fraction > 0.0:
        done.append(fraction * (num_steps + 1) / num_steps / recipe.warmup_fraction if num_steps else FIRST_SHARE)
    return min(done)
