"""Equal tuning effort: every arm gets as many trials at the same small budget (docs/fairness.md, clause 16).

A trial is an ordinary run in ``tuning/ARM/trial_K`` with a learning rate of its own and, where the recipe tunes one, a
weight of the objective. The lowest held-out probe loss is chosen; a trial that was not finite counts as the worst. All
trials are kept in ``tuning.json``.
"""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_megatron.console.logs import say
from kd_megatron.errors import NonFiniteError, RecipeError, disk_full_is_clear
from kd_megatron.files.records import write_json
from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe, TuningRecipe
from kd_megatron.recipe.arms import split_arm
from kd_megatron.study import layout
from kd_megatron.study.effective import (
    CALIBRATION_FILE,
    LEARNING_RATE,
    TUNING_FILE,
    read,
    run_recipe,
    setting_in_words,
    with_setting,
    with_steps,
    with_tuning,
)
from kd_megatron.study.piece import Piece, teacher_path

NON_FINITE_FILE = "non_finite.json"  # in a trial's directory: it ended there, and that is its result


@dataclass(frozen=True)
class Trial:
    """One setting of one arm."""

    arm: str
    number: int  # among the arm's trials, those given up counted
    setting: dict[str, float]  # `LEARNING_RATE`, and the path of an option where a weight is tuned

    @property
    def label(self) -> str:
        """``minilm trial 3: learning_rate 0.001``."""
        return f"{self.arm} trial {self.number}: {setting_in_words(self.setting)}"


def trials(tuning: TuningRecipe, arm: str) -> list[Trial]:
    """The trials of ``arm`` that are run."""
    settings: list[dict[str, float | None]]
    if arm in tuning.weights:
        ((option, values),) = tuning.weights[arm].items()
        settings = [
            {LEARNING_RATE: rate, option: value} for rate, value in itertools.product(tuning.learning_rates, values)
        ]
    else:
        rates = tuning.learning_rates if tuning.learning_rates_alone is None else tuning.learning_rates_alone
        settings = [{LEARNING_RATE: rate} for rate in rates]
    found = []
    for number, setting in enumerate(settings):
        given = {path: value for path, value in setting.items() if value is not None}
        if len(given) == len(setting):
            found.append(Trial(arm, number, given))
    return found


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
    return [*(_trial_piece(recipe, directory, trial) for trial in all_trials), choice]


def less_trials(recipe: StudyRecipe) -> StudyRecipe:
    """``recipe`` before its trials are run, less what they are charged: each is taken to spend all of its budget.

    Raises:
        RecipeError: nothing of an arm's budget would be left.
    """
    if recipe.tuning is None or not recipe.tuning.charged:
        return recipe
    limit, trial = recipe.budget.limit, recipe.tuning.budget.limit
    charged = {arm: len(trials(recipe.tuning, arm)) * trial for arm in recipe.arms}
    most = max(charged.values())
    if most >= limit:
        raise RecipeError(
            given=f"study {recipe.name}: tuning.charged takes {most:g} {recipe.budget.unit} of trials off a budget "
            f"of {limit:g}",
            expected="a budget of which some is left for the student",
            fix="make tuning.budget smaller, or this budget larger",
        )
    return with_tuning(recipe, {"chosen": {}, "charged": charged})


def trial_directory(directory: Path, trial: Trial) -> Path:
    """Where one trial is run."""
    return directory / "tuning" / trial.arm / f"trial_{trial.number}"


def trial_recipe(recipe: StudyRecipe, directory: Path, trial: Trial) -> StudyRecipe:
    """What a trial is given: its setting, tuning's budget and seed; nothing is validated or kept on the way.

    It is measured on the held-out windows after those that students are: what chooses is not what is reported.
    """
    assert recipe.tuning is not None
    arms = {**recipe.arms, trial.arm: with_setting(recipe.arms[trial.arm], trial.setting)}
    allowed = [*recipe.allow_difference, *{LEARNING_RATE} - {*recipe.allow_difference}]
    tried = recipe.model_copy(update={"arms": arms, "allow_difference": allowed})
    run = run_recipe(tried, trial.arm, recipe.tuning.seed)
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


