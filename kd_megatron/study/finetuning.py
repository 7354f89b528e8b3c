"""The piece of a study that fine-tunes one model, and that very one.

A student that is made anew has other weights. Scores of the one before it are moved to the study's ``stale``, where
nothing is lost, and the new one is fine-tuned: no score stands beside the losses of another student.
"""

from collections.abc import Callable
from pathlib import Path

from kd_megatron.files.manifest import model_hash
from kd_megatron.ranks import dist
from kd_megatron.recipe import FinetuneRecipe, StudyRecipe, arms
from kd_megatron.study import layout
from kd_megatron.study.edits import move_aside
from kd_megatron.study.effective import effective_recipe, read
from kd_megatron.study.piece import Piece


def student_finetune_piece(
    label: str, recipe: StudyRecipe, directory: Path, student: tuple[str, int, float], run: Path, where: Path
) -> Piece:
    """The fine-tuning of one student; only where the recipe has the section ``finetune``.

    Args:
        student: arm, seed, and the fraction of the budget at which it ended. Its fine-tuning seeds are a function of
            these and the study's name.
        run: the directory that it was trained in.
        where: it is fine-tuned.
    """
    arm, seed, fraction = student

    def section() -> FinetuneRecipe:
        found = arms.resolve_arm(effective_recipe(recipe, directory), arm).finetune
        assert found is not None
        return found

    whose = f"{recipe.name}, {arm}, seed {seed}, {fraction:g} of the budget"
    return finetune_piece(label, directory, lambda: run / "export", where, section, whose, f"{arm} seed {seed}")


def finetune_piece(
    label: str,
    directory: Path,
    model: Callable[[], Path],
    where: Path,
    section: Callable[[], FinetuneRecipe],
    whose: str,
    of: str,
) -> Piece:
    """The fine-tuning of a model into ``where``; label and ``of`` as of `Piece`.

    Args:
        directory: of the study.
        model: where it is on this machine; all ranks ask when it is run, rank 0 whether it is finished.
        section: the settings, when it is run.
        whose: what its seeds are a function of (`finetune.grid.seeds`).
    """

    def tune() -> None:
        from kd_megatron.finetune.grid.grid import run_grid
        from kd_megatron.finetune.places import OWNER

        found = model()
        begun = dist.on_main(lambda: read(where / OWNER) or layout.read_summary(where))
        if not dist.on_main(lambda: _is_of(begun, found)):
            dist.on_main(lambda: move_aside([where], directory))
        run_grid(found, section(), where, whose)

    return Piece("finetune", label, lambda: is_tuned(where, model()), tune, of)


def is_tuned(where: Path, model: Path) -> bool:
    """Whether a fine-tuning in ``where`` is finished, and of this model as far as that can be told."""
    summary = layout.read_summary(where)
    return summary is not None and _is_of(summary, model)


def _is_of(found: dict[str, object] | None, model: Path) -> bool:
    """Whether what was ``found`` of a fine-tuning is of this model, as far as that can be told."""
    told = (found or {}).get("model_hash")
    return told is None or not model.is_dir() or told == model_hash(model)
