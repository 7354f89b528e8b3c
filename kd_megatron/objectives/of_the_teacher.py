"""What an arm has of the teacher: targets, first weights, both or nothing. Its objective's name decides none of it."""

from collections.abc import Mapping
from typing import Any

from kd_megatron.recipe import StudyRecipe
from kd_megatron.recipe.arms import resolve_arm


def owes_the_teacher(study: StudyRecipe, arm: str) -> bool:
    """Whether students of ``arm`` learn from the teacher or begin from it; those of another arm are what they are."""
    return learns_from_teacher(study.arms[arm]) or begins_from_teacher(study, arm)


def learns_from_teacher(options: Mapping[str, Any]) -> bool:
    """Whether an objective needs outputs of the teacher; one that is made of others where any of those does.

    Args:
        options: of an arm, a part or a phase, as written: a recipe may be an earlier version's, and need not parse.
    """
    from kd_megatron.objectives import of_arm, registry  # here: with torch, which a report can do without

    name = str(options.get("objective"))
    if name not in of_arm.COMPOSED:
        return registry.learns_from_teacher(name)
    made_of = options.get(of_arm.COMPOSED[name].made_of)
    return any(learns_from_teacher(one) for one in made_of or () if isinstance(one, Mapping))


def begins_from_teacher(study: StudyRecipe, arm: str) -> bool:
    """Whether the first weights of an arm's students are layers of the teacher."""
    return resolve_arm(study, arm).student.initialise.from_teacher