def _trial_piece(recipe: StudyRecipe, directory: Path, trial: Trial) -> Piece:
    where = trial_directory(directory, trial)

    def run() -> None:
        from kd_megatron.study.calibration import require_this_machine
        from kd_megatron.training.branch import forget_checkpoints
        from kd_megatron.training.run import pretrain

        assert recipe.tuning is not None
        require_this_machine(directory)
        study = trial_recipe(recipe, directory, trial)
        try:
            pretrain(study, trial.arm, recipe.tuning.seed, where, teacher_path(recipe, directory))
        except NonFiniteError as error:  # on all ranks
            say(f"{trial.label}: not finite, which counts as the worst: {error.given}")
            if dist.is_main():
                write_json(where / NON_FINITE_FILE, {"error": error.given})
        if dist.is_main():
            forget_checkpoints(where)
        dist.barrier()

    return Piece("trial", f"tuning: {trial.label}", lambda: result(directory, trial) is not None, run)


def result(directory: Path, trial: Trial) -> dict[str, Any] | None:
    """What became of ``trial``; None while it is not finished."""
    where = trial_directory(directory, trial)
    row: dict[str, Any] = {"trial": trial.number, "setting": trial.setting}
    if (where / NON_FINITE_FILE).is_file():
        return row | {"probe_mlm_loss": None, "is_finite": False, "steps": None, "tokens": None, "spent": None}
    summary = layout.finished_run(where)
    if summary is None:
        return None
    loss = summary["validation"]["probe_mlm_loss"]
    finite = loss is not None and math.isfinite(loss)
    return row | {
        "probe_mlm_loss": loss if finite else None,
        "is_finite": finite,
        "steps": summary["steps"],
        "tokens": summary["tokens"],
        "spent": summary["budget"]["spent"],
    }


def summed_up(recipe: StudyRecipe, directory: Path) -> dict[str, Any]:
    """What ``tuning.json`` holds: all trials, the choice of each arm, and what is taken off its budget.

    Raises:
        RecipeError: no trial of an arm was finite.
    """
    tuning = recipe.tuning
    assert tuning is not None
    found: dict[str, list[dict[str, Any]]] = {}
    for arm in recipe.arms:
        rows = [result(directory, trial) for trial in trials(tuning, arm)]
        assert None not in rows, "the choice comes after the trials"
        found[arm] = [row for row in rows if row is not None]
    chosen = {arm: _best(arm, tried) for arm, tried in found.items()}
    charged = {arm: sum(_charge(recipe, tuning, row["spent"]) for row in tried) for arm, tried in found.items()}
    return {
        "measure": tuning.measure,
        "seed": tuning.seed,
        "budget": {"unit": tuning.budget.unit, "limit": tuning.budget.limit, "charge": list(tuning.budget.charge)},
        "num_trials": tuning.num_trials(next(iter(recipe.arms))),
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
    return tuning.budget.limit if spent is None or is_calibrated else spent


def _best(arm: str, rows: list[dict[str, Any]]) -> dict[str, float]:
    finite = [row for row in rows if row["is_finite"]]
    if not finite:
        raise RecipeError(
            given=f"tuning: none of the {len(rows)} trials of arm {arm} stayed finite",
            expected="at least one learning rate that trains",
            fix="give smaller values in tuning.learning_rates, under another name or --output",
        )
    best: dict[str, float] = min(finite, key=lambda row: row["probe_mlm_loss"])["setting"]
    return best


def at_edge(rows: list[dict[str, Any]], chosen: dict[str, float]) -> list[str]:
    """The paths whose chosen value is the smallest or largest of those tried: a better one may lie beyond."""
    found = []
    for path, value in chosen.items():
        tried = {row["setting"][path] for row in rows}
        if len(tried) > 1 and value in (min(tried), max(tried)):
            found.append(path)
    return found
