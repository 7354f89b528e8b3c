"""Which tasks are averaged and why, with what guessing scores and how many fine-tunings of each arm collapsed."""

from typing import Any

from kd_megatron.analysis.inclusion import JudgedTask
from kd_megatron.analysis.results import StudyResults
from kd_megatron.console import units
from kd_megatron.report.page.table import Column, Table, named, numbers, texts


def table(results: StudyResults) -> Table | None:
    """A row for each task; None where the majority class was not recorded."""
    if not results.judged or results.recipe.finetune is None:
        return None
    arms = [arm for arm in results.arms if any(arm in one.num_cells for one in results.judged)]
    columns = [
        *texts("task", "metric"),
        *numbers(units.points, majority_score="majority class"),
        *texts(best="best arm's mean"),
        *[Column(f"collapsed_{arm}", f"collapsed, {arm}", units.plain) for arm in arms],
        *texts(averaged="averaged"),
    ]
    rule = results.recipe.finetune.inclusion
    note = (
        "A fine-tuning is collapsed when its model gives every dev row one answer, or scores what the majority class "
        "does; counted are those with each student's best setting. A task is averaged when some arm's mean is at "
        f"least {100 * rule.above_majority:g} points above the majority class, and at most "
        f"{100 * rule.most_collapsed:g} % of the fine-tunings of all students collapsed. The average is over the same "
        "tasks for all arms."
    )
    return Table("inclusion", "Which tasks are averaged", columns, [_row(one, arms) for one in results.judged], note)


def _row(one: JudgedTask, arms: list[str]) -> dict[str, Any]:
    counts = {
        f"collapsed_{arm}": f"{one.collapsed[arm]} of {one.num_cells[arm]}" if arm in one.num_cells else None
        for arm in arms
    }
    return {
        **named(one, "task", "metric", "majority_score"),
        "best": f"{units.points(one.best_mean)} ({one.best_arm})",
        **counts,
        "averaged": "yes" if one.is_averaged else f"no: {one.against}",
    }


def left_out(results: StudyResults) -> dict[str, str]:
    """Task -> why the average does not have it, in words."""
    return {one.task: one.against for one in results.judged or [] if not one.is_averaged}
