"""Where a study keeps what, and the small files that say a run is finished."""

from pathlib import Path
from typing import Any

from kd_megatron.errors import OutputError
from kd_megatron.recipe import StudyRecipe, config
from kd_megatron.study.effective import read

RECIPE_FILE = "study.yaml"


def teacher_directory(study: Path) -> Path:
    """Where the study's own teacher is trained."""
    return study / "teacher"


def arm_directory(study: Path, arm: str, seed: int) -> Path:
    """Where one student is pretrained."""
    return study / "arms" / arm / f"seed_{seed}"


def branch_directory(study: Path, arm: str, seed: int, fraction: float) -> Path:
    """Where the branch of one student that ends at ``fraction`` of the budget is trained (`study.students`)."""
    return arm_directory(study, arm, seed) / "markers" / f"{fraction:g}"


def finetune_directory(study: Path, arm: str, seed: int) -> Path:
    """Where one student is fine-tuned."""
    return study / "finetune" / arm / f"seed_{seed}"


def branch_finetune_directory(study: Path, arm: str, seed: int, fraction: float) -> Path:
    """Where that branch is fine-tuned."""
    return finetune_directory(study, arm, seed) / "markers" / f"{fraction:g}"


def read_summary(directory: Path) -> dict[str, Any] | None:
    """The summary in ``directory``; None when there is none yet. Raises `OutputError` when it is not JSON."""
    return read(directory / "summary.json", expected="the summary that a finished run writes")


def finished_run(directory: Path) -> dict[str, Any] | None:
    """The summary of a finished pretraining run, None when it is not finished."""
    summary = read_summary(directory)
    return summary if summary and summary.get("status") == "finished" else None


def is_grid(directory: Path) -> bool:
    """Whether the study in ``directory`` is a grid of studies (`study.cells`)."""
    path = directory / RECIPE_FILE
    return path.is_file() and config.load(path, StudyRecipe).grid is not None


def no_study(directory: Path) -> OutputError:
    """The error that ``directory`` is no study."""
    return OutputError(
        given=f"{directory} is not a study: it has no {RECIPE_FILE}",
        expected="a directory that `./launch.sh study RECIPE` wrote, such as studies/demo",
        fix="check the path, or run the study first",
    )
