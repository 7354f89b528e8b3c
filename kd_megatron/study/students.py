"""The pieces of every student: its run, its branches, its fine-tuning."""

from pathlib import Path

from kd_megatron.recipe import StudyRecipe
from kd_megatron.study import branches, layout
from kd_megatron.study.begin import refuse_too_small
from kd_megatron.study.effective import recipe_of_run
from kd_megatron.study.finetuning import finetune_piece
from kd_megatron.study.piece import Piece, teacher_path
from kd_megatron.training.schedule import Branch


def student_pieces(recipe: StudyRecipe, directory: Path) -> list[Piece]:
    """Every student's training, its branches, and its fine-tuning; arms alternate within a seed."""
    found = []
    students = [(arm, seed) for seed in recipe.seeds for arm in recipe.arms]
    for arm, seed in students:
        found += _training_pieces(recipe, directory, arm, seed)
    for arm, seed in students if recipe.finetune else []:
        found.append(_finetune_piece(recipe, directory, arm, seed))
        found += branches.finetune_pieces(recipe, directory, arm, seed)
    return found


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
    return [run, *branches.branch_pieces(recipe, directory, arm, seed, train)]


def _finetune_piece(recipe: StudyRecipe, directory: Path, arm: str, seed: int) -> Piece:
    run, where = (place(directory, arm, seed) for place in (layout.arm_directory, layout.finetune_directory))
    of = f"{arm} seed {seed}"
    return finetune_piece(f"{of}: fine-tune", recipe, directory, arm, run, where, of)
