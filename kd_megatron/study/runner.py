"""Runs a study: data, teacher, students (seeds x arms), fine-tuning, report. All ranks call it and go in lockstep.

A study is a list of pieces, each with one file that says it is finished, so that the same command goes on where the
last one stopped. Arms alternate within a seed: an interrupted study has compared every arm with the seeds it reached.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from kd_megatron.files import atomic, records
from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe, config
from kd_megatron.study import layout, tuning
from kd_megatron.study.begin import begin
from kd_megatron.study.calibration import calibration_pieces
from kd_megatron.study.cells import GridPoint, cell_directory, cell_recipe, places
from kd_megatron.study.compiling import compile_pieces
from kd_megatron.study.controls import are_shared, control_pieces, share_controls
from kd_megatron.study.effective import CALIBRATION_FILE, COMPILE_FILE, TUNING_FILE
from kd_megatron.study.execute import Report, run_and_report
from kd_megatron.study.piece import Piece
from kd_megatron.study.prerequisites import input_pieces
from kd_megatron.study.students import finetuning_pieces, student_pieces, training_pieces

NOT_COPIED = shutil.ignore_patterns("checkpoints", "tensorboard")  # of the teacher's directory


def run_study(recipe: StudyRecipe, directory: Path, report: Report, redo: Sequence[str] = ()) -> None:
    """Do everything of ``recipe`` that is not done yet in ``directory``, and report.

    Args:
        report: writes what was found in a study's directory; rank 0 calls it, for each cell of a grid too.
        redo: what of an edited study is moved aside and done anew (`claim_study`).

    Raises:
        RecipeError: the arms differ in more than the study allows.
        OutputError: ``directory`` holds another study.
        NonFiniteError: a student diverged. The others are finished, and the report says which one is missing.
        KdError: whatever else a piece raises; what is finished stays.
    """
    begin(recipe, directory, redo)
    run_and_report(pieces(recipe, directory, report, redo), directory, report)


def preparing_pieces(recipe: StudyRecipe, directory: Path) -> list[Piece]:
    """What comes before the students: inputs, and what decides how they are trained."""
    return [
        *input_pieces(recipe, directory),
        *compile_pieces(recipe, directory),
        *calibration_pieces(recipe, directory),
        *tuning.tuning_pieces(recipe, directory),
    ]


def pieces(recipe: StudyRecipe, directory: Path, report: Report, redo: Sequence[str] = ()) -> list[Piece]:
    """The pieces of a study, in their order; of a grid, one for each cell (``report`` and ``redo`` are for those)."""
    preparing, controls = preparing_pieces(recipe, directory), control_pieces(recipe, directory)
    if recipe.grid is None:
        tuned = finetuning_pieces(recipe, directory)
        return [*preparing, *training_pieces(recipe, directory), *controls, *tuned]
    return [*preparing, *controls, *(_cell_piece(recipe, directory, place, report, redo) for place in places(recipe))]


def _cell_piece(recipe: StudyRecipe, directory: Path, place: GridPoint, report: Report, redo: Sequence[str]) -> Piece:
    where, cell = cell_directory(directory, place), cell_recipe(recipe, place)

    def run() -> None:
        begin(cell, where, redo)
        if dist.is_main():
            share(directory, where)
        dist.barrier()
        run_and_report(student_pieces(cell, where), where, report)

    def is_done() -> bool:
        return is_finished(cell, where) and are_shared(directory, where)

    return Piece("cell", f"cell {place.name}: a study of its own", is_done, run, f"cell {place.name}")


def is_finished(cell: StudyRecipe, where: Path) -> bool:
    """Whether all of ``cell`` is done and reported in ``where``: of this very recipe, with its seeds and arms."""
    if not (where / layout.RECIPE_FILE).is_file() or not (where / "report" / "results.json").is_file():
        return False
    same = config.load(where / layout.RECIPE_FILE, StudyRecipe).model_dump() == cell.model_dump()
    return same and all(piece.is_finished() for piece in student_pieces(cell, where))


def share(grid: Path, cell: Path) -> None:
    """Give a cell what the grid made for all: teacher, tuning's choice, calibration, controls. Rank 0 alone."""
    share_controls(grid, cell)
    for name in (TUNING_FILE, CALIBRATION_FILE, COMPILE_FILE):
        if (grid / name).is_file():
            records.write_text(cell / name, (grid / name).read_text(encoding="utf-8"))
    teacher, own = layout.teacher_directory(grid), layout.teacher_directory(cell)
    if layout.finished_run(teacher) is None or own.exists():
        return
    with atomic.new_directory(own) as aside:
        shutil.copytree(teacher, aside, ignore=NOT_COPIED, dirs_exist_ok=True)
