"""The pieces of every student: its run, its branches, its fine-tuning.

A run's learning rate follows its whole budget, so the run as it is half-way is not the student that half the budget
buys. A branch leaves the run shortly before a marker and brings the rate down to zero there (Hu et al. 2024, arXiv
2404.06395; Haegele et al. 2024, arXiv 2405.18392). The run itself keeps a checkpoint at each of these places and is
otherwise what it would be without branches. What a branch spends is charged to no arm's budget. docs/study.md.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe
from kd_megatron.study import layout
from kd_megatron.study.begin import refuse_too_small
from kd_megatron.study.effective import recipe_of_run
from kd_megatron.study.finetuning import student_finetune_piece
from kd_megatron.study.piece import Piece, teacher_path
from kd_megatron.training.schedule import Branch


def student_pieces(recipe: StudyRecipe, directory: Path) -> list[Piece]:
    """Every student's training, its branches, and its fine-tuning; arms alternate within a seed."""
    return training_pieces(recipe, directory) + finetuning_pieces(recipe, directory)


def training_pieces(recipe: StudyRecipe, directory: Path) -> list[Piece]:
    """Every student's training and its branches."""
    return [piece for student in _students(recipe) for piece in _training_pieces(recipe, directory, *student)]


def finetuning_pieces(recipe: StudyRecipe, directory: Path) -> list[Piece]:
    """Every student's fine-tuning, and that of its branches; none without the section ``finetune``."""
    if recipe.finetune is None:
        return []
    return [piece for student in _students(recipe) for piece in _finetune_pieces(recipe, directory, *student)]


def _students(recipe: StudyRecipe) -> list[tuple[str, int]]:
    """(arm, seed); arms alternate within a seed."""
    return [(arm, seed) for seed in recipe.seeds for arm in recipe.arms]


def _training_pieces(recipe: StudyRecipe, directory: Path, arm: str, seed: int) -> list[Piece]:
    """One student's run, and what branches off it."""
    where = layout.arm_directory(directory, arm, seed)

    def train(into: Path, branch: Branch | None = None) -> None:
        from kd_megatron.study.calibration import require_this_machine
        from kd_megatron.training.run import pretrain

        study = recipe_of_run(recipe, directory, arm, seed)
        require_this_machine(directory)
        refuse_too_small(recipe, directory)  # here too: before the data was prepared, FLOPs could not be counted
        pretrain(study, arm, seed, into, teacher_path(recipe, directory), branch)

    of = f"{arm} seed {seed}"
    run = Piece("pretrain", f"{of}: pretrain", lambda: layout.finished_run(where) is not None, lambda: train(where), of)
    markers = recipe.markers
    place = partial(layout.branch_directory, directory, arm, seed)
    branches = [_branch_piece(recipe, where, place, at, train, of) for at in markers.branches] if markers else []
    return [run, *branches]


def _branch_piece(
    recipe: StudyRecipe,
    trunk: Path,
    place: Callable[[float], Path],
    at: float,
    train: Callable[[Path, Branch], Any],
    of: str,
) -> Piece:
    """What leaves the run in ``trunk`` to end ``at`` a fraction of its budget; ``place`` is where such a one lies."""
    markers, where = recipe.markers, place(at)
    assert markers is not None

    def run() -> None:
        from kd_megatron.training.branch import forget_checkpoints, forget_starts, leave

        train(where, leave(trunk, markers.start(at), at))
        if dist.is_main():
            forget_checkpoints(where)
            if all(layout.finished_run(place(other)) for other in markers.branches):
                forget_starts(trunk, recipe.training)
        dist.barrier()

    label = f"{of}: branch at {100 * at:g} % of the budget"
    return Piece("branch", label, lambda: layout.finished_run(where) is not None, run, of)


def _finetune_pieces(recipe: StudyRecipe, directory: Path, arm: str, seed: int) -> list[Piece]:
    """One student's fine-tuning, and that of its branches, exactly alike."""
    of = f"{arm} seed {seed}"
    student = directory, arm, seed
    places = layout.arm_directory(*student), layout.finetune_directory(*student)
    found = [student_finetune_piece(f"{of}: fine-tune", recipe, directory, (arm, seed, 1.0), *places)]
    for at in recipe.markers.branches if recipe.markers and recipe.markers.finetune else []:
        label = f"{of}: fine-tune its branch at {100 * at:g} %"
        places = layout.branch_directory(*student, at), layout.branch_finetune_directory(*student, at)
        found.append(student_finetune_piece(label, recipe, directory, (arm, seed, at), *places))
    return found
