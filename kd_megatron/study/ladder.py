"""The ladder of an arm: the study's way of computing its step, and then one lever after another switched on.

A lever is a named change of how the arm is carried out; none changes what the arm learns.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kd_megatron import config
from kd_megatron.objectives import registry
from kd_megatron.schema import StudyRecipe
from kd_megatron.study.timed_run import Variant


@dataclass(frozen=True)
class Execution:
    """How an arm's step is carried out. The defaults are the study's way."""

    fused_kernels: bool = False
    whole_teacher: bool = True  # all layers, and the MLM head at every position
    whole_student: bool = True
    compiled: bool = False


STUDY = "the study's way"  # all of both models, eager losses
LEVERS: dict[str, dict[str, Any]] = {  # what each changes of the rung before it
    "+ fused losses": {"fused_kernels": True},
    "+ teacher stops": {"whole_teacher": False},
    "+ student stops": {"whole_student": False},
    "+ torch.compile": {"compiled": True},
}


def rungs(study: StudyRecipe, arm: str, cache: Path) -> list[Variant]:
    """The rungs of ``arm``, the lowest first; none when it has no teacher.

    Args:
        study: with the arm's own overrides applied. The rung of torch.compile is there when ``training.compile`` is.
        cache: an empty directory for the rung with a teacher cache.
    """
    options = registry.parse_options(study.arms[arm], where=f"arms.{arm}")
    if options.objective == "scratch":
        return []
    return [
        Variant(
            f"ladder/{arm}",
            name,
            _carried_out(study, arm, execution),
            arm,
            whole_teacher=execution.whole_teacher,
            whole_student=execution.whole_student,
        )
        for name, execution in _executions(study)
    ]


def _executions(study: StudyRecipe) -> Iterator[tuple[str, Execution]]:
    execution = Execution()
    yield STUDY, execution
    for name, change in LEVERS.items():
        if change.get("compiled") and not study.training.compile:
            continue
        execution = replace(execution, **change)
        yield name, execution


def _carried_out(study: StudyRecipe, arm: str, execution: Execution) -> StudyRecipe:
    raw = study.model_dump(mode="json")
    if not execution.fused_kernels:
        raw["arms"][arm]["backend"] = "reference"
    raw["training"].update(stop_at_last_tap=not execution.whole_student, compile=execution.compiled)
    if raw["teacher"]:
        raw["teacher"]["cache"] = None
    return config.validate(StudyRecipe, raw, where=f"the ladder of arm {arm}")
