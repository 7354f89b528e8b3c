"""Equal tuning effort: every arm gets as many trials at the same small budget (docs/fairness.md, clause 16).

A trial is an ordinary run in ``tuning/ARM/trial_K`` with a learning rate of its own and, where the recipe tunes one, a
weight of the objective; with several seeds it is one run for each. The lowest held-out probe loss is chosen; a trial
that was not finite counts as the worst. Best values at an edge are followed (`study.extension`). All trials are kept in
``tuning.json``.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from kd_megatron.console.logs import say
from kd_megatron.errors import RecipeError, disk_full_is_clear
from kd_megatron.files.records import write_json
from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe, TuningRecipe
from kd_megatron.recipe.arms import split_arm
from kd_megatron.study import extension
from kd_megatron.study.effective import LEARNING_RATE, TUNING_FILE, read, setting_in_words, with_setting, with_tuning
from kd_megatron.study.piece import Piece
from kd_megatron.study.trials import Trial, best, trial_pieces, trials


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
    """Every trial, arms alternating, then those beyond the edges, round by round, then the choice."""
    tuning, path = recipe.tuning, directory / TUNING_FILE
    if tuning is None:
        return []
    all_trials = sorted((trial for arm in recipe.arms for trial in trials(tuning, arm)), key=lambda one: one.number)
    of_trials = [piece for trial in all_trials for piece in trial_pieces(recipe, directory, trial)]
    rounds = [_round_piece(recipe, directory, number) for number in range(1, tuning.most_extensions + 1)]

    def run() -> None:
        found = dist.on_main(lambda: summed_up(recipe, directory))
        if dist.is_main():
            with disk_full_is_clear(directory):
                write_json(path, found)
        for arm, setting in found["chosen"].items():
            say(f"{arm}: {setting_in_words(setting)} of {found['num_trials']} trials")
        dist.barrier()

    choice = Piece("choice", "tuning: choose", lambda: has_chosen(recipe, directory), run)
    return [*of_trials, *rounds, choice]


def has_chosen(recipe: StudyRecipe, directory: Path) -> bool:
    """Whether a setting was chosen for every arm of ``recipe``."""
    found = read(directory / TUNING_FILE)
    return found is not None and recipe.arms.keys() <= found["chosen"].keys()


def _round_piece(recipe: StudyRecipe, directory: Path, number: int) -> Piece:
    """One round of trials beyond the edges, as many for every arm; none where no best value lies at one."""

    def is_finished() -> bool:
        rounds, closed = extension.decided(directory)
        if has_chosen(recipe, directory) or len(rounds) < number:
            return closed
        return all(piece.is_finished() for trial in _decided() for piece in trial_pieces(recipe, directory, trial))

    def _decided() -> list[Trial]:
        return extension.decide(recipe, directory, number)

    def run() -> None:
        found = dist.on_main(_decided)
        if not found:
            say("no best value lies at an edge that can be extended")
        for trial in found:
            for piece in trial_pieces(recipe, directory, trial):
                if not dist.on_main(piece.is_finished):
                    say(f"beyond the edge, {piece.label}")
                    piece.run()

    return Piece("beyond", f"tuning: trials beyond the edges, round {number}", is_finished, run)


def less_trials(recipe: StudyRecipe, at_most: bool = False) -> StudyRecipe:
    """``recipe`` before its trials are run, less what they are charged: each is taken to spend all of its budget.

    Args:
        at_most: takes those beyond the edges as well, as many as there may be.

    Raises:
        RecipeError: nothing of an arm's budget would be left.
    """
    if recipe.tuning is None or not recipe.tuning.charged:
        return recipe
    limit, tuning = recipe.budget.limit, recipe.tuning
    numbers = {arm: extension.most_trials(recipe) if at_most else tuning.num_trials(arm) for arm in recipe.arms}
    charged = {arm: number * extension.trial_cost(recipe) for arm, number in numbers.items()}
    most = max(charged.values())
    if most >= limit:
        raise RecipeError(
            given=f"study {recipe.name}: tuning.charged takes {most:g} {recipe.budget.unit} of trials off a budget "
            f"of {limit:g}",
            expected="a budget of which some is left for the student",
            fix="make tuning.budget smaller, or this budget larger",
        )
    return with_tuning(recipe, {"chosen": {}, "charged": charged})


def summed_up(recipe: StudyRecipe, directory: Path) -> dict[str, Any]:
    """What ``tuning.json`` holds: all trials, the choice of each arm, and what is taken off its budget.

    Raises:
        RecipeError: no trial of an arm was finite.
    """
    tuning = recipe.tuning
    assert tuning is not None
    rounds, _ = extension.decided(directory)
    found = {arm: extension.rows_of(recipe, directory, arm, rounds) for arm in recipe.arms}
    chosen = {arm: best(arm, tried) for arm, tried in found.items()}
    charged = {arm: sum(_charge(recipe, tuning, row) for row in tried) for arm, tried in found.items()}
    return {
        "measure": tuning.measure,
        "seed": tuning.seed,
        "num_seeds": tuning.num_seeds,
        "on_windows_of_its_own": True,
        "budget": {"unit": tuning.budget.unit, "limit": tuning.budget.limit, "charge": list(tuning.budget.charge)},
        "num_trials": tuning.num_trials(next(iter(recipe.arms))) + sum(map(len, rounds)),
        "extensions": [[asdict(end) for end in one] for one in rounds],
        "charged": charged if tuning.charged else None,
        "chosen": chosen,
        "at_edge": {arm: list(extension.at_edge(tried, chosen[arm])) for arm, tried in found.items()},
        "trials": found,
    }


def _charge(recipe: StudyRecipe, tuning: TuningRecipe, row: dict[str, Any]) -> float:
    """What one trial takes off its arm's budget, by what its runs spent; None: not finite, and it left no ledger.

    The whole of a run's own budget, where that is unknown or was turned into steps: the clock then decides nothing.
    """
    is_calibrated = recipe.budget.calibrate is not None and tuning.budget.is_time
    spent = [run["spent"] for run in row.get("runs", [row])]
    return float(sum(tuning.budget.limit if one is None or is_calibrated else one for one in spent))
