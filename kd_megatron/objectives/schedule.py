"""One objective after another, by the share of the budget that is spent: say half of it from scratch, then distil.

A phase is an objective with its options and ``until``, the budget fraction at which it ends; the last one ends at 1. A
phase boundary is a resume with another objective (`kd_megatron/training/phases.py`), and each phase is charged what its
own objective costs.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from kd_megatron.objectives import registry
from kd_megatron.objectives.base import ObjectiveOptions
from kd_megatron.objectives.combined import CombinedOptions, backend_of, for_a_validator, own_keys
from kd_megatron.recipe import config
from kd_megatron.recipe.config import Strict


class PhaseKeys(Strict):
    """What a phase says beside its objective's options."""

    until: Annotated[float, Field(gt=0.0, le=1.0)]


@dataclass(frozen=True)
class Phase:
    """A stretch of the budget under one objective."""

    begins: float  # budget fractions
    until: float
    options: ObjectiveOptions

    @property
    def share(self) -> float:
        """Of the budget."""
        return self.until - self.begins


class ScheduleOptions(ObjectiveOptions):
    """Options of objective ``schedule``. A schedule is no objective itself: see `phases_of`."""

    made_of: ClassVar[str] = "phases"
    objective: Literal["schedule"]
    phases: Annotated[list[dict[str, Any]], Field(min_length=2)]

    @field_validator("phases")
    @classmethod
    def _follow_each_other(cls, phases: list[dict[str, Any]]) -> list[dict[str, Any]]:
        ends = [own_keys(PhaseKeys, phase, f"phase {number}").until for number, phase in enumerate(phases, start=1)]
        if ends != sorted(set(ends)) or ends[-1] != 1.0:
            raise ValueError(
                f"until is {', '.join(f'{end:g}' for end in ends)}; write rising fractions that end at 1.0"
            )
        for number, phase in enumerate(phases, start=1):
            _options_of(phase, number)
        return phases

    @model_validator(mode="after")
    def _inputs_belong_to_phases(self) -> Self:
        if "inputs" in self.model_fields_set:
            raise ValueError("inputs belongs to a phase, which may read other text than the one before")
        return self

    @property
    def backend(self) -> str:
        """What the phases ask for, for the check that all arms use the same kernels."""
        return backend_of([phase.options for phase in phases_of(self)])


def phases_of(options: ObjectiveOptions) -> list[Phase]:
    """The phases of a schedule; the one phase of any other objective."""
    if not isinstance(options, ScheduleOptions):
        return [Phase(0.0, 1.0, options)]
    ends = [own_keys(PhaseKeys, phase, f"phase {number}").until for number, phase in enumerate(options.phases, start=1)]
    parsed = [_options_of(phase, number) for number, phase in enumerate(options.phases, start=1)]
    return [Phase(*entry) for entry in zip([0.0, *ends[:-1]], ends, parsed, strict=True)]


def split(raw: dict[str, Any]) -> list[tuple[float, dict[str, Any]]]:
    """An arm's options as written -> (share of the budget, options as written) of each phase."""
    if raw.get("objective") != "schedule":
        return [(1.0, raw)]
    ends = [phase["until"] for phase in raw["phases"]]
    shares = [end - begins for begins, end in zip([0.0, *ends[:-1]], ends, strict=True)]
    written = [{key: value for key, value in phase.items() if key != "until"} for phase in raw["phases"]]
    return list(zip(shares, written, strict=True))


def phase_at(phases: list[Phase], fraction: float) -> int:
    """The number, from 0, of the phase that trains the step which begins at budget ``fraction``."""
    return next((number for number, phase in enumerate(phases) if fraction < phase.until), len(phases) - 1)


def _options_of(phase: dict[str, Any], number: int) -> ObjectiveOptions:
    """The options of a phase as written. Raises ValueError where they do not parse, or name a schedule."""
    where, options = f"phase {number}", {key: phase[key] for key in phase if key not in PhaseKeys.model_fields}
    if options.get("objective") == "schedule":
        raise ValueError(f"{where} has objective schedule; write its parts or phases out instead")
    with for_a_validator():
        if options.get("objective") == "combined":
            return config.validate(CombinedOptions, options, where)
        return registry.parse_simple(options, where, ("combined",))
