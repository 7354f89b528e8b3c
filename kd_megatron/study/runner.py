"""Runs a study: data, teacher, students (seeds x arms), fine-tuning, report. All ranks call it and go in lockstep.

A study is a list of pieces, each with one file that says it is finished, so that the same command goes on where the
last one stopped. Arms alternate within a seed: an interrupted study has compared every arm with the seeds it reached.
"""

from pathlib import Path
from typing import Any

from kd_megatron import config, dist, logs, marks, recipe_yaml
from kd_megatron.errors import DataError, OutputError, disk_full_is_clear
from kd_megatron.manifest import MANIFEST
from kd_megatron.paths import refuse_file_or_links_out
from kd_megatron.schema import CorpusRecipe, StudyRecipe
from kd_megatron.study import fairness, markers, results, tuning
from kd_megatron.study.clock import Clock
from kd_megatron.study.effective import CALIBRATION_FILE, WITHOUT_WORDS, effective_recipe, read, recipe_of_run
from kd_megatron.study.piece import Piece, teacher_path
from kd_megatron.training.schedule import Branch

MAY_GROW = ("seeds", "grid.budgets", "grid.unique_tokens")  # lists


def run_study(recipe: StudyRecipe, directory: Path) -> None:
    """Do everything of ``recipe`` that is not done yet in ``directory``, and write the report.

    Raises:
        RecipeError: the arms differ in more than the study allows.
        OutputError: ``directory`` holds another study.
        KdError: whatever a piece raises; what is finished stays.
    """
    begin(recipe, directory)
    run_pieces(pieces(recipe, directory), directory)
    if dist.is_main():
        from kd_megatron.study import report

        report.write_report(directory)
    dist.barrier()


def begin(recipe: StudyRecipe, directory: Path) -> None:
    """Refuse what cannot be a fair study, then make ``directory`` this one's own. Collective.

    Raises:
        RecipeError: the arms differ in more than the study allows, or a trial of its tuning cannot be run.
        OutputError: ``directory`` holds another study.
    """
    fairness.check(recipe)
    tuning.check(recipe)
    claim(recipe, directory)


def run_pieces(work: list[Piece], directory: Path) -> None:
    """Run what is not finished of ``work``, in its order. Collective."""
    clock = Clock([piece.kind for piece in work])
    for number, piece in enumerate(work, start=1):
        head = rf"\[{number}/{len(work)}] {piece.label}"  # the backslash: rich would read [1/8] as markup
        if dist.from_main(piece.is_finished()):
            clock.skip(piece.kind)
            logs.say(f"[dim]{head}: finished before[/dim]")
            continue
        logs.say(f"[bold]{head}[/bold]{clock.estimate()}")
        with clock.measure(piece.kind), disk_full_is_clear(directory):
            piece.run()


def prepare_inputs(recipe: StudyRecipe, directory: Path) -> None:
    """What one run needs before it starts: the data, and the teacher where the study trains its own."""
    for piece in input_pieces(recipe, directory):
        if not dist.from_main(piece.is_finished()):
            logs.say(piece.label)
            piece.run()


def input_pieces(recipe: StudyRecipe, directory: Path) -> list[Piece]:
    """The pieces that all students build on."""
    found = [_data_piece(recipe)] if recipe.data.corpus else []
    if recipe.teacher and recipe.teacher.train:
        found.append(_teacher_piece(recipe, directory))
    return found


def preparing_pieces(recipe: StudyRecipe, directory: Path) -> list[Piece]:
    """What comes before the students: inputs, and what decides how they are trained."""
    from kd_megatron.study.calibration import calibration_pieces

    return [
        *input_pieces(recipe, directory),
        *calibration_pieces(recipe, directory),
        *tuning.tuning_pieces(recipe, directory),
    ]


def pieces(recipe: StudyRecipe, directory: Path) -> list[Piece]:
    """The pieces of a study, in the order they are run; of a grid, a piece for each cell."""
    from kd_megatron.study.study_grid import cell_pieces

    of_students = cell_pieces if recipe.grid else student_pieces
    return [*preparing_pieces(recipe, directory), *of_students(recipe, directory)]


def student_pieces(recipe: StudyRecipe, directory: Path) -> list[Piece]:
    """Every student's training, its branches, and its fine-tuning; arms alternate within a seed."""
    found = []
    students = [(arm, seed) for seed in recipe.seeds for arm in recipe.arms]
    for arm, seed in students:
        found += _training_pieces(recipe, directory, arm, seed)
    for arm, seed in students if recipe.finetune else []:
        found.append(_finetune_piece(recipe, directory, arm, seed))
        found += markers.finetune_pieces(recipe, directory, arm, seed)
    return found


