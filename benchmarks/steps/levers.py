"""Levers: named changes of how an arm's step is carried out, none of which changes what the arm learns."""

from dataclasses import dataclass
from pathlib import Path

from kd_megatron.recipe import StudyRecipe, config

WHOLE = "both models whole"  # all of both models, eager losses


@dataclass(frozen=True)
class Levers:
    """How an arm's step is carried out. The defaults are ours; float8 and a cache change roundings."""

    fused_losses: bool = True  # else the backend `reference`
    whole_teacher: bool = False  # all layers, and the MLM head at every position
    whole_student: bool = False
    compiled: bool = False
    fp8_teacher: bool = False
    cached_teacher: bool = False

    @property
    def is_for_teachers(self) -> bool:
        """Whether it changes nothing of an arm without a teacher."""
        return self.fp8_teacher or self.cached_teacher


WHOLE_LEVERS = Levers(fused_losses=False, whole_teacher=True, whole_student=True)


def carried_out(study: StudyRecipe, arm: str, levers: Levers, cache: Path) -> StudyRecipe:
    """The recipe of ``arm`` by ``levers``, as far as a recipe can say it; ``cache``: directory of a teacher cache."""
    raw = study.model_dump(mode="json")
    if not levers.fused_losses:
        raw["arms"][arm]["backend"] = "reference"
    raw["training"].update(stop_at_last_tap=not levers.whole_student, compile=levers.compiled)
    raw["teacher"]["cache"] = {"path": str(cache)} if levers.cached_teacher else None
    if levers.fp8_teacher:
        raw["teacher"]["precision"] = "fp8"
    return config.validate(StudyRecipe, raw, where=f"the levers of arm {arm}")
