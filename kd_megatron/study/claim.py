"""Makes a directory one study's own, and says what an edited recipe leaves valid of it.

Growing is free: more seeds, more arms, other words. So is an edit of what nothing has run with yet. Otherwise what the
edit makes stale is named, arm by arm, and `--redo` moves exactly that aside; nothing is ever removed.
"""

from collections.abc import Sequence
from pathlib import Path

from kd_megatron.errors import EnvironmentFault, OutputError, RecipeError, disk_full_is_clear, nearest
from kd_megatron.files import locks, records
from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe, config, recipe_yaml
from kd_megatron.recipe.paths import refuse_file_or_links_out
from kd_megatron.study import layout
from kd_megatron.study.cells import CELLS
from kd_megatron.study.edits import FINETUNE, STALE, RecipeChange, compare, move_aside
from kd_megatron.study.effective import CALIBRATION_FILE, TUNING_FILE, read

PARTS = ("arms", FINETUNE, "tuning")  # directories with one of each arm in them
OF_EACH_ARM = ("arms", "chosen", "trials", "at_edge", "charged")  # parts of a calibration, and of a tuning


def claim_study(recipe: StudyRecipe, directory: Path, redo: Sequence[str] = ()) -> None:
    """Make ``directory`` this study's own, or check that it is. Collective.

    Args:
        recipe: as the file says.
        directory: of the study.
        redo: arms whose stale runs are moved aside, and ``"finetune"`` for all fine-tunings. What is not stale stays
            where it is, so that the same command can be given again after a stop.

    Raises:
        OutputError: the directory holds other files, or runs that the recipe has made stale; keys and runs are named.
        RecipeError: ``redo`` names no arm.
    """
    if unknown := [name for name in redo if name not in (*recipe.arms, FINETUNE)]:
        raise RecipeError(given=f"--redo {unknown[0]}: {nearest(unknown[0], [*recipe.arms, FINETUNE])}")
    refuse_file_or_links_out(directory)
    problem = dist.on_main(lambda: _claim_alone(recipe, directory, redo))
    if problem:
        given, expected, fix = problem
        raise OutputError(given=f"{directory} {given}", expected=expected, fix=fix)


