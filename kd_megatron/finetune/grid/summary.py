"""From cell files to scores: the best setting of each task, its score per seed, mean and interval; and GLUE's averages.

Those are one number for GLUE in two ways: as the study averages its seven tasks, and as GLUE's leaderboard averages
nine. Both are of dev scores of each task's best setting; the leaderboard's own numbers are of test rows. An average
over fewer tasks than its definition names would be another number: it is None then, and the absent are named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from kd_megatron.finetune.tasks.glue import GLUE
from kd_megatron.finetune.tasks.majority import is_at_majority, majority_score
from kd_megatron.finetune.tasks.metrics import METRICS
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
    majority = majority_score(task)
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
        "majority_score": majority,
        "num_collapsed": sum(_collapsed(cell, majority) for cell in by_setting[best]),
        "cells": [
            {name: cell[name] for name in CELL_FIELDS}
            | {"used_seed": cell.get("used_seed", cell["seed"]), "collapsed": _collapsed(cell, majority)}
            for cell in cells
        ],
        "best_cell": {"learning_rate": best[0], "batch_size": best[1]},
        "scores": {str(cell["seed"]): cell["score"] for cell in by_setting[best]},
        "mean": float(np.mean(scores)),
        "interval": t_interval(scores),
    }


def _collapsed(cell: dict[str, Any], majority: float) -> bool:
    """Whether a cell collapsed; of one that an earlier version finished, by its score alone."""
    return bool(cell.get("collapsed", is_at_majority(cell["score"], majority)))


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


MATCHED, MISMATCHED = "dev_matched/accuracy", "dev_mismatched/accuracy"


@dataclass(frozen=True)
class Average:
    """A definition: for each task the metrics whose mean is its score, and then the mean over tasks."""

    title: str
    parts: dict[str, tuple[str, ...]]


# Bui et al. 2024 (arXiv 2404.19319): MRPC, CoLA, RTE, SST-2, MNLI matched, QQP, QNLI. The metrics are those that the
# study's code names as each task's (metric_monitor in run_glue.py of MinhDucBui/revisiting_distillation).
STUDY = Average(
    "mean of the study's seven tasks (F1 of MRPC and QQP, MNLI matched)",
    {
        "MRPC": ("f1",),
        "CoLA": ("matthews",),
        "RTE": ("accuracy",),
        "SST-2": ("accuracy",),
        "MNLI": (MATCHED,),
        "QQP": ("f1",),
        "QNLI": ("accuracy",),
    },
)
# Wang et al. 2019, section 3.4 and the leaderboard: "for tasks with multiple metrics, we use an unweighted average of
# the metrics as the score for the task when computing the macro-average"; MNLI's two splits count as one task.
LEADERBOARD = Average(
    "macro-average of GLUE's leaderboard (nine tasks, here on dev)",
    {name: METRICS[task.metric].parts for name, task in GLUE.items()} | {"MNLI": (MATCHED, MISMATCHED)},
)


def averages(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The part ``averages`` of ``summary.json``.

    Args:
        tasks: its part ``tasks``: metrics of the cells, the best setting, partial splits.

    Returns:
        For ``study`` and ``leaderboard``: title; ``average`` over tasks (None when one is absent), its value per seed
        (``scores``) and 95 % ``interval``; the value of each task; names of ``absent`` and of ``partial`` tasks.
    """
    return {"study": _average(STUDY, tasks), "leaderboard": _average(LEADERBOARD, tasks)}


def _average(definition: Average, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    values: dict[str, dict[str, float]] = {}  # task -> seed -> value
    absent = []
    for name, parts in definition.parts.items():
        found = _by_seed(tasks[name], parts) if name in tasks else None
        if found is None:
            absent.append(f"{name} (its official dev sets)" if name in tasks else name)
        else:
            values[name] = found
    scores: dict[str, float] = {}
    if not absent:
        seeds = [seed for seed in next(iter(values.values())) if all(seed in found for found in values.values())]
        scores = {seed: float(np.mean([found[seed] for found in values.values()])) for seed in seeds}
    means = {name: float(np.mean(list(found.values()))) for name, found in values.items()}
    return {
        "title": definition.title,
        "average": None if absent else float(np.mean(list(means.values()))),
        "interval": t_interval(list(scores.values())),
        "scores": scores,
        "tasks": means,
        "absent": absent,
        "partial": [name for name in values if tasks[name]["partial_split"]],
    }


def best_cells(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cells of a task's best setting, one per seed, from its part of ``summary.json``."""
    best, seeds = task["best_cell"], task["scores"]
    settings = ("learning_rate", "batch_size")
    return [
        cell
        for cell in task["cells"]
        if all(cell[name] == best[name] for name in settings) and str(cell["seed"]) in seeds
    ]


def _by_seed(task: Mapping[str, Any], parts: Sequence[str]) -> dict[str, float] | None:
    """Seed -> mean of ``parts`` in the best setting; None when a part was not measured."""
    values = {}
    for cell in best_cells(task):
        metrics = cell["metrics"]
        names = ["accuracy" if part == MATCHED and part not in metrics else part for part in parts]
        if any(name not in metrics for name in names):
            return None
        values[str(cell["seed"])] = float(np.mean([metrics[name] for name in names]))
    return values
