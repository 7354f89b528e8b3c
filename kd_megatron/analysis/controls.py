"""The controls of a study, read back: the untrained student and the teacher, measured as students are.

They are no arms: nothing is compared with them, and no check or law has them in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_megatron.analysis import inclusion, summaries
from kd_megatron.analysis.summaries import ControlSummary, FinetuneSummary
from kd_megatron.recipe.controls import TEACHER, UNTRAINED
from kd_megatron.study import layout

TITLES = {UNTRAINED: "untrained student", TEACHER: "teacher"}


@dataclass(frozen=True)
class Control:
    """One of them, as far as it is finished."""

    name: str
    summary: ControlSummary | None
    finetune: FinetuneSummary | None
    is_finetuned: bool  # whether the study fine-tunes at all

    @property
    def title(self) -> str:
        """In words."""
        return TITLES[self.name]

    @property
    def missing(self) -> list[str]:
        """What there is not of it, in words."""
        if self.summary is None:
            return [f"the {self.title}"]
        return [f"fine-tuning of the {self.title}"] if self.is_finetuned and self.finetune is None else []

    def score(self, averaged: Sequence[str]) -> float | None:
        """Mean score over the tasks ``averaged``; None where there is none, or it lacks one."""
        return inclusion.average_of(self.finetune, averaged)

    def task_score(self, task: str) -> float | None:
        """Score of one task; None before fine-tuning."""
        found = self.finetune.tasks.get(task) if self.finetune else None
        return found.mean if found else None


def load_control(study: Path, name: str, is_finetuned: bool) -> Control:
    """What there is of one control. Raises `OutputError` when a summary is damaged."""
    summary = summaries.control(layout.control_directory(study, name))
    tuned = layout.control_finetune_directory(study, name)
    finetune = summaries.finetuned(tuned, summary) if summary and is_finetuned else None
    return Control(name, summary, finetune, is_finetuned)