def _claim_alone(recipe: StudyRecipe, directory: Path, redo: Sequence[str]) -> tuple[str, str, str] | None:
    """`_claim_on_main`, one process after another: several may begin one study at a time."""
    with disk_full_is_clear(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with locks.exclusive(directory.parent, wait=True):
            return _claim_on_main(recipe, directory, redo)


def _claim_on_main(recipe: StudyRecipe, directory: Path, redo: Sequence[str]) -> tuple[str, str, str] | None:
    path = directory / layout.RECIPE_FILE
    if path.is_file():
        found = compare(config.load(path, StudyRecipe), recipe)
        if problem := _problem(found, recipe, directory, redo):
            return problem
        _move_aside(found, directory)
    elif directory.exists() and any(directory.iterdir()):
        return (
            f"is not empty and holds no {layout.RECIPE_FILE}",
            f"an empty directory, or one that already holds study {recipe.name}",
            "give another --output (or name)",
        )
    with disk_full_is_clear(directory):
        directory.mkdir(parents=True, exist_ok=True)
        records.write_text(path, recipe_yaml.dump(recipe.model_dump(mode="json")))
    return None


def begun(directory: Path, arm: str) -> list[str]:
    """What there is of ``arm``, of a grid in its cells too, in words; empty when nothing has run yet."""
    runs = (path for study in _studies(directory) for path in (study / "arms" / arm).glob("seed_*"))
    seeds = sorted({int(path.name.removeprefix("seed_")) for path in runs})
    found = [f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"] if seeds else []
    return found + ["its trials"] * (directory / "tuning" / arm).is_dir()


def has_begun(directory: Path) -> bool:
    """Whether a run of some arm, or a trial, has begun."""
    return any(any((study / part).glob("*/*")) for study in _studies(directory) for part in PARTS)


def _studies(directory: Path) -> list[Path]:
    """The directory itself and, where it is a grid's, those of its cells."""
    return [directory, *sorted((directory / CELLS).glob("*"))]


def _problem(
    change: RecipeChange, recipe: StudyRecipe, directory: Path, redo: Sequence[str]
) -> tuple[str, str, str] | None:
    """(given, expected, fix) where something that has run would be stale or left out, and is not to be redone."""
    stale = [arm for arm in change.arms if begun(directory, arm)]
    teacher_is_stale = change.teacher and layout.teacher_directory(directory).is_dir()
    tuned = (place for study in _studies(directory) for place in layout.finetune_directories(study))
    finetune_is_stale = change.finetune and any(place.is_dir() for place in tuned)
    wanted = [*stale, *[FINETUNE] * finetune_is_stale]
    shrunk = change.shrunk if has_begun(directory) else []
    if not shrunk and not teacher_is_stale and set(wanted) <= set(redo):
        return None
    valid = [arm for arm in recipe.arms if arm not in stale and begun(directory, arm)]
    found = [("stale", stale), ("still valid", valid)]
    lines = [f"{word}: {_listed(directory, arms)}" for word, arms in found if arms]
    lines += ["stale: all fine-tunings (the students stay valid)"] * (finetune_is_stale and not stale)
    lines += ["stale: the study's own teacher"] * teacher_is_stale
    restore = "restore the recipe, or give another --output (or name)"
    if shrunk:
        restore = f"put back what {', '.join(shrunk)} leaves out (a study only grows); {restore}"
    elif not teacher_is_stale:
        moved = f"what is stale is moved to {directory / STALE}, and that alone is done anew"
        restore = f"--redo {','.join(wanted)}: {moved}; or {restore}"
    given = f"holds a study with another recipe; these keys differ: {'; '.join(change.keys)}"
    return given, "; ".join([f"the recipe that study {recipe.name} was begun with", *lines]), restore


def _listed(directory: Path, arms: list[str]) -> str:
    return ", ".join(f"{arm} ({', '.join(begun(directory, arm))})" for arm in arms)


def _move_aside(change: RecipeChange, directory: Path) -> None:
    """Move what is stale to a new directory of ``stale``, each by one rename; a stop in between is made up for.

    A grid's cells are studies that are claimed in their turn: each moves what is its own.
    """
    sources = [directory / part / arm for arm in change.arms for part in PARTS]
    sources += layout.finetune_directories(directory) * change.finetune
    for name in (CALIBRATION_FILE, TUNING_FILE):
        _forget(directory / name, change.arms)
    move_aside(sources, directory)


def _forget(path: Path, arms: list[str]) -> None:
    """Take stale arms out of what was measured or chosen for all: that piece is then done again for them alone."""
    found = read(path)
    if found is None:
        return
    kept = {
        key: {arm: entry for arm, entry in part.items() if arm not in arms} if key in OF_EACH_ARM and part else part
        for key, part in found.items()
    }
    if kept != found:
        records.write_json(path, kept)


def recalibrate(directory: Path) -> None:
    """Put a calibration of another machine aside, so that it is made here anew; one of this machine stays. Collective.

    Raises:
        OutputError: students have begun, whose steps it fixed.
    """
    from kd_megatron.study.calibration import refuse_other_machine

    found = dist.from_main(read(directory / CALIBRATION_FILE))
    if found is None:
        return
    try:
        refuse_other_machine(found)
    except EnvironmentFault as other:
        trained = dist.from_main([arm for arm in found["arms"] if begun(directory, arm)])
        if trained:
            raise OutputError(
                given=f"--recalibrate: {other.given}, and there are runs with the steps of that calibration "
                f"({_listed(directory, trained)})",
                expected="one calibration for all runs of a study",
                fix="go on where it was made, or begin anew here with another --output",
            ) from other
        if dist.is_main():
            (directory / CALIBRATION_FILE).unlink()
        dist.barrier()
