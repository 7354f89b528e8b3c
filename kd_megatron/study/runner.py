"""Runs a study: data, teacher, students (seeds x arms), fine-tuning, report. All ranks call it and go in lockstep.

A study is a list of pieces, each with one file that says it is finished, so that the same command goes on where the
last one stopped. Arms alternate within a seed: an interrupted study has compared every arm with the seeds it reached.
"""

from collections.abc import Sequence
from pathlib import Path

from kd_megatron.recipe import StudyRecipe
from kd_megatron.study import tuning
from kd_megatron.study.begin import begin
from kd_megatron.study.calibration import calibration_pieces
from kd_megatron.study.execute import Report, run_and_report
from kd_megatron.study.piece import Piece
from kd_megatron.study.prerequisites import input_pieces
from kd_megatron.study.run_grid import cell_pieces
from kd_megatron.study.students import student_pieces


def run_study(recipe: StudyRecipe, directory: Path, report: Report, redo: Sequence[str] = ()) -> None:
    """Do everything of ``recipe`` that is not done yet in ``directory``, and report.

    Args:
        report: writes what was found in a study's directory; rank 0 calls it, for each cell of a grid too.
        redo: what of an edited study is moved aside and done anew (`claim`).

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
        *calibration_pieces(recipe, directory),
        *tuning.tuning_pieces(recipe, directory),
    ]


def pieces(recipe: StudyRecipe, directory: Path, report: Report, redo: Sequence[str] = ()) -> list[Piece]:
    """The pieces of a study, in their order; of a grid, one for each cell (``report`` and ``redo`` are for those)."""
    of_students = cell_pieces(recipe, directory, report, redo) if recipe.grid else student_pieces(recipe, directory)
    return [*preparing_pieces(recipe, directory), *of_students]
