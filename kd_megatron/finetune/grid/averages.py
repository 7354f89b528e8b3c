"""One number for GLUE, in two ways: as the study averages its seven tasks, and as GLUE's leaderboard averages nine.

Both are computed from dev scores of the best setting of each task; the leaderboard's own numbers are of test rows. An
average over fewer tasks than its definition names would be another number: it is None then, and the absent are named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kd_megatron.finetune.grid.summary import t_interval

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
    {
        "CoLA": ("matthews",),
        "SST-2": ("accuracy",),
        "MRPC": ("f1", "accuracy"),
        "STS-B": ("pearson", "spearman"),
        "QQP": ("f1", "accuracy"),
        "MNLI": (MATCHED, MISMATCHED),
        "QNLI": ("accuracy",),
        "RTE": ("accuracy",),
        "WNLI": ("accuracy",),
    },
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
