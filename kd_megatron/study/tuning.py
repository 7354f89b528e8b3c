"""Equal tuning effort: every arm gets as many trials at the same small budget (docs/fairness.md, clause 16).

A trial is an ordinary run in ``tuning/ARM/trial_K`` with a learning rate of its own and, where the recipe tunes one, a
weight of the objective. The lowest held-out probe loss is chosen; a trial that was not finite counts as the worst. All
trials are kept in ``tuning.json``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kd_megatron.console.logs import say
from kd_megatron.errors import NonFiniteError, RecipeError, disk_full_is_clear
from kd_megatron.files.records import write_json
from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe, TuningRecipe
from kd_megatron.recipe.arms import split_arm
from kd_megatron.study.effective import (
    CALIBRATION_FILE,
    LEARNING_RATE,
    TUNING_FILE,
    read,
    run_recipe,
    setting_in_words,
    with_compile,
    with_setting,
    with_steps,
    with_tuning,
)
from kd_megatron.study.piece import Piece, teacher_path
from kd_megatron.study.trials import NON_FINITE_FILE, Trial, at_edge, best, outcome, places, result, trials
from kd_megatron.study.tuning_edges import all_rounds, num_added


def check(recipe: StudyRecipe) -> None:
    """Refuse trials that could not run, before anything is spent. Raises `RecipeError`."""
    from kd_megatron.objectives import of_arm

    tuning = recipe.tuning
    if tuning is None:
        return
    for arm, options in recipe.arms.items():
        overrides = [key for key in options if key == LEARNING_RATE or (tuning.charged and key.startswith("budget."))]
        if overrides:
            raise RecipeError(
                given=f"study {recipe.name}: arm {arm} gives {overrides[0]}, which tuning decides",
                expected="arms that leave to tuning what it chooses" + (" and charges" if tuning.charged else ""),
                fix=f"remove {overrides[0]} from the arm, or the section tuning",
            )
        for trial in trials(tuning, arm):
            tried, _ = split_arm(with_setting(options, trial.setting))
            of_arm.parse_options(tried, where=f"study {recipe.name}, tuning, {trial.label}")


def tuning_pieces(recipe: StudyRecipe, directory: Path) -> list[Piece]:
    """Every trial, arms alternating, then the choice."""
    tuning, path = recipe.tuning, directory / TUNING_FILE
    if tuning is None:
        return []
    all_trials = sorted((trial for arm in recipe.arms for trial in trials(tuning, arm)), key=lambda one: one.number)

    def is_finished() -> bool:
        found = read(path)
        return found is not None and recipe.arms.keys() <= found["chosen"].keys()

    def run() -> None:
        found = summed_up(recipe, directory)
        if dist.is_main():
            with disk_full_is_clear(directory):
                write_json(path, found)
        for arm, setting in found["chosen"].items():
            say(f"{arm}: {setting_in_words(setting)} of {found['num_trials']} trials")
        dist.barrier()

    choice = Piece("choice", "tuning: choose", is_finished, run)
    given = [_trial_piece(recipe, directory, trial, seed) for trial in all_trials for seed in tuning.seeds]
    return [*given, *extension_pieces(recipe, directory, is_finished), choice]


def less_trials(recipe: StudyRecipe) -> StudyRecipe:
    """``recipe`` before its trials are run, less what they are charged: each is taken to spend all of its budget.

    Raises:
        RecipeError: nothing of an arm's budget would be left.
    """
    if recipe.tuning is None or not recipe.tuning.charged:
        return recipe
    limit, trial = recipe.budget.limit, recipe.tuning.budget.limit
    charged = {arm: len(trials(recipe.tuning, arm)) * recipe.tuning.num_seeds * trial for arm in recipe.arms}
    most = max(charged.values())
    if most >= limit:
        raise RecipeError(
            given=f"study {recipe.name}: tuning.charged takes {most:g} {recipe.budget.unit} of trials off a budget "
            f"of {limit:g}",
            expected="a budget of which some is left for the student",
            fix="make tuning.budget smaller, or this budget larger",
        )
    return with_tuning(recipe, {"chosen": {}, "charged": charged})


def trial_recipe(recipe: StudyRecipe, directory: Path, trial: Trial, seed: int | None = None) -> StudyRecipe:
    """What a trial is given: its setting, tuning's budget and seed; nothing is validated or kept on the way.

    It is measured on the held-out windows after those that students are: what chooses is not what is reported.
    """
    recipe = with_compile(recipe, directory)
    assert recipe.tuning is not None
    arms = {**recipe.arms, trial.arm: with_setting(recipe.arms[trial.arm], trial.setting)}
    allowed = [*recipe.allow_difference, *{LEARNING_RATE} - {*recipe.allow_difference}]
    tried = recipe.model_copy(update={"arms": arms, "allow_difference": allowed})
    run = run_recipe(tried, trial.arm, recipe.tuning.seed if seed is None else seed)
    reported = run.validation.skip_samples + run.validation.num_samples
    run = run.model_copy(
        update={
            "budget": recipe.tuning.budget,
            "validation": run.validation.model_copy(update={"at": [], "skip_samples": reported}),
            "training": run.training.model_copy(update={"keep_at": [], "keep_every_steps": None}),
        }
    )
    if recipe.budget.calibrate is None or not run.budget.is_time:
        return run
    return with_steps(run, trial.arm, read(directory / CALIBRATION_FILE))


def _trial_piece(recipe: StudyRecipe, directory: Path, trial: Trial, seed: int) -> Piece:
    assert recipe.tuning is not None
    where = places(recipe.tuning, directory, trial)[seed]
    label = f"tuning: {trial.label}" + (f", seed {seed}" if recipe.tuning.num_seeds > 1 else "")

    def run() -> None:
        from kd_megatron.study.calibration import require_this_machine
        from kd_megatron.training.branch import forget_checkpoints
        from kd_megatron.training.run import pretrain

        require_this_machine(directory)
        study = trial_recipe(recipe, directory, trial, seed)
        try:
            pretrain(study, trial.arm, seed, where, teacher_path(recipe, directory))
        except NonFiniteError as error:  # on all ranks
            say(f"{trial.label}: not finite, which counts as the worst: {error.given}")
            if dist.is_main():
                write_json(where / NON_FINITE_FILE, {"error": error.given})
        if dist.is_main():
            forget_checkpoints(where)
        dist.barrier()

    return Piece("trial", label, lambda: outcome(where) is not None, run)


def extension_pieces(recipe: StudyRecipe, directory: Path, is_chosen: Callable[[], bool]) -> list[Piece]:
    """One for each round in which trials may be added; finished where a choice was made, or no best lies at an edge."""
    tuning = recipe.tuning
    if tuning is None or tuning.charged:  # what is charged is known before it is spent
        return []
    most = tuning.most_extensions

    def piece(number: int) -> Piece:
        def added() -> list[Trial]:
            rounds = all_rounds(recipe, directory)
            return rounds[number] if len(rounds) > number else []

        def run() -> None:
            waiting: list[Trial] = dist.on_main(added)
            for trial in waiting:
                for seed in tuning.seeds:
                    one = _trial_piece(recipe, directory, trial, seed)
                    if not dist.on_main(one.is_finished):
                        say(one.label)
                        one.run()

        def is_finished() -> bool:
            return is_chosen() or all(result(tuning, directory, trial) for trial in added())

        return Piece("trials", f"tuning: beyond an edge, round {number} of at most {most}", is_finished, run)

    return [piece(number) for number in range(1, most + 1)]


def summed_up(recipe: StudyRecipe, directory: Path) -> dict[str, Any]:
    """What ``tuning.json`` holds: all trials, the choice of each arm, and what is taken off its budget.

    Raises:
        RecipeError: no trial of an arm was finite.
    """
    tuning = recipe.tuning
    assert tuning is not None
    rounds = all_rounds(recipe, directory)
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in recipe.arms}
    for trial in (trial for one in rounds for trial in one):
        row = result(tuning, directory, trial)
        assert row is not None, "the choice comes after the trials"
        found[trial.arm].append(row)
    chosen = {arm: best(arm, tried) for arm, tried in found.items()}
    charged = {arm: sum(_charge(recipe, tuning, row["spent"]) for row in tried) for arm, tried in found.items()}
    return {
        "measure": tuning.measure,
        "seed": tuning.seed,
        "budget": {"unit": tuning.budget.unit, "limit": tuning.budget.limit, "charge": list(tuning.budget.charge)},
        "num_trials": tuning.num_trials(next(iter(recipe.arms))) + num_added(rounds),
        "num_seeds": tuning.num_seeds,
        "extensions": len(rounds) - 1,
        "on_windows_of_its_own": True,
        "charged": charged if tuning.charged else None,
        "chosen": chosen,
        "at_edge": {arm: at_edge(tried, chosen[arm]) for arm, tried in found.items()},
        "trials": found,
    }


def _charge(recipe: StudyRecipe, tuning: TuningRecipe, spent: float | None) -> float:
    """What one trial takes off its arm's budget, by what it spent; None: it was not finite and left no ledger.

    The whole of its own budget, where that is unknown or was turned into steps: the clock then decides nothing.
    """
    is_calibrated = recipe.budget.calibrate is not None and tuning.budget.is_time
    return tuning.budget.limit * tuning.num_seeds if spent is None or is_calibrated else spent
