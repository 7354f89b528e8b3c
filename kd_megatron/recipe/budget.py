"""What ends a run, and what is charged to it."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from kd_megatron.recipe.config import BUDGET_UNITS, TIME_UNITS, Strict
from kd_megatron.recipe.policy import FOUND_OUT
from kd_megatron.recipe.types import Count, Positive


def _not_a_bare_number(value: Any) -> Any:
    if isinstance(value, int | float):
        raise ValueError(f"a budget needs a unit: write budget.UNIT, UNIT one of {', '.join(BUDGET_UNITS)}")
    return value


Account = Literal[
    "student", "teacher", "loss", "data_wait", "validation", "checkpoint", "set_up", "teacher_for_others"
]  # the last: filling a teacher cache, beyond this run's own share of it


TRAINING_ACCOUNTS: set[Account] = {"student", "teacher", "loss", "data_wait"}  # of a step
NEVER_CHARGED: set[Account] = {"validation", "checkpoint", "set_up"}  # they go on when a budget is used up


class CalibrateRecipe(Strict):
    """Measure every arm's speed before training, in turn on the machine at hand, and fix its steps by it."""

    rounds: Annotated[int, Field(ge=2, le=10_000)] = 5  # every arm has its turn in each
    steps: Count = 4  # training steps of an arm's turn; on a GPU at least 50, or 5 seconds


class CalibratedSteps(Strict):
    """What a calibration made of a budget in time for one run. Written by `study`, never by hand."""

    steps: Count
    tokens_per_second: Positive  # the median that they were computed with


class BudgetRecipe(Strict):
    """What ends a run (exactly one unit) and which accounts of the ledger count towards it."""

    hours: Positive | None = None
    gpu_hours: Positive | None = None
    flops: Positive | None = None
    tokens: Positive | None = None
    charge: list[Account] = ["student", "teacher", "loss", "data_wait"]
    # of a study's budget in time: noise does not choose the winner
    calibrate: Annotated[CalibrateRecipe | None, FOUND_OUT] = None
    calibrated: Annotated[CalibratedSteps | None, FOUND_OUT] = None

    def problems(self) -> Iterator[str]:
        """Not one unit, or accounts that end with no budget, are not counted or not measured."""
        given = [unit for unit in BUDGET_UNITS if getattr(self, unit) is not None]
        if len(given) != 1:
            yield f"a budget has exactly one unit of {', '.join(BUDGET_UNITS)}; given: {given or 'none'}"
        if wrong := sorted(NEVER_CHARGED & set(self.charge)):
            yield (
                f"{', '.join(wrong)} cannot be charged: the last of it comes when the budget is used up, so arms would "
                "spend more than it; leave it out of charge (the report shows it all the same)"
            )
        beyond_steps = ", ".join(sorted(set(self.charge) - TRAINING_ACCOUNTS))
        if self.unit == "flops" and beyond_steps:
            yield (
                f"FLOPs are counted in training steps alone, {beyond_steps} would be charged none: leave it "
                "out of charge, or give the budget in hours"
            )
        if self.calibrate and not self.is_time:
            yield f"calibrate is for budgets in hours or gpu_hours; {self.unit} are counted, not measured"
        if self.calibrate and beyond_steps:
            yield f"calibrate times training steps alone, but {beyond_steps} is charged as well"

    @property
    def is_time(self) -> bool:
        """Whether a clock measures it."""
        return self.unit in TIME_UNITS

    @property
    def unit(self) -> str:
        """``"hours"``, ``"gpu_hours"``, ``"flops"`` or ``"tokens"``."""
        return next(unit for unit in BUDGET_UNITS if getattr(self, unit) is not None)

    @property
    def splits_training_time(self) -> bool:
        """Whether it is time and some accounts of a training step count while others do not."""
        return self.is_time and len(TRAINING_ACCOUNTS & set(self.charge)) in (1, 2, 3)

    @property
    def limit(self) -> float:
        """The amount, in `unit`."""
        return float(getattr(self, self.unit))


Budget = Annotated[BudgetRecipe, BeforeValidator(_not_a_bare_number)]
