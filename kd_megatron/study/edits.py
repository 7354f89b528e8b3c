"""What an edited recipe changes of a study that has begun."""

from dataclasses import dataclass, field
from typing import Any

from kd_megatron.recipe import StudyRecipe
from kd_megatron.recipe.arms import flatten, owes_the_teacher
from kd_megatron.study.effective import WITHOUT_WORDS

FINETUNE, STALE = "finetune", "stale"
GROWING = ("seeds", "allow_difference", "grid.budgets", "grid.unique_tokens")  # lists that may become longer
NOT_OF_THE_TEACHER = ("arms", "student", "budget", "seeds", "tuning", "markers", "finetune", "allow_difference", "grid")


@dataclass
class Change:
    """What differs between two recipes of one study, and what was made with the old one."""

    keys: list[str] = field(default_factory=list)  # with both values
    shrunk: list[str] = field(default_factory=list)  # keys that leave out what was there
    arms: list[str] = field(default_factory=list)  # stale ones
    teacher: bool = False  # whether the study's own teacher is stale
    finetune: bool = False  # whether all fine-tunings are


def compare(old: StudyRecipe, new: StudyRecipe) -> Change:
    """What ``new`` changes of ``old`` beyond growing and other words."""
    before, after = _flat(old), _flat(new)
    change, stale = Change(), set[str]()
    for key, arm in sorted(before.keys() | after.keys()):
        was, now = before.get((key, arm)), after.get((key, arm))
        if was == now or _grows(arm, key, was, now, old) or _of_new_arm(key, old, new):
            continue
        change.keys.append(f"{key} was {was!r}, is {now!r}")
        section = key.partition(".")[0]
        if key in GROWING or (arm and arm not in new.arms):
            change.shrunk.append(key)
        elif section == FINETUNE:
            change.finetune = True
        else:
            stale |= {arm} if arm else _reads(section, old)
            change.teacher |= section not in NOT_OF_THE_TEACHER
    change.arms = [arm for arm in old.arms if arm in stale]
    return change


def _flat(recipe: StudyRecipe) -> dict[tuple[str, str], Any]:
    """(dotted key, arm) -> value, no arm outside ``arms``. Names of arms may have dots, so that a key tells none."""
    raw = recipe.model_dump(mode="json", exclude={*WITHOUT_WORDS})
    arms = raw.pop("arms")
    found = {(key, ""): value for key, value in flatten(raw).items()}
    for arm, options in arms.items():
        found |= {(key, arm): value for key, value in flatten(options, f"arms.{arm}").items()}
    return found


def _grows(arm: str, key: str, was: object, now: object, old: StudyRecipe) -> bool:
    if key in GROWING and isinstance(was, list) and isinstance(now, list):
        return all(value in now for value in was)
    if key == "markers.finetune" and now is True:  # of branches that are there
        return True
    return bool(arm) and arm not in old.arms


def _of_new_arm(key: str, old: StudyRecipe, new: StudyRecipe) -> bool:
    """Whether ``key`` is a weight that is tuned for an arm which comes with this edit, or there was none before."""
    added = new.arms.keys() - old.arms.keys()
    return key == "tuning.weights" or any(key.startswith(f"tuning.weights.{arm}.") for arm in added)


def _reads(section: str, recipe: StudyRecipe) -> set[str]:
    """The arms whose runs hang on a section outside ``arms``: those that have something of the teacher, or all."""
    if section == "teacher":
        return {arm for arm in recipe.arms if owes_the_teacher(recipe, arm)}
    return {*recipe.arms}
