"""Branches: students of smaller budgets out of one run, each with its learning rate brought down.

A run's learning rate follows its whole budget, so the run as it is half-way is not the student that half the budget
buys. A branch leaves the run shortly before a marker and brings the rate down to zero there (Hu et al. 2024, arXiv
2404.06395; Haegele et al. 2024, arXiv 2405.18392). The run itself keeps a checkpoint at each of these places and is
otherwise what it would be without branches. What a branch spends is charged to no arm's budget. docs/study.md.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kd_megatron import dist
from kd_megatron.schema import MarkersRecipe, StudyRecipe
from kd_megatron.study import results
from kd_megatron.study.finetuning import finetune_piece
from kd_megatron.study.piece import Piece
from kd_megatron.training.schedule import Branch


def branch_pieces(
    recipe: StudyRecipe, directory: Path, arm: str, seed: int, train: Callable[[Path, Branch], Any]
) -> list[Piece]:
    """One piece for each branch of one run, in the order of the budget.

    Args:
        recipe: of the study.
        directory: of the study.
        arm: of the run.
        seed: of the run.
        train: trains the branch into the given directory.
    """
    if recipe.markers is None:
        return []
    return [_branch_piece(recipe, directory, arm, seed, at, train) for at in recipe.markers.branches]


def _branch_piece(
    recipe: StudyRecipe, directory: Path, arm: str, seed: int, fraction: float, train: Callable[[Path, Branch], Any]
) -> Piece:
    markers = recipe.markers
    assert markers is not None
    where, trunk = results.branch_directory(directory, arm, seed, fraction), results.arm_directory(directory, arm, seed)

    def run() -> None:
        from kd_megatron.training.branch import forget_checkpoints, forget_starts, leave

        train(where, leave(trunk, markers.start(fraction), fraction))
        if dist.is_main():
            forget_checkpoints(where)
            if all(results.finished_run(results.branch_directory(directory, arm, seed, at)) for at in markers.branches):
                forget_starts(trunk, recipe.training)
        dist.barrier()

    label = f"{arm} seed {seed}: branch at {100 * fraction:g} % of the budget"
    return Piece("branch", label, lambda: results.finished_run(where) is not None, run, f"{arm} seed {seed}")


def finetune_pieces(recipe: StudyRecipe, directory: Path, arm: str, seed: int) -> list[Piece]:
    """One piece for each branch of one run: fine-tuned exactly as the last student is."""
    if recipe.markers is None or recipe.finetune is None or not recipe.markers.finetune:
        return []
    return [_finetune_piece(recipe, directory, arm, seed, fraction) for fraction in recipe.markers.branches]


def _finetune_piece(recipe: StudyRecipe, directory: Path, arm: str, seed: int, fraction: float) -> Piece:
    branch = results.branch_directory(directory, arm, seed, fraction)
    where = results.marker_directory(directory, arm, seed, fraction)
    label = f"{arm} seed {seed}: fine-tune its branch at {100 * fraction:g} %"
    return finetune_piece(label, recipe, directory, arm, branch, where, f"{arm} seed {seed}")


def caveats(study: results.StudyResults) -> list[str]:
    """What must be known of the students on the way; none where there are none."""
    markers = study.recipe.markers
    found = [marker for run in study.all_runs() for marker in run.markers]
    if markers is None or not found:
        return []
    places = ", ".join(f"{100 * at:g}" for at in markers.branches)
    if markers.decay == 0:
        return [
            f"Scores at {places} % of the budget are of the run as it was there (markers.decay 0): its learning rate "
            "had not come down, and a run with that budget would have ended better."
        ]
    extra = sum(marker.decay_tokens for marker in found)
    said = (
        f"Scores at {places} % of the budget are of branches: each leaves its run for the last "
        f"{100 * markers.decay:g} % of its own budget and brings the learning rate down to zero. Branches of one run "
        f"share what came before, so they are not independent of each other; their {extra:,} tokens in all are "
        "charged to no arm."
    )
    return [said, *_short_branches(study, markers)]


def _short_branches(study: results.StudyResults, markers: MarkersRecipe) -> list[str]:
    short = [
        f"{run.arm} seed {run.seed} at {100 * marker.fraction:g} %"
        for run in study.all_runs()
        for marker in run.markers
        if not marker.decayed
    ]
    if not short:
        return []
    return [f"The budget left no step for the learning rate to come down in these branches: {', '.join(short)}."]
