"""Where a branch leaves its run, and the checkpoints that are not needed once it is finished."""

import shutil
from pathlib import Path

from kd_megatron.engine import checkpoint
from kd_megatron.errors import OutputError
from kd_megatron.ranks import dist
from kd_megatron.recipe import TrainingRecipe
from kd_megatron.training.schedule import Branch
from kd_megatron.training.setup import CHECKPOINTS, FRACTION


def leave(trunk: Path, start: float, end: float) -> Branch:
    """The branch that leaves the run in ``trunk`` at ``start`` of its budget, or at the first step after. Collective.

    Raises:
        OutputError: the run kept no checkpoint of there.
    """

    def look() -> Branch:
        for path, about in checkpoint.kept_for_good(trunk / CHECKPOINTS):
            if spent(about) >= start:
                return Branch(path, about.step, spent(about), end)
        raise OutputError(
            given=f"{trunk / CHECKPOINTS} has no checkpoint of {100 * start:g} % of the budget, where a branch leaves",
            expected="the checkpoints that a run with markers keeps until all its branches are finished",
            fix=f"remove {trunk} and run the study again: that run and its branches are repeated",
        )

    return dist.on_main(look)


def spent(about: checkpoint.About) -> float:
    """The fraction of the budget at which a checkpoint was taken; below zero in those of earlier versions."""
    return float(about.run.get(FRACTION, -1.0))


def forget_checkpoints(run: Path) -> None:
    """Remove the checkpoints of a finished branch or trial: nothing goes on from them. Rank 0 alone."""
    shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)


def forget_starts(trunk: Path, recipe: TrainingRecipe) -> None:
    """Remove the checkpoints that a run kept for branches alone, when all are finished. Rank 0 alone."""
    kept = checkpoint.kept_for_good(trunk / CHECKPOINTS)
    own = set(checkpoint.published(trunk / CHECKPOINTS)[-recipe.keep_checkpoints :])
    for at in recipe.keep_at:
        own |= {path for path, _ in [one for one in kept if spent(one[1]) >= at][:1]}
    for path, about in kept:
        by_number = recipe.keep_every_steps is not None and about.step % recipe.keep_every_steps == 0
        if not by_number and path not in own:
            checkpoint.remove(path)
