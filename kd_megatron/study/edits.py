"""What an edited recipe changes of a study that has begun; what it made stale is moved aside, nothing is removed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kd_megatron.console import logs
from kd_megatron.objectives.of_the_teacher import owes_the_teacher
from kd_megatron.recipe import StudyRecipe, diff

FINETUNE, STALE = "finetune", "stale"


@dataclass
class RecipeChange:
    """What differs between two recipes of one study, and what was made with the old one."""

    keys: list[str] = field(default_factory=list)  # with both values
    shrunk: list[str] = field(default_factory=list)  # keys that leave out what was there
    arms: list[str] = field(default_factory=list)  # stale ones
    teacher: bool = False  # whether the study's own teacher is stale
    finetune: bool = False  # whether all fine-tunings are


def compare(old: StudyRecipe, new: StudyRecipe) -> RecipeChange:
    """What ``new`` changes of ``old`` beyond growing and other words."""
    change, stale = RecipeChange(), set[str]()
    found = diff.changes(StudyRecipe, old, new, but="edit")
    for one in sorted(found, key=lambda one: (one.key, one.arm)):
        if one.only_adds or (one.arm and one.arm not in old.arms):
            continue
        change.keys.append(f"{one.key} was {one.was!r}, is {one.now!r}")
        if one.policy.grows == "longer" or (one.policy.makes_stale("arm") and one.arm not in new.arms):
            change.shrunk.append(one.key)
            continue
        stale |= _stale(one, old)
        change.teacher |= one.policy.makes_stale("teacher")
        change.finetune |= one.policy.makes_stale("finetune")
    change.arms = [arm for arm in old.arms if arm in stale]
    return change


def _stale(change: diff.KeyChange, recipe: StudyRecipe) -> set[str]:
    """The arms of ``recipe`` whose runs hang on what has changed."""
    if change.policy.makes_stale("arm"):
        return {change.arm}
    if change.policy.makes_stale("taught"):
        return {arm for arm in recipe.arms if owes_the_teacher(recipe, arm)}
    return {*recipe.arms} if change.policy.makes_stale("students") else set()


def move_aside(sources: Sequence[Path], directory: Path) -> None:
    """Move what there is of ``sources`` to a new directory of the study's ``stale``. Rank 0 alone."""
    sources = [source for source in sources if source.exists()]
    if not sources:
        return
    number = 1 + len(list((directory / STALE).glob("*")))
    for source in sources:
        if source.exists():  # not moved already, with a directory above it
            target = directory / STALE / str(number) / source.relative_to(directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
    logs.say(f"moved to {directory / STALE / str(number)}: {', '.join(str(s.relative_to(directory)) for s in sources)}")
