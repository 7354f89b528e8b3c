"""A grid of studies: every budget with every pool of text is a cell, a whole study in ``cells/CELL`` (docs/study.md).

What comes before the students (data, teacher, tuning, calibration) is done once, in the grid's own directory, and each
cell is given a copy. Cells are run one after another, each resumable like any study, each with its own report; the
report over all is the grid's.
"""

from dataclasses import dataclass
from pathlib import Path

from kd_megatron.console import units
from kd_megatron.recipe import StudyRecipe
from kd_megatron.recipe.config import BUDGET_UNITS

CELLS = "cells"  # the directory of a grid that has them


@dataclass(frozen=True)
class GridPoint:
    """A cell's place in the grid."""

    budget: float  # a multiple of the study's
    unique_tokens: int | None  # None: all there is

    @property
    def name(self) -> str:
        """``"budget_4_unique_500000"``, ``"budget_1_unique_all"``: the cell's directory."""
        return f"budget_{self.budget:g}_unique_{'all' if self.unique_tokens is None else self.unique_tokens}"

    @property
    def pool_in_words(self) -> str:
        """``"500k tokens"``, ``"all text"``."""
        return "all text" if self.unique_tokens is None else f"{units.count(self.unique_tokens)} tokens"


def places(recipe: StudyRecipe) -> list[GridPoint]:
    """The cells of a grid, budget by budget, in the recipe's order; none without a grid."""
    if recipe.grid is None:
        return []
    return [GridPoint(budget, unique) for budget in recipe.grid.budgets for unique in recipe.grid.unique_tokens]


def cell_directory(grid: Path, place: GridPoint) -> Path:
    """Where one cell's study is."""
    return grid / CELLS / place.name


def cell_recipe(recipe: StudyRecipe, place: GridPoint) -> StudyRecipe:
    """The study of one cell: its budget and its pool, and otherwise the grid's recipe."""
    budget = recipe.budget.model_copy(update={recipe.budget.unit: place.budget * recipe.budget.limit})
    changes = {
        "name": f"{recipe.name}_{place.name}",
        "budget": budget,
        "data": recipe.data.model_copy(update={"unique_tokens": place.unique_tokens}),
        "arms": {arm: _scaled(options, place.budget) for arm, options in recipe.arms.items()},
        "grid": None,
        "output": None,
    }
    return recipe.model_copy(update=changes)


def _scaled(options: dict[str, object], factor: float) -> dict[str, object]:
    """An arm that has a budget of its own (an allowed difference) gets as many times that one."""
    own = {key for key in options if key in {f"budget.{unit}" for unit in BUDGET_UNITS}}
    return {key: factor * float(str(value)) if key in own else value for key, value in options.items()}
