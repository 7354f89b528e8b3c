"""The pieces of a study's controls: the untrained student and the teacher, measured and fine-tuned as students are.

They say what a number is worth: below the untrained student nothing was learned, and the teacher is what could be. They
are no arms. Neither hangs on the budget or the pool, so that a grid makes them once and gives its cells a copy.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kd_megatron.errors import ModelError
from kd_megatron.files import hub, records
from kd_megatron.files.manifest import weights_hash
from kd_megatron.finetune.places import MACHINES, SUMMARY
from kd_megatron.ranks import dist
from kd_megatron.recipe import FinetuneRecipe, StudyRecipe, diff
from kd_megatron.recipe.controls import TEACHER, UNTRAINED
from kd_megatron.study import layout
from kd_megatron.study.edits import move_aside
from kd_megatron.study.finetuning import finetune_piece, is_tuned
from kd_megatron.study.piece import Piece, teacher_path

SHARED = (SUMMARY, MACHINES)  # what a grid's cells are given: all that a report reads
_PLACES = (layout.control_directory, layout.control_finetune_directory)
HELD_OUT = ("data", "validation")  # sections that a measurement hangs on, beside the model


def control_pieces(recipe: StudyRecipe, directory: Path) -> list[Piece]:
    """The measurement and the fine-tuning of each control that the recipe wants."""
    found = [_measure_piece(recipe, directory, name) for name in recipe.wanted_controls]
    if recipe.finetune is not None:
        found += [_finetune_piece(recipe, directory, name, recipe.finetune) for name in recipe.wanted_controls]
    return found


def _measure_piece(recipe: StudyRecipe, directory: Path, name: str) -> Piece:
    where = layout.control_directory(directory, name)

    def run() -> None:
        from kd_megatron.training import controls

        what = dist.on_main(lambda: made_of(recipe, directory, name))
        if dist.on_main(lambda: layout.finished_run(where) is not None):  # of another model, or of other data
            dist.on_main(lambda: move_aside([where], directory))
        with _may_be_left_out(name):
            teacher = teacher_path(recipe, directory)
            if name == UNTRAINED:
                needed = _fetched(recipe, directory) if recipe.student.initialise.from_teacher else teacher
                controls.measure_untrained(recipe, where, needed, what)
            else:
                controls.measure_teacher(recipe, where, _fetched(recipe, directory), what)

    def is_finished() -> bool:
        summary = layout.finished_run(where)
        return summary is not None and _is_made_of(summary, made_of(recipe, directory, name))

    return Piece(f"control {name}", f"control {name}: measure", is_finished, run, f"control {name}")


def _finetune_piece(recipe: StudyRecipe, directory: Path, name: str, section: FinetuneRecipe) -> Piece:
    """Like a student's, with seeds of its own; the teacher's with the first listed seed alone."""
    where, of = layout.control_finetune_directory(directory, name), f"control {name}"
    label, whose = f"{of}: fine-tune", f"{recipe.name}, {of}"
    if name == UNTRAINED:
        export = layout.control_directory(directory, name) / "export"
        return finetune_piece(label, directory, lambda: export, where, lambda: section, whose, of)
    once = section.model_copy(update={"seeds": section.seeds[:1]})

    def fetch() -> Path:
        return Path(_fetched(recipe, directory))

    piece = finetune_piece(label, directory, fetch, where, lambda: once, whose, of)

    def run() -> None:
        with _may_be_left_out(name):
            piece.run()

    def is_finished() -> bool:  # without fetching it
        return is_tuned(where, Path(teacher_path(recipe, directory) or ""))

    return Piece("finetune teacher", label, is_finished, run, of)


def made_of(recipe: StudyRecipe, directory: Path, name: str) -> dict[str, Any]:
    """What a control's measurement hangs on, as plain data; the pool is not in it, which neither probe nor text has."""
    sections = (*HELD_OUT, "student") if name == UNTRAINED else HELD_OUT
    found = recipe.model_dump(mode="json", include={*sections}, exclude=diff.left_out(StudyRecipe, "record"))
    found["data"].pop("unique_tokens", None)
    found["precision"] = recipe.training.precision
    if name == UNTRAINED:
        found["seed"] = recipe.seeds[0]
    if name != UNTRAINED or recipe.student.initialise.from_teacher:
        found["teacher"] = _teacher_identity(recipe, directory)
    if recipe.student.initialise.path is not None and name == UNTRAINED:
        found["begins_from"] = recipe.student.initialise.path
    return found


def _teacher_identity(recipe: StudyRecipe, directory: Path) -> list[str | None]:
    """The weights of the teacher, as far as they can be told without fetching them, and their revision."""
    if recipe.teacher is None:
        return []
    return [weights_hash(teacher_path(recipe, directory)), recipe.teacher.revision]


def _is_made_of(summary: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a control was made of what is ``wanted``; a key that is younger than its record does not count."""
    recorded = diff.flatten(summary.get("made_of") or {})
    now = diff.flatten(wanted)
    return all(now[key] == value for key, value in recorded.items() if key in now)


def _fetched(recipe: StudyRecipe, directory: Path) -> str:
    """The teacher's directory on this machine. Collective for an id of the hub."""
    path = teacher_path(recipe, directory)
    assert path is not None
    assert recipe.teacher is not None
    if recipe.teacher.path is None:
        return path
    return hub.directory_on_all_ranks(path, recipe.teacher.revision, "teacher")


@contextlib.contextmanager
def _may_be_left_out(name: str) -> Iterator[None]:
    """Let a `ModelError` say that a study goes on without this control."""
    try:
        yield
    except ModelError as error:
        fix = f"{error.fix}; or" if error.fix else "or"
        raise ModelError(error.given, error.expected, f"{fix} leave this control out: controls.{name}=false") from error


def share_controls(grid: Path, cell: Path) -> None:
    """Give a cell what reports read of the grid's controls. Rank 0 alone."""
    for path, copy in _not_shared(grid, cell):
        copy.parent.mkdir(parents=True, exist_ok=True)
        records.write_text(copy, path.read_text(encoding="utf-8"))


def are_shared(grid: Path, cell: Path) -> bool:
    """Whether a cell has the grid's controls as they are now."""
    return not _not_shared(grid, cell)


def _not_shared(grid: Path, cell: Path) -> list[tuple[Path, Path]]:
    """(file of the grid, its place in the cell), where the cell has no such copy."""
    pairs = ((path, cell / path.relative_to(grid)) for path in _shared_files(grid))
    return [(path, copy) for path, copy in pairs if not copy.is_file() or copy.read_bytes() != path.read_bytes()]


def _shared_files(grid: Path) -> list[Path]:
    roots = [place(grid, name) for name in (UNTRAINED, TEACHER) for place in _PLACES]
    return [root / file for root in roots for file in SHARED if (root / file).is_file()]
