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


def teacher_path(recipe: StudyRecipe, directory: Path) -> str | None:
    """The teacher of all arms: the given one, or the export of the study's own."""
    if recipe.teacher is None:
        return None
    return expand(recipe.teacher.path) if recipe.teacher.path else str(layout.teacher_directory(directory) / "export")
