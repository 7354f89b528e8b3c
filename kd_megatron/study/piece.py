"""The parts a study is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_megatron.recipe import StudyRecipe
from kd_megatron.recipe.paths import expand
from kd_megatron.study import layout


@dataclass(frozen=True)
class Piece:
    """One resumable part of a study, with one file that says it is finished."""

    kind: str  # "data", "teacher", "pretrain", "finetune": pieces of a kind take about as long as each other
    label: str
    is_finished: Callable[[], bool]
    run: Callable[[], Any]
    of: str | None = None  # the student that it is a part of, "minilm seed 0": if it diverges, the other students go on
    # all before it must be finished when it begins, and all after it wait for it: what they build on, such as a teacher
    barrier: bool = False
    is_shared: bool = False  # made of pieces that are taken one by one: several processes may be in it


def teacher_path(recipe: StudyRecipe, directory: Path) -> str | None:
    """The teacher of all arms: the given one, or the export of the study's own."""
    if recipe.teacher is None:
        return None
    return expand(recipe.teacher.path) if recipe.teacher.path else str(layout.teacher_directory(directory) / "export")
