"""From cell files to scores: the best cell of each task on dev, its score per seed, mean and interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from kd_megatron.finetune.tasks import Task

SELECTION = "best cell on dev"
CELL_FIELDS = ("learning_rate", "batch_size", "seed", "key", "score", "metrics")  # the key leads to the cell's files


def summarise_task(task: Task, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The task's part of ``summary.json``.

    Args:
        task: the task.
        cells: contents of all its cell files, in the order of the grid.

    Returns:
        The best cell is the learning rate and batch size with the highest mean score over seeds, the first of them
        when several are equal. It is chosen on the rows that its score is read from, which flatters it.
    """
    by_setting: dict[tuple[float, int], list[dict[str, Any]]] = {}
    for cell in cells:
        by_setting.setdefault((cell["learning_rate"], cell["batch_size"]), []).append(cell)
    means = {setting: float(np.mean([cell["score"] for cell in group])) for setting, group in by_setting.items()}
    best = max(means, key=lambda setting: means[setting])
    return {
        "metric": task.metric.title,
        "partial_split": task.partial_split,
        "note": task.note,
        "num_train": len(task.train),
        "num_dev": task.num_dev,
        "cells": [{name: cell[name] for name in CELL_FIELDS} for cell in cells],
        "best_cell": {"learning_rate": best[0], "batch_size": best[1]},
        "scores": {str(cell["seed"]): cell["score"] for cell in by_setting[best]},
        "mean": means[best],
    }


def t_interval(scores: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of the mean over seeds; None for fewer than two scores."""
    if len(scores) < 2:
        return None
    mean, error = float(np.mean(scores)), float(stats.sem(scores))
    half_width = error * float(stats.t.ppf((1 + level) / 2, len(scores) - 1))
    return mean - half_width, mean + half_width
