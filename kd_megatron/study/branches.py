"""Branches: students of smaller budgets out of one run, each with its learning rate brought down.

A run's learning rate follows its whole budget, so the run as it is half-way is not the student that half the budget
buys. A branch leaves the run shortly before a marker and brings the rate down to zero there (Hu et al. 2024, arXiv
2404.06395; Haegele et al. 2024, arXiv 2405.18392). The run itself keeps a checkpoint at each of these places and is
otherwise what it would be without branches. What a branch spends is charged to no arm's budget. docs/study.md.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe
from kd_megatron.study import layout
from kd_megatron.study.finetuning import finetune_piece
from kd_megatron.study.piece import Piece
from kd_megatron.training.schedule import Branch


def branch_pieces(
    recipe: StudyRecipe, directory: Path, arm: str, seed: int, train: Callable[[Path, Branch], Any]
) -> list[Piece]:
    """One piece for each branch of one run, in the order of the budget."""
    if recipe.markers is None:
        return []
    return [_branch_piece(recipe, directory, arm, seed, at, train) for at in recipe.markers.branches]


def _branch_piece(
    recipe: StudyRecipe, directory: Path, arm: str, seed: int, fraction: float, train: Callable[[Path, Branch], Any]
) -> Piece:
    markers = recipe.markers
    assert markers is not None
    where, trunk = layout.branch_directory(directory, arm, seed, fraction), layout.arm_directory(directory, arm, seed)

    def run() -> None:
        from kd_megatron.training.branch import forget_checkpoints, forget_starts, leave

        train(where, leave(trunk, markers.start(fraction), fraction))
        if dist.is_main():
            forget_checkpoints(where)
            if all(layout.finished_run(layout.branch_directory(directory, arm, seed, at)) for at in markers.branches):
                forget_starts(trunk, recipe.training)
        dist.barrier()

    label = f"{arm} seed {seed}: branch at {100 * fraction:g} % of the budget"
    return Piece("branch", label, lambda: layout.finished_run(where) is not None, run, f"{arm} seed {seed}")


def finetune_pieces(recipe: StudyRecipe, directory: Path, arm: str, seed: int) -> list[Piece]:
    """One piece for each branch of one run: fine-tuned exactly as the last student is."""
    if recipe.markers is None or recipe.finetune is None or not recipe.markers.finetune:
        return []
    return [_finetune_piece(recipe, directory, arm, seed, fraction) for fraction in recipe.markers.branches]


def _finetune_piece(recipe: StudyRecipe, directory: Path, arm: str, seed: int, fraction: float) -> Piece:
    branch = layout.branch_directory(directory, arm, seed, fraction)
    where = layout.marker_directory(directory, arm, seed, fraction)
    label = f"{arm} seed {seed}: fine-tune its branch at {100 * fraction:g} %"
    return finetune_piece(label, recipe, directory, arm, branch, where, f"{arm} seed {seed}")
