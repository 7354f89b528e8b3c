"""Runs a study: data, teacher, students (seeds x arms), fine-tuning, report. All ranks call it and go in lockstep.

A study is a list of pieces, each with one file that says it is finished, so that the same command goes on where the
last one stopped. Arms alternate within a seed: an interrupted study has compared every arm with the seeds it reached.
"""

from collections.abc import Sequence
from pathlib import Path

from kd_megatron import config, dist, logs, marks
from kd_megatron.data.pools import planned_pools
from kd_megatron.engine.batch_split import split
from kd_megatron.errors import DataError, NonFiniteError, disk_full_is_clear
from kd_megatron.manifest import MANIFEST, read_manifest
from kd_megatron.schema import CorpusRecipe, StudyRecipe
from kd_megatron.study import fairness, markers, results, tuning
from kd_megatron.study.claim import claim
from kd_megatron.study.clock import Clock
from kd_megatron.study.effective import WITHOUT_WORDS, recipe_of_run
from kd_megatron.study.finetuning import finetune_piece
from kd_megatron.study.piece import Piece, teacher_path
from kd_megatron.study.study_grid import cell_recipe, places
from kd_megatron.training.schedule import Branch


def run_study(recipe: StudyRecipe, directory: Path, redo: Sequence[str] = ()) -> None:
    """Do everything of ``recipe`` that is not done yet in ``directory``, and write the report.

    Args:
        recipe: as the file says.
        directory: of the study.
        redo: what of an edited study is moved aside and done anew (`claim`).

    Raises:
        RecipeError: the arms differ in more than the study allows.
        OutputError: ``directory`` holds another study.
        NonFiniteError: a student diverged. The others are finished, and the report says which one is missing.
        KdError: whatever else a piece raises; what is finished stays.
    """
    begin(recipe, directory, redo)
    diverged = run_pieces(pieces(recipe, directory, redo), directory)
    if dist.is_main():
        from kd_megatron.study.reporting import report

        report.write_report(directory)
    dist.barrier()
    raise_diverged(diverged)


def begin(recipe: StudyRecipe, directory: Path, redo: Sequence[str] = ()) -> None:
    """Refuse what cannot be a fair study, then make ``directory`` this one's own. Collective.

    Raises:
        RecipeError: the arms differ in more than the study allows, a trial of its tuning cannot be run, or the budget
            is too small for a step and the validations.
        DataError: a pool of ``unique_tokens`` is larger than the text, or holds no window.
        OutputError: ``directory`` holds another study, or runs that the recipe has made stale.
    """
    fairness.check(recipe)
    tuning.check(recipe)
    refuse_too_small(recipe, directory)
    require_pools(recipe)
    claim(recipe, directory, redo)


def refuse_too_small(recipe: StudyRecipe, directory: Path) -> None:
    """Raise `RecipeError` for a budget below one step, or with fewer steps than validations, where that can be told.

    So is a batch refused that so many processes cannot share. Looked at are arms that are not trained yet. Tokens can
    always be counted, FLOPs once the data is prepared; seconds are calibration's affair.
    """
    from kd_megatron.engine.flops import arm_cost
    from kd_megatron.study.budget_checks import require_enough
    from kd_megatron.study.planner.plan_arms import charged_flops_per_token

    runs = {arm: [results.arm_directory(directory, arm, seed) for seed in recipe.seeds] for arm in recipe.arms}
    waiting = [arm for arm, places in runs.items() if any(results.finished_run(place) is None for place in places)]
    charged = tuning.less_trials(recipe)
    resolved = {arm: fairness.resolve_arm(charged, arm) for arm in waiting}
    for one in resolved.values():
        split(one.training, dist.world_size())  # refuses a batch that so many processes cannot share
    prices = dict.fromkeys(resolved, 0.0)
    if recipe.budget.unit == "flops":
        shards = Path(recipe.data.shards[0].path)
        if not (shards / MANIFEST).is_file():
            return
        vocab_size = read_manifest(str(shards)).vocab_size
        prices = {arm: charged_flops_per_token(one, arm_cost(one, arm, vocab_size)) for arm, one in resolved.items()}
    for arm, one in resolved.items():
        require_enough(one, {arm: prices[arm]})


def require_pools(recipe: StudyRecipe) -> None:
    """Raise `DataError` for a pool that the text is too small for, of any cell, where the data is prepared."""
    paths = [shards.path for shards in recipe.data.shards]
    if not all((Path(path) / MANIFEST).is_file() for path in paths):
        return
    manifests = [read_manifest(path) for path in paths]
    for one in [cell_recipe(recipe, place) for place in places(recipe)] or [recipe]:
        planned_pools(one.data, manifests)