def _data_piece(recipe: StudyRecipe) -> Piece:
    shards = [Path(entry.path) for entry in recipe.data.shards]

    def run() -> None:
        if dist.is_main():
            from data_prep import prepare

            corpus = config.load(recipe.data.corpus or "", CorpusRecipe)
            with marks.stage("data preparation", watched=False):
                prepare.prepare(corpus)
        dist.wait_for_all()
        absent = [str(path) for path in shards if not (path / MANIFEST).is_file()]
        if absent:
            raise DataError(
                given=f"data.corpus {recipe.data.corpus} was prepared, but {', '.join(absent)} is still not there",
                expected="data.shards paths that the corpus recipe writes (its 'output')",
                fix="make data.shards and the corpus recipe's output agree, or prepare the other shard sets first",
            )

    return Piece("data", "data: prepare", lambda: all((path / MANIFEST).is_file() for path in shards), run)


def _teacher_piece(recipe: StudyRecipe, directory: Path) -> Piece:
    where = results.teacher_directory(directory)

    def run() -> None:
        from kd_megatron.training.run import train_teacher

        train_teacher(recipe.model_copy(update={"tuning": None, **WITHOUT_WORDS}), where)

    return Piece("teacher", "teacher: train", lambda: results.finished_run(where) is not None, run)


def _training_pieces(recipe: StudyRecipe, directory: Path, arm: str, seed: int) -> list[Piece]:
    """One student's run, and what branches off it."""
    where = results.arm_directory(directory, arm, seed)

    def train(into: Path, branch: Branch | None = None) -> None:
        from kd_megatron.training.run import pretrain

        study = recipe_of_run(recipe, directory, arm, seed)
        if calibration := read(directory / CALIBRATION_FILE):
            from kd_megatron.study.calibration import refuse_other_machine

            refuse_other_machine(calibration)
        pretrain(study, arm, seed, into, teacher_path(recipe, directory), branch)

    label = f"{arm} seed {seed}: pretrain"
    run = Piece("pretrain", label, lambda: results.finished_run(where) is not None, lambda: train(where))
    return [run, *markers.branch_pieces(recipe, directory, arm, seed, train)]


def _finetune_piece(recipe: StudyRecipe, directory: Path, arm: str, seed: int) -> Piece:
    where = results.finetune_directory(directory, arm, seed)

    def run() -> None:
        from kd_megatron.finetune.grid import run_grid

        section = fairness.resolve_arm(effective_recipe(recipe, directory), arm).finetune
        assert section is not None  # pieces() makes this piece only when there is one
        run_grid(results.arm_directory(directory, arm, seed) / "export", section, where)

    return Piece("finetune", f"{arm} seed {seed}: fine-tune", lambda: results.read_summary(where) is not None, run)


def claim(recipe: StudyRecipe, directory: Path) -> None:
    """Make ``directory`` this study's own, or check that it is.

    Growing is allowed (more seeds, more arms, other words); anything else would mix two studies.

    Raises:
        OutputError: the directory holds other files, or a study whose recipe differs; the keys are named.
    """
    refuse_file_or_links_out(directory)
    problem = dist.from_main(_claim_on_main(recipe, directory) if dist.is_main() else None)
    if problem:
        raise OutputError(
            given=f"{directory} {problem}",
            expected=f"an empty directory, or one that already holds study {recipe.name} with the same recipe",
            fix="give another --output (or name), or restore the recipe; to start over, remove the directory",
        )


def _claim_on_main(recipe: StudyRecipe, directory: Path) -> str | None:
    path = directory / results.RECIPE_FILE
    if path.is_file():
        keys = changed_keys(config.load(path, StudyRecipe), recipe)
        if keys:
            return "holds a study with another recipe; these keys differ: " + "; ".join(keys)
    elif directory.exists() and any(directory.iterdir()):
        return f"is not empty and holds no {results.RECIPE_FILE}"
    with disk_full_is_clear(directory):
        directory.mkdir(parents=True, exist_ok=True)
        logs.write_text(path, recipe_yaml.dump(recipe.model_dump(mode="json")))
    return None


def _holds(longer: Any, shorter: list[Any]) -> bool:
    return isinstance(longer, list) and all(value in longer for value in shorter)


def changed_keys(old: StudyRecipe, new: StudyRecipe) -> list[str]:
    """The keys in which ``new`` is not ``old`` or a growth of it, each with both values."""
    before, after = (
        fairness.flatten(recipe.model_dump(mode="json", exclude={*WITHOUT_WORDS})) for recipe in (old, new)
    )
    changed = []
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) == after.get(key):
            continue
        if key in MAY_GROW and isinstance(before.get(key), list) and _holds(after.get(key), before[key]):
            continue
        if key.startswith("arms.") and not any(key.startswith(f"arms.{arm}.") for arm in old.arms):
            continue
        changed.append(f"{key} was {before.get(key)!r}, is {after.get(key)!r}")
    return changed
