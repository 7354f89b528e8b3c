"""How a global batch is split over processes, and on each into micro-batches: no result changes but by rounding."""

from dataclasses import dataclass

from kd_megatron.errors import RecipeError
from kd_megatron.recipe import TrainingRecipe


@dataclass(frozen=True)
class BatchSplit:
    """What one process does in an optimizer step."""

    size: int  # sequences of a micro-batch
    count: int  # micro-batches


def split(recipe: TrainingRecipe, num_processes: int) -> BatchSplit:
    """The largest micro-batches of at most ``recipe.micro_batch_size`` that the share of a process divides into.

    Raises:
        RecipeError: the global batch cannot be shared by so many processes.
    """
    if recipe.global_batch_size % num_processes:
        raise RecipeError(
            given=f"training.global_batch_size {recipe.global_batch_size} on {num_processes} processes",
            expected=f"a multiple of {num_processes}, so that every process has as many sequences",
            fix="take a number of processes that divides it; another batch would be another optimisation",
        )
    share = recipe.global_batch_size // num_processes
    size = next(size for size in range(min(recipe.micro_batch_size, share), 0, -1) if share % size == 0)
    return BatchSplit(size, share // size)


def smaller_than_asked(recipe: TrainingRecipe, num_processes: int) -> str:
    """What a user is told where micro-batches are smaller than the recipe allows; empty where they are not."""
    mine = split(recipe, num_processes)
    share = mine.size * mine.count
    if mine.size == min(recipe.micro_batch_size, share):
        return ""
    return (
        f"micro-batches of {mine.size} sequences, {mine.count} a step: training.micro_batch_size "
        f"{recipe.micro_batch_size} does not divide a process's {share} sequences of the batch"
    )
