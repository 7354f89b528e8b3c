"""From cell files to scores: the best setting of each task, its score per seed, mean and interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from kd_megatron.finetune.tasks.selection import selection_words
from kd_megatron.finetune.tasks.tasks import Task
from kd_megatron.recipe import FinetuneRecipe

CELL_FIELDS = ("learning_rate", "batch_size", "seed", "key", "score", "selection_score", "metrics")  # key: of its files


def summarise_task(task: Task, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The task's part of ``summary.json``.

    Args:
        cells: contents of all its cell files, in the order of the grid; with successive halving those of the plan.

    Returns:
        The best cell is the learning rate and batch size with the highest mean selection score over seeds, of those
        that ran with all seeds; the first of them when several are equal. Unless rows of train were held out, it is
        chosen on the rows that its score is read from, which flatters it.
    """
    by_setting: dict[tuple[float, int], list[dict[str, Any]]] = {}
    for cell in cells:
        by_setting.setdefault((cell["learning_rate"], cell["batch_size"]), []).append(cell)
    num_seeds = max(map(len, by_setting.values()))
    chosen_by = {
        setting: float(np.mean([cell["selection_score"] for cell in group]))
        for setting, group in by_setting.items()
        if len(group) == num_seeds
    }
    best = max(chosen_by, key=lambda setting: chosen_by[setting])
    scores = [cell["score"] for cell in by_setting[best]]
    return {
        "metric": task.metric.title,
        "content_hash": task.content_hash(),
        "partial_split": task.partial_split,
        "note": task.note,
        "num_train": len(task.train),
        "num_dev": task.num_dev,
        "num_runs": len(cells),
        "selection": {
            "rows": "dev" if task.selection is None else "held out of train",
            "num_rows": task.num_dev if task.selection is None else len(task.selection),
            "num_settings": len(by_setting),
            "score": chosen_by[best],
        },
        "cells": [{name: cell[name] for name in CELL_FIELDS} for cell in cells],
        "best_cell": {"learning_rate": best[0], "batch_size": best[1]},
        "scores": {str(cell["seed"]): cell["score"] for cell in by_setting[best]},
        "mean": float(np.mean(scores)),
        "interval": t_interval(scores),
    }


def summarise(tasks: dict[str, dict[str, Any]], recipe: FinetuneRecipe) -> dict[str, Any]:
    """The part of ``summary.json`` that is over all tasks, from what `summarise_task` gave for each."""
    return {
        "precision": recipe.precision,
        "tasks": tasks,
        "average": sum(part["mean"] for part in tasks.values()) / len(tasks),
        "selection": selection_words(recipe.grid.num_settings, recipe.selection),
        "settings": recipe.model_dump(mode="json"),
    }


def t_interval(scores: Sequence[float]) -> list[float] | None:
    """Student's 95 % interval of the mean over seeds, [low, high]; None for fewer than two scores."""
    if len(scores) < 2:
        return None
    mean, error = float(np.mean(scores)), float(stats.sem(scores))
    half_width = error * float(stats.t.ppf(0.975, len(scores) - 1))
    return [mean - half_width, mean + half_width]
