"""Where a branch leaves its run, and the checkpoints that are not needed once it is finished."""

import shutil
from pathlib import Path

from kd_megatron.engine import checkpoint
from kd_megatron.errors import OutputError
from kd_megatron.ranks import dist
from kd_megatron.recipe import TrainingRecipe
from kd_megatron.training.run import SUMMARY, read_summary
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


def prune(directory: Path) -> tuple[int, int]:
    """Remove the checkpoints of the finished runs in ``directory``, but for those that are kept for good.

    For good are those of `training.keep_every_steps` and `training.keep_at`, and those that branches have still to
    leave from. A run that is not finished, of a study that goes on beside this say, is left alone.

    Args:
        directory: a run, or one that holds runs at any depth, such as a study or a grid.

    Returns:
        How many checkpoints were removed, and the bytes of their files.

    Raises:
        OutputError: there is no finished run in ``directory``.
    """
    finished = [path.parent for path in sorted(directory.rglob(SUMMARY)) if read_summary(path.parent)]
    if not finished:
        raise OutputError(
            given=f"{directory} holds no finished run",
            expected="a run, a study or a grid with a summary.json in it",
            fix="correct the path, such as studies/NAME; runs that are not finished need their checkpoints",
        )
    removed = [_remove(path) for run in finished for path in checkpoint.droppable(run / CHECKPOINTS, keep=0)]
    return len(removed), sum(removed)


def _remove(path: Path) -> int:
    num_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    checkpoint.remove(path)
    return num_bytes
