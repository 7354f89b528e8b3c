"""What one arm costs, and what its budget buys: tokens, steps, epochs and hours."""

import math
from dataclasses import dataclass

from kd_megatron.engine.flops import ArmCost, charged_flops_per_token
from kd_megatron.objectives.words import of_arm_in_words
from kd_megatron.planner.plan_speed import Speed, tokens_for
from kd_megatron.recipe import StudyRecipe


@dataclass(frozen=True)
class ArmPlan:
    """One arm under its budget; tokens, steps and hours are None when only the machine's speed can tell."""

    arm: str
    objective: str
    cost: ArmCost
    charged_flops_per_token: float  # at the first visit of a window
    tokens: float | None
    steps: int | None
    epochs: float | None
    relative_tokens: float | None  # to the reference arm at equal FLOPs
    flops: float | None  # of one run: student, teacher and loss, charged or not
    hours: float | None  # of one run's training, all devices together at work
    tokens_per_second: float | None  # all devices together


@dataclass(frozen=True)
class Means:
    """What all runs of a study have in common."""

    speed: Speed | None
    num_devices: int
    pool: int | None  # tokens of one epoch, None before the data is prepared


def plan_arm(recipe: StudyRecipe, arm: str, cost: ArmCost, reference: ArmCost, means: Means) -> ArmPlan:
    """``arm`` under the budget of ``recipe``; ``reference`` is what equal FLOPs are compared with."""
    tokens_per_step = recipe.training.global_batch_size * recipe.data.sequence_length
    steps = _steps(recipe, arm, cost, tokens_per_step, means)
    tokens = None if steps is None else float(steps * tokens_per_step)
    epochs = tokens / means.pool if tokens is not None and means.pool else None
    mean = cost.mean_flops_per_token(epochs or 1.0)
    speed, hours = means.speed, None
    if speed is not None and tokens is not None:
        hours = speed.seconds(arm, cost, tokens, epochs or 1.0) / 3600.0
    return ArmPlan(
        arm=arm,
        objective=of_arm_in_words(recipe, arm),
        cost=cost,
        charged_flops_per_token=charged_flops_per_token(recipe, cost),
        tokens=tokens,
        steps=steps,
        epochs=epochs,
        relative_tokens=reference.total_flops_per_token / mean,
        flops=None if tokens is None else tokens * mean,
        hours=hours,
        tokens_per_second=None if speed is None else speed.tokens_per_second(arm, cost),
    )


def _steps(recipe: StudyRecipe, arm: str, cost: ArmCost, tokens_per_step: int, means: Means) -> int | None:
    charged = charged_flops_per_token(recipe, cost)
    saved = charged - charged_flops_per_token(recipe, cost, again=True)
    known = steps_afforded(recipe, charged, tokens_per_step, saved, means.pool)
    measures_charged = means.speed is not None and arm in means.speed.measured
    if known is not None or means.speed is None or (recipe.budget.splits_training_time and not measures_charged):
        return known
    devices = means.num_devices if recipe.budget.unit == "gpu_hours" else 1
    tokens = means.speed.tokens_in(recipe.budget.limit / devices, arm, cost, means.pool)
    whole = math.floor if recipe.budget.calibrate else math.ceil  # a calibrated budget is never overshot
    return max(1, whole(round(tokens / tokens_per_step, 9)))


def steps_afforded(
    recipe: StudyRecipe, charged: float, tokens_per_step: int, saved: float = 0.0, pool: int | None = None
) -> int | None:
    """Optimizer steps until the budget is used up (the last one may overshoot); None for budgets in time.

    Args:
        charged: FLOPs per token of the first ``pool`` tokens.
        saved: FLOPs per token by which later tokens, all repeats, are cheaper.
        pool: tokens of an epoch; None when it is not known: nothing is taken to repeat.
    """
    budget = recipe.budget
    if budget.unit == "tokens":
        return math.ceil(budget.limit / tokens_per_step)
    if budget.unit == "flops" and charged > 0:
        return math.ceil(tokens_for(budget.limit, charged, saved, pool) / tokens_per_step)
    return None
