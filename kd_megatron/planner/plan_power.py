"""What a recipe's students will be able to find: power by effect size and number of students, before the first step."""

from dataclasses import dataclass

from kd_megatron.recipe import StudyRecipe
from kd_megatron.study.contrasts import families
from kd_megatron.study.power import fewest_students, power

EFFECTS = (1.0, 1.5, 2.0, 3.0)  # standard deviations of the paired differences
MORE = (1, 2, 4)  # students beyond the recipe's


@dataclass(frozen=True)
class PowerPlan:
    """Power of the contrasts that a report judges first; exact, of the paired t-test at the level of their family."""

    family: str  # "primary contrasts", or all
    num_contrasts: int
    promised: int | None  # students that the protocol fixes; None: power decides
    enough: int  # students with which verdicts are given by power
    chances: dict[int, dict[float, float]]  # students -> effect -> chance that it is found

    @property
    def gives_verdicts(self) -> bool:
        """Whether the recipe's own number of students can carry a verdict."""
        return min(self.chances) >= (self.promised or self.enough)


def plan_power(recipe: StudyRecipe) -> PowerPlan | None:
    """Of the recipe's number of seeds and of a few more; None where one arm is compared with nothing."""
    asked = families(recipe)
    if not asked.contrasts:
        return None
    num, own = asked.num_decisive, len(recipe.seeds)
    enough = fewest_students(num)
    rows = sorted({own, *(own + more for more in MORE), max(own, enough)})
    chances = {students: {effect: power(effect, students, num) for effect in EFFECTS} for students in rows}
    promised = recipe.protocol.students if recipe.protocol else None
    return PowerPlan(
        "primary contrasts" if asked.primary else "contrasts of the report", num, promised, enough, chances
    )
