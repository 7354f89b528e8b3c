"""The ladder of an arm: both models computed whole, and then one lever after another switched on."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.steps.levers import WHOLE, WHOLE_LEVERS, Levers, carried_out
from benchmarks.steps.variants import Variant
from kd_megatron.objectives import of_arm
from kd_megatron.recipe import StudyRecipe

WITHOUT_RUNGS = ("scratch", "combined", "schedule")  # no teacher, or kernels of several objectives
POOL_STEPS = 4  # after so many steps the cached rung has met every window
LEVERS: dict[str, dict[str, Any]] = {  # what each changes of the rung before it
    "+ fused losses": {"fused_losses": True},
    "+ teacher stops": {"whole_teacher": False},
    "+ student stops": {"whole_student": False},
    "+ torch.compile": {"compiled": True},
    "+ teacher cache": {"cached_teacher": True},
}


def rungs(study: StudyRecipe, arm: str, cache: Path) -> list[Variant]:
    """The rungs of ``arm``, the lowest first; none for `WITHOUT_RUNGS`.

    The rung of torch.compile is there when ``training.compile`` is, that of the teacher cache when what the arm needs
    can be kept; it reads few windows again and again, and is timed when all of them are kept.

    Args:
        study: with the arm's own overrides applied.
        cache: an empty directory for the teacher cache.
    """
    options = of_arm.parse_options(study.arms[arm], where=f"arms.{arm}")
    if options.objective in WITHOUT_RUNGS:
        return []
    can_be_kept = getattr(options, "positions", "masked") != "all"
    return [
        Variant(
            f"ladder/{arm}",
            name,
            carried_out(_on_few_windows(study) if levers.cached_teacher else study, arm, levers, cache),
            arm,
            whole_teacher=levers.whole_teacher,
            whole_student=levers.whole_student,
            num_warmup_steps=2 + POOL_STEPS * levers.cached_teacher,
        )
        for name, levers in _rungs(study)
        if can_be_kept or not levers.cached_teacher
    ]


def _rungs(study: StudyRecipe) -> Iterator[tuple[str, Levers]]:
    levers = WHOLE_LEVERS
    yield WHOLE, levers
    for name, change in LEVERS.items():
        if change.get("compiled") and not study.training.is_compiled:
            continue
        levers = replace(levers, **change)
        yield name, levers


def _on_few_windows(study: StudyRecipe) -> StudyRecipe:
    """``study`` on a pool of `POOL_STEPS` steps, with fixed masks."""
    mask_seed = 0 if study.data.mask_seed is None else study.data.mask_seed
    num_tokens = POOL_STEPS * study.training.global_batch_size * study.data.sequence_length
    data = study.data.model_copy(update={"mask_seed": mask_seed, "unique_tokens": num_tokens})
    return study.model_copy(update={"data": data})
