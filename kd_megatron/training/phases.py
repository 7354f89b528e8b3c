"""The phases of a run: which objective trains now, and what goes over to the next one.

A boundary is a resume with another objective. A checkpoint is written there, and the engine is built anew and goes on
with the student's weights, the ledger, the position in the data and the marks of the budget; the learning rate is a
function of the whole budget. Adam's moments go on for parameters that both phases train, and so does its count of
updates; a parameter that begins to train has moments of zero (so its first update is (1 - b1) / sqrt(1 - b2) of the
rate, 0.7 with the usual betas, where a new run's is the whole rate). An objective's own parameters begin at their first
values.

A run that dies at any moment resumes in the phase that its checkpoint names: the boundary is crossed again, alike.
"""

from dataclasses import dataclass
from typing import Any, Self

from kd_megatron.objectives.base import ObjectiveOptions
from kd_megatron.objectives.schedule import Phase, phase_at

KEY = "phase"  # of a checkpoint's run state; absent where an arm has one phase


@dataclass
class PhasePosition:
    """Where a run is in the phases of its arm."""

    phases: list[Phase]
    number: int = 0  # from 0, of the phase that trains now
    trained_last: int = 0  # of the phase that trained the newest step
    never_trained: list[str] | None = None  # parameters; None before the first phase is known
    teacher_parameters: int = 0  # the most that a phase's teacher had
    training_bytes: int | None = None  # the most that a step of this process took before it went on from a checkpoint

    @classmethod
    def resumed(cls, phases: list[Phase], state: dict[str, Any]) -> Self:
        """From the run state of a checkpoint (empty: at the beginning)."""
        if KEY not in state:
            return cls(phases)
        found = state[KEY]
        return cls(
            phases,
            found["next"],
            found["written_in"],
            found["never_trained"],
            found["teacher_parameters"],
            found.get("training_bytes"),
        )

    @property
    def crosses(self) -> bool:
        """Whether the next step is this phase's first, after one of an earlier phase."""
        return self.number != self.trained_last

    @property
    def options(self) -> ObjectiveOptions:
        """Of the objective that trains now."""
        return self.phases[self.number].options

    @property
    def until(self) -> float:
        """The budget fraction at which it ends."""
        return self.phases[self.number].until

    @property
    def in_words(self) -> str:
        """Such as ``phase 2 of 2, minilm``; empty for an arm of one phase."""
        return (
            f"phase {self.number + 1} of {len(self.phases)}, {self.options.objective}" if len(self.phases) > 1 else ""
        )

    def enter(self, untrained: list[str], teacher_parameters: int) -> None:
        """Count in what this phase trains, and its teacher."""
        before = untrained if self.never_trained is None else self.never_trained
        self.never_trained = [name for name in before if name in set(untrained)]
        self.teacher_parameters = max(self.teacher_parameters, teacher_parameters)

    def most_bytes(self, measured: int | None) -> int | None:
        """The larger of what a step of this phase took, if it was measured, and of those before."""
        return max((size for size in (self.training_bytes, measured) if size is not None), default=None)

    def state(self, fraction: float, training_bytes: int | None) -> dict[str, Any]:
        """What a checkpoint at budget ``fraction`` holds of it; ``training_bytes`` is what a step took, if measured."""
        if len(self.phases) == 1:
            return {}
        return {
            KEY: {
                "written_in": self.number,
                "next": phase_at(self.phases, fraction),
                "never_trained": self.never_trained,
                "teacher_parameters": self.teacher_parameters,
                "training_bytes": self.most_bytes(training_bytes),
            }
        }
