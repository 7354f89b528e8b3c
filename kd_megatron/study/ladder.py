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
class Rung:
    """How an arm's step is carried out. The defaults are the study's way."""

    fused_kernels: bool = False
    whole_teacher: bool = True  # all layers, and the MLM head at every position
    whole_student: bool = True
    compiled: bool = False
    cached: bool = False


POOL_STEPS = 4  # after so many steps the cached rung has met every window
STUDY = "the study's way"  # all of both models, eager losses
LEVERS: dict[str, dict[str, Any]] = {  # what each changes of the rung before it
    "+ fused losses": {"fused_kernels": True},
    "+ teacher stops": {"whole_teacher": False},
    "+ student stops": {"whole_student": False},
    "+ torch.compile": {"compiled": True},
    "+ teacher cache": {"cached": True},
}


def rungs(study: StudyRecipe, arm: str, cache: Path) -> list[Variant]:
    """The rungs of ``arm``, the lowest first; none when it has no teacher.

    The rung of torch.compile is there when ``training.compile`` is, that of the teacher cache when what the arm needs
    can be kept; it reads few windows again and again, and is timed when all of them are kept.

    Args:
        study: with the arm's own overrides applied.
        cache: an empty directory for the teacher cache.
    """
    options = registry.parse_options(study.arms[arm], where=f"arms.{arm}")
    if options.objective == "scratch":
        return []
    can_be_kept = getattr(options, "positions", "masked") != "all"
    return [
        Variant(
            f"ladder/{arm}",
            name,
            _carried_out(study, arm, rung, cache),
            arm,
            whole_teacher=rung.whole_teacher,
            whole_student=rung.whole_student,
            num_warmup_steps=2 + POOL_STEPS * rung.cached,
        )
        for name, rung in _rungs(study)
        if can_be_kept or not rung.cached
    ]


def _rungs(study: StudyRecipe) -> Iterator[tuple[str, Rung]]:
    rung = Rung()
    yield STUDY, rung
    for name, change in LEVERS.items():
        if change.get("compiled") and not study.training.compile:
            continue
        rung = replace(rung, **change)
        yield name, rung


def _carried_out(study: StudyRecipe, arm: str, rung: Rung, cache: Path) -> StudyRecipe:
    raw = study.model_dump(mode="json")
    if not rung.fused_kernels:
        raw["arms"][arm]["backend"] = "reference"
    raw["training"].update(stop_at_last_tap=not rung.whole_student, compile=rung.compiled)
    raw["teacher"]["cache"] = {"path": str(cache)} if rung.cached else None
    if rung.cached:
        mask_seed = 0 if study.data.mask_seed is None else study.data.mask_seed
        num_tokens = POOL_STEPS * study.training.global_batch_size * study.data.sequence_length
        raw["data"].update(mask_seed=mask_seed, unique_tokens=num_tokens)
    return config.validate(StudyRecipe, raw, where=f"the ladder of arm {arm}")
