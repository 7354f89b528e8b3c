"""A grid of studies: every budget with every pool of text is a cell, a whole study in ``cells/CELL`` (docs/study.md).

What comes before the students (data, teacher, tuning, calibration) is done once, in the grid's own directory, and each
cell is given a copy. Cells are run one after another, each resumable like any study, each with its own report; the
report over all is the grid's.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_megatron import atomic, config, dist, logs
from kd_megatron.config import BUDGET_UNITS
from kd_megatron.schema import StudyRecipe
from kd_megatron.study import results, words
from kd_megatron.study.effective import CALIBRATION_FILE, TUNING_FILE
from kd_megatron.study.piece import Piece

CELLS = "cells"  # the directory of a grid that has them
NOT_COPIED = shutil.ignore_patterns("checkpoints", "tensorboard")  # of the teacher's directory


@dataclass(frozen=True)
class Place:
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
        return "all text" if self.unique_tokens is None else f"{words.count(self.unique_tokens)} tokens"


def places(recipe: StudyRecipe) -> list[Place]:
    """The cells of a grid, budget by budget, in the recipe's order; none without a grid."""
    if recipe.grid is None:
        return []
    return [Place(budget, unique) for budget in recipe.grid.budgets for unique in recipe.grid.unique_tokens]


def cell_directory(grid: Path, place: Place) -> Path:
    """Where one cell's study is."""
    return grid / CELLS / place.name


def cell_recipe(recipe: StudyRecipe, place: Place) -> StudyRecipe:
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


def cell_pieces(recipe: StudyRecipe, directory: Path, redo: Sequence[str] = ()) -> list[Piece]:
    """One piece for each cell of the grid in ``directory``."""
    return [_cell_piece(recipe, directory, place, redo) for place in places(recipe)]


def _cell_piece(recipe: StudyRecipe, directory: Path, place: Place, redo: Sequence[str]) -> Piece:
    where, cell = cell_directory(directory, place), cell_recipe(recipe, place)

    def run() -> None:
        from kd_megatron.study import runner
        from kd_megatron.study.reporting import report

        runner.begin(cell, where, redo)
        if dist.is_main():
            share(directory, where)
        dist.barrier()
        diverged = runner.run_pieces(runner.student_pieces(cell, where), where)
        if dist.is_main():
            report.write_report(where)
        dist.barrier()
        runner.raise_diverged(diverged)

    label = f"cell {place.name}: a study of its own"
    return Piece("cell", label, lambda: is_finished(cell, where), run, f"cell {place.name}")


def is_finished(cell: StudyRecipe, where: Path) -> bool:
    """Whether all of ``cell`` is done and reported in ``where``: of this very recipe, with its seeds and arms."""
    if not (where / results.RECIPE_FILE).is_file() or not (where / "report" / "results.json").is_file():
        return False
    same = config.load(where / results.RECIPE_FILE, StudyRecipe).model_dump() == cell.model_dump()
    return same and not results.load(where).missing


def share(grid: Path, cell: Path) -> None:
    """Give a cell what the grid made for all: the teacher, the choice of tuning, the calibration. Rank 0 alone."""
    for name in (TUNING_FILE, CALIBRATION_FILE):
        if (grid / name).is_file():
            logs.write_text(cell / name, (grid / name).read_text(encoding="utf-8"))
    teacher, own = results.teacher_directory(grid), results.teacher_directory(cell)
    if results.finished_run(teacher) is None or own.exists():
        return
    with atomic.new_directory(own) as aside:
        shutil.copytree(teacher, aside, ignore=NOT_COPIED, dirs_exist_ok=True)
