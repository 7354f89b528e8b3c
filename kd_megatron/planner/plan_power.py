"""What a recipe's seeds can tell: the chance of a verdict for effects of several sizes (docs/statistics.md)."""

from collections.abc import Collection
from dataclasses import dataclass

from kd_megatron.recipe import StudyRecipe
from kd_megatron.study.layout import reference_of
from kd_megatron.study.power import power, students_needed

EFFECTS = (1.0, 1.5, 2.0, 3.0)  # standard deviations of the paired differences
MORE_SEEDS = (3, 5, 6, 8, 12)


@dataclass(frozen=True)
class PowerPlan:
    """Chances of a verdict, by number of seeds and size of the effect."""

    num_contrasts: int  # of the family that is judged first
    is_primary: bool  # whether a protocol names it
    needed: int  # seeds below which there is no verdict
    effects: tuple[float, ...]
    chances: dict[int, list[float]]  # seeds -> the chance for each effect; 0 where there is no verdict


def plan_power(recipe: StudyRecipe, arms_with_heads: Collection[str]) -> PowerPlan | None:
    """The table for a recipe, of the primary contrasts or of all; None where nothing is compared.

    Args:
        arms_with_heads: the arms that train an MLM head, and so have a loss of their own.
    """
    others = [arm for arm in recipe.arms if arm != reference_of(recipe)]
    if not others:
        return None
    protocol = recipe.protocol
    own = [arm for arm in others if arm in arms_with_heads] if reference_of(recipe) in arms_with_heads else []
    scored = 0 if recipe.finetune is None else len(recipe.finetune.tasks) + 1
    num = len(others) * (scored + 1) + len(own)  # the scores and their average, the probe, own heads
    if protocol is not None:
        named = protocol.arms or others
        num = len([arm for arm in named if arm in own]) if protocol.measure == "own_loss" else len(named)
    needed = students_needed(recipe, max(num, 1))
    seeds = sorted({len(recipe.seeds), needed, *MORE_SEEDS} - {0, 1})
    chances = {n: [power(effect, n, num) if n >= needed else 0.0 for effect in EFFECTS] for n in seeds}
    return PowerPlan(num, protocol is not None, needed, EFFECTS, chances)
