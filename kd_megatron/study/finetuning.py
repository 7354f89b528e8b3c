"""The piece of a study that fine-tunes one student, and that very one.

A student that is made anew has other weights. Scores of the one before it are moved to the study's ``stale``, where
nothing is lost, and the new one is fine-tuned: no score stands beside the losses of another student.
"""

from pathlib import Path

from kd_megatron.files.manifest import model_hash
from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe, arms
from kd_megatron.study import layout
from kd_megatron.study.edits import move_aside
from kd_megatron.study.effective import effective_recipe, read
from kd_megatron.study.piece import Piece


def finetune_piece(
    label: str, recipe: StudyRecipe, directory: Path, arm: str, run: Path, where: Path, of: str
) -> Piece:
    """The fine-tuning of one student; only where the recipe has the section ``finetune``.

    Args:
        run: the directory that the student was trained in.
        where: it is fine-tuned.
    """
    export = run / "export"

    def tune() -> None:
        from kd_megatron.finetune.grid.grid import run_grid
        from kd_megatron.finetune.places import OWNER

        section = arms.resolve_arm(effective_recipe(recipe, directory), arm).finetune
        assert section is not None
        begun = dist.on_main(lambda: read(where / OWNER) or layout.read_summary(where))
        if not dist.on_main(lambda: _is_of(begun, export)):
            dist.on_main(lambda: move_aside([where], directory))
        run_grid(export, section, where)

    def is_finished() -> bool:
        summary = layout.read_summary(where)
        return summary is not None and _is_of(summary, export)

    return Piece("finetune", label, is_finished, tune, of)


def _is_of(found: dict[str, object] | None, export: Path) -> bool:
    """Whether what was ``found`` of a fine-tuning is of the student in ``export``, as far as that can be told."""
    told = (found or {}).get("model_hash")
    return told is None or not export.is_dir() or told == model_hash(export)
