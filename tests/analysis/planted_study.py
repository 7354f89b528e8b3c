"""A study's results in memory, with chosen numbers: the smallest thing that the code of a report reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import study_on_disk

from kd_megatron.analysis.results import FinishedRun, StudyResults
from kd_megatron.analysis.summaries import Budget, FinetuneSummary, RunSummary, TaskSummary
from kd_megatron.recipe import StudyRecipe
from kd_megatron.recipe.arms import resolve_arm

ARMS = {name: {"objective": "scratch"} for name in ("scratch", "first", "second", "third")}
TASKS = ("CoLA", "SST-2")


def recipe(students: int, arms: int = 4, **changes: Any) -> StudyRecipe:
    """Of scratch and ``arms`` - 1 others, two tasks, with seeds from 0."""
    return study_on_disk.study_recipe(
        num_seeds=students, arms=dict(list(ARMS.items())[:arms]), **{"teacher": None, "notes": []} | changes
    )


def results(study: StudyRecipe, value: Callable[[str, str, int], Any]) -> StudyResults:
    """Finished runs whose numbers are ``value(arm, quantity, seed)``; of a task it may be a score for each fine-tuning.

    Quantities are ``"probe_loss"``, ``"own_loss"`` and tasks; a student's average score is the mean over tasks.
    """
    runs = {arm: {seed: _run(study, arm, seed, value) for seed in study.seeds} for arm in study.arms}
    resolved = {arm: resolve_arm(study, arm) for arm in study.arms}
    return StudyResults(Path("nowhere"), study, runs, None, resolved=resolved)


def _run(study: StudyRecipe, arm: str, seed: int, value: Callable[[str, str, int], Any]) -> FinishedRun:
    losses = value(arm, "probe_loss", seed), value(arm, "own_loss", seed)
    budget = Budget("flops", study_on_disk.BUDGET_FLOPS, study_on_disk.BUDGET_FLOPS, list(study.budget.charge), None)
    spent = study_on_disk.BUDGET_FLOPS
    summary = RunSummary(100, 1000, 1000, 10, spent, 1.0, 10.0, budget, {}, *losses, teacher=None, branch=None)
    tasks = {task.name: value(arm, task.name, seed) for task in study.finetune.tasks} if study.finetune else {}
    finetune = _finetuning(tasks) if tasks else None
    return FinishedRun(arm, seed, 1.0, summary, finetune, [], metrics=[])


def _finetuning(tasks: dict[str, Any]) -> FinetuneSummary:
    made = {}
    for task, found in tasks.items():
        scores = [float(one) for one in (found if hasattr(found, "__len__") else [found])]
        by_seed = {str(number): score for number, score in enumerate(scores)}
        made[task] = TaskSummary("accuracy", sum(scores) / len(scores), len(scores), by_seed)
    return FinetuneSummary(made, sum(one.mean for one in made.values()) / len(made))
