"""Runs a grid: each cell is one piece, a study of its own with its own report."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from kd_megatron.files import atomic, records
from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe, config
from kd_megatron.study import begin, execute, layout, students
from kd_megatron.study.cells import Place, cell_directory, cell_recipe, places
from kd_megatron.study.effective import CALIBRATION_FILE, TUNING_FILE
from kd_megatron.study.execute import Report
from kd_megatron.study.piece import Piece

NOT_COPIED = shutil.ignore_patterns("checkpoints", "tensorboard")  # of the teacher's directory


def cell_pieces(recipe: StudyRecipe, directory: Path, report: Report, redo: Sequence[str] = ()) -> list[Piece]:
    """One piece for each cell of the grid in ``directory``."""
    return [_cell_piece(recipe, directory, place, report, redo) for place in places(recipe)]


def _cell_piece(recipe: StudyRecipe, directory: Path, place: Place, report: Report, redo: Sequence[str]) -> Piece:
    where, cell = cell_directory(directory, place), cell_recipe(recipe, place)

    def run() -> None:
        begin.begin(cell, where, redo)
        if dist.is_main():
            share(directory, where)
        dist.barrier()
        execute.run_and_report(students.student_pieces(cell, where), where, report)

    label = f"cell {place.name}: a study of its own"
    return Piece("cell", label, lambda: is_finished(cell, where), run, f"cell {place.name}")


def is_finished(cell: StudyRecipe, where: Path) -> bool:
    """Whether all of ``cell`` is done and reported in ``where``: of this very recipe, with its seeds and arms."""
    if not (where / layout.RECIPE_FILE).is_file() or not (where / "report" / "results.json").is_file():
        return False
    same = config.load(where / layout.RECIPE_FILE, StudyRecipe).model_dump() == cell.model_dump()
    return same and all(piece.is_finished() for piece in students.student_pieces(cell, where))


def share(grid: Path, cell: Path) -> None:
    """Give a cell what the grid made for all: the teacher, the choice of tuning, the calibration. Rank 0 alone."""
    for name in (TUNING_FILE, CALIBRATION_FILE):
        if (grid / name).is_file():
            records.write_text(cell / name, (grid / name).read_text(encoding="utf-8"))
    teacher, own = layout.teacher_directory(grid), layout.teacher_directory(cell)
    if layout.finished_run(teacher) is None or own.exists():
        return
    with atomic.new_directory(own) as aside:
        shutil.copytree(teacher, aside, ignore=NOT_COPIED, dirs_exist_ok=True)