def run_pieces(work: list[Piece], directory: Path) -> dict[str, NonFiniteError]:
    """Run what is not finished of ``work``, in its order. Collective.

    A student that diverges is given up with the rest of its pieces, and the others go on: a run is a function of its
    recipe, so that it would diverge again, and one arm's fault would keep all others from being compared.

    Returns:
        The students that diverged, each with its error.
    """
    clock = Clock([piece.kind for piece in work])
    diverged: dict[str, NonFiniteError] = {}
    for number, piece in enumerate(work, start=1):
        head = rf"\[{number}/{len(work)}] {piece.label}"  # the backslash: rich would read [1/8] as markup
        if dist.on_main(piece.is_finished):
            clock.skip(piece.kind)
            logs.say(f"[dim]{head}: finished before[/dim]")
            continue
        if piece.of in diverged:
            clock.skip(piece.kind)
            logs.say(f"[dim]{head}: left out, {piece.of} diverged[/dim]")
            continue
        logs.say(f"[bold]{head}[/bold]{clock.estimate()}")
        try:
            with clock.measure(piece.kind), disk_full_is_clear(directory):
                piece.run()
        except NonFiniteError as error:  # on all ranks
            if piece.of is None:
                raise
            clock.skip(piece.kind)
            diverged[piece.of] = error
            logs.warn(f"{piece.of} is given up, the others go on: {error.given}")
    return diverged


def raise_diverged(diverged: dict[str, NonFiniteError]) -> None:
    """Raise what one student, or several, ended with, after all the others are done."""
    if diverged:
        raise NonFiniteError(
            given="; ".join(f"{name} diverged: {error.given}" for name, error in diverged.items()),
            expected="students that stay finite; all others are done, and the report names those that are missing",
            fix="give their arms a smaller learning rate, alike in all arms or by tuning, and use --redo",
        )


def prepare_inputs(recipe: StudyRecipe, directory: Path) -> None:
    """What one run needs before it starts: the data, and the teacher where the study trains its own."""
    from kd_megatron.training.run import refuse_other_teacher

    for piece in input_pieces(recipe, directory):
        if not dist.on_main(piece.is_finished):
            logs.say(piece.label)
            piece.run()
        elif piece.kind == "teacher":  # no study has compared the recipe with the one that it was trained by
            dist.on_main(lambda: refuse_other_teacher(_as_trained(recipe), results.teacher_directory(directory)))


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


def pieces(recipe: StudyRecipe, directory: Path, redo: Sequence[str] = ()) -> list[Piece]:
    """The pieces of a study, in the order they are run; of a grid, a piece for each cell (``redo`` is for those)."""
    from kd_megatron.study.study_grid import cell_pieces

    of_students = cell_pieces(recipe, directory, redo) if recipe.grid else student_pieces(recipe, directory)
    return [*preparing_pieces(recipe, directory), *of_students]


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
        require_pools(recipe)  # here too: before the data was prepared, its windows could not be counted
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

        train_teacher(_as_trained(recipe), where)

    return Piece("teacher", "teacher: train", lambda: results.finished_run(where) is not None, run)


def _as_trained(recipe: StudyRecipe) -> StudyRecipe:
    """What a teacher's run is given of ``recipe``: no words, and no tuning, which is of students."""
    return recipe.model_copy(update={"tuning": None, **WITHOUT_WORDS})


def _training_pieces(recipe: StudyRecipe, directory: Path, arm: str, seed: int) -> list[Piece]:
    """One student's run, and what branches off it."""
    where = results.arm_directory(directory, arm, seed)

    def train(into: Path, branch: Branch | None = None) -> None:
        from kd_megatron.study.calibration import require_this_machine
        from kd_megatron.training.run import pretrain

        study = recipe_of_run(recipe, directory, arm, seed)
        require_this_machine(directory)
        refuse_too_small(recipe, directory)  # here too: before the data was prepared, FLOPs could not be counted
        pretrain(study, arm, seed, into, teacher_path(recipe, directory), branch)

    of = f"{arm} seed {seed}"
    run = Piece(
        "pretrain", f"{of}: pretrain", lambda: results.finished_run(where) is not None, lambda: train(where), of
    )
    return [run, *markers.branch_pieces(recipe, directory, arm, seed, train)]


def _finetune_piece(recipe: StudyRecipe, directory: Path, arm: str, seed: int) -> Piece:
    run, where = (place(directory, arm, seed) for place in (results.arm_directory, results.finetune_directory))
    of = f"{arm} seed {seed}"
    return finetune_piece(f"{of}: fine-tune", recipe, directory, arm, run, where, of)
