"""Which tasks an average is over: those that some arm learns, and whose fine-tuning rarely fails (docs/finetuning.md).

A task at the majority class adds the same constant to every arm, and one whose fine-tunings collapse now and then adds
the luck of the draw. Which tasks stay is decided by all arms together, so that all averages are over the same ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from kd_megatron.analysis.summaries import FinetuneSummary, TaskSummary
from kd_megatron.recipe import InclusionRecipe

ROUNDING = 1e-9  # of a score or a share: what is at the limit is within it
Tasks = Mapping[str, TaskSummary]  # of one student


@dataclass(frozen=True)
class JudgedTask:
    """One task of a study, as all its students found it."""

    task: str
    metric: str
    majority_score: float
    collapsed: dict[str, int]  # arm -> fine-tunings with the best setting that collapsed
    num_cells: dict[str, int]  # arm -> fine-tunings with the best setting
    best_arm: str
    best_mean: float  # that arm's, over its students
    against: str  # why the task is not averaged, in words; empty where it is

    @property
    def is_averaged(self) -> bool:
        """Whether the average has it."""
        return not self.against


def judge(names: Sequence[str], arms: Mapping[str, Sequence[Tasks]], rule: InclusionRecipe) -> list[JudgedTask] | None:
    """Hold each task against ``rule``; None where it cannot be applied: some record has no majority class, or is none.

    Args:
        names: the tasks, in the recipe's order.
        arms: arm -> what fine-tuning found of each of its students, at the end of their budget.
    """
    tuned = {arm: [tasks for tasks in students if tasks] for arm, students in arms.items()}
    parts = {name: {arm: [tasks[name] for tasks in tuned[arm] if name in tasks] for arm in tuned} for name in names}
    known = {name: {arm: found for arm, found in by_arm.items() if found} for name, by_arm in parts.items()}
    known = {name: by_arm for name, by_arm in known.items() if by_arm}
    every = [part for by_arm in known.values() for found in by_arm.values() for part in found]
    if not every or any(part.majority_score is None for part in every):
        return None
    return [_judged(name, by_arm, rule) for name, by_arm in known.items()]


def average_of(finetune: FinetuneSummary | None, averaged: Sequence[str] | None) -> float | None:
    """Mean score of a fine-tuning over the tasks ``averaged``; None where it lacks one, or there is none."""
    if finetune is None or averaged is None:
        return finetune.average if finetune else None
    if not averaged or not finetune.tasks.keys() >= {*averaged}:
        return None
    return fmean(finetune.tasks[task].mean for task in averaged)


def _judged(task: str, by_arm: Mapping[str, Sequence[TaskSummary]], rule: InclusionRecipe) -> JudgedTask:
    first = next(iter(by_arm.values()))[0]
    majority = first.majority_score
    assert majority is not None  # `judge` has looked
    means = {arm: fmean(part.mean for part in parts) for arm, parts in by_arm.items()}
    best = max(means, key=lambda arm: means[arm])
    collapsed = {arm: sum(part.num_collapsed for part in parts) for arm, parts in by_arm.items()}
    num_cells = {arm: sum(len(part.scores) for part in parts) for arm, parts in by_arm.items()}
    share = sum(collapsed.values()) / max(1, sum(num_cells.values()))
    against = []
    if not means[best] - majority >= rule.above_majority - ROUNDING:
        against.append(
            f"no arm is {100 * rule.above_majority:g} points above the majority class ({best} is by "
            f"{100 * (means[best] - majority):.1f})"
        )
    if share > rule.most_collapsed + ROUNDING:
        against.append(
            f"{sum(collapsed.values())} of {sum(num_cells.values())} fine-tunings collapsed (at most "
            f"{100 * rule.most_collapsed:g} % may)"
        )
    said = ", and ".join(against)
    return JudgedTask(task, first.metric, majority, collapsed, num_cells, best, means[best], said)
