"""The rows by which the best setting of a grid is chosen: the dev rows, or a slice of train that is not trained on.

Choosing on the dev rows that the score is read from flatters a score a little, and the more so the more settings there
are. A slice of train costs training rows instead.
"""

import dataclasses
import hashlib

import numpy as np

from kd_megatron.errors import DataError
from kd_megatron.finetune.tasks.tasks import Task
from kd_megatron.recipe import FinetuneRecipe, SelectionRecipe

SLICE_SEED = 1404  # every arm and every seed of a study holds out the same rows
NUM_STRATA = 10  # of a regression: its labels are values, so that ranges of equal size stand for classes


def hold_out(task: Task, recipe: SelectionRecipe) -> Task:
    """``task`` with ``selection``, a slice of its training rows that is taken away from them; or ``task`` as it is.

    The slice has the same labels in the same proportions, depends on the task's name and rows alone, and the slice of a
    smaller fraction lies within that of a larger one.

    Raises:
        DataError: the slice would be too small to tell settings apart.
    """
    if recipe.on == "dev":
        return task
    held = _slice_of(task, recipe.fraction)
    kept = sorted(set(range(len(task.train))) - set(held))
    selection = task.train.at(held)
    if len(set(selection.labels)) < 2:
        raise DataError(
            given=f"{task.name}: {recipe.fraction:g} of {len(task.train)} training rows are {len(held)} rows"
            + (", all with one label" if held else ""),
            expected="a slice with at least two different labels",
            fix="raise selection.fraction, or set selection.on to dev",
        )
    said = f"train: {len(held)} of {len(task.train)} rows held out to select by"
    return dataclasses.replace(
        task,
        train=task.train.at(kept),
        selection=selection,
        note="; ".join(part for part in (task.note, said) if part),
    )


def selection_words(num_settings: int, recipe: SelectionRecipe) -> str:
    """Which cell a score is of, in words for tables."""
    if num_settings == 1:
        return "only setting of the grid (nothing was selected)"
    if recipe.on == "dev":
        return f"best of {num_settings} settings, selected on the dev rows it is read from"
    return f"best of {num_settings} settings, selected on rows held out of train"


def idle_settings(recipe: FinetuneRecipe) -> list[str]:
    """What the recipe asks for that does nothing with this grid, in words."""
    found = []
    one_setting = recipe.grid.num_settings == 1
    if recipe.selection.on == "train_slice" and one_setting:
        found.append(
            f"selection.on=train_slice holds {recipe.selection.fraction:.0%} of the training rows out, but a grid of "
            "one setting leaves them nothing to choose; selection.on=dev trains on them"
        )
    if recipe.halving and (one_setting or len(recipe.seeds) == 1):
        found.append(f"halving=true gives nothing up with one {'setting' if one_setting else 'seed'}")
    return found


def _slice_of(task: Task, fraction: float) -> list[int]:
    """Indices of the held-out rows: of every stratum the first ones of its own fixed random order."""
    name_seed = int.from_bytes(hashlib.sha256(task.name.encode()).digest()[:4], "big")
    held: list[int] = []
    for number, stratum in enumerate(_strata(task)):
        order = np.random.default_rng([SLICE_SEED, name_seed, number]).permutation(stratum)
        held += order[: min(len(stratum) - 1, round(fraction * len(stratum)))].tolist()
    return sorted(held)


def _strata(task: Task) -> list[np.ndarray]:
    labels = np.array(task.train.labels)
    if task.regression:
        return [part for part in np.array_split(np.argsort(labels, kind="stable"), NUM_STRATA) if len(part)]
    return [np.flatnonzero(labels == value) for value in np.unique(labels)]
