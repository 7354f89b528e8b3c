"""One trial of tuning: a setting of one arm, run with every seed of tuning at tuning's small budget."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_megatron.console.logs import say
from kd_megatron.errors import NonFiniteError, RecipeError
from kd_megatron.files.records import write_json
from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe, TuningRecipe
from kd_megatron.study import layout
from kd_megatron.study.effective import (
    CALIBRATION_FILE,
    LEARNING_RATE,
    read,
    run_recipe,
    setting_in_words,
    with_setting,
    with_steps,
)
from kd_megatron.study.piece import Piece, teacher_path

NON_FINITE_FILE = "non_finite.json"  # in a trial's directory: it ended there, and that is its result


@dataclass(frozen=True)
class Trial:
    """One setting of one arm."""

    arm: str
    number: int  # among the arm's trials, those given up counted
    setting: dict[str, float]  # `LEARNING_RATE`, and the path of an option where a weight is tuned
    round: int = 0  # 0: of the recipe; 1, 2, ...: beyond an edge of what was tried before (`study.extension`)

    @property
    def label(self) -> str:
        """``minilm trial 3: learning_rate 0.001``."""
        return f"{self.arm} trial {self.number}: {setting_in_words(self.setting)}"


def trials(tuning: TuningRecipe, arm: str) -> list[Trial]:
    """The trials of ``arm`` that the recipe asks for, without those it gives up."""
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


def trial_directory(directory: Path, trial: Trial, tuning: TuningRecipe, seed: int) -> Path:
    """Where one run of a trial is; with several seeds each has a directory of its own in the trial's."""
    where = directory / "tuning" / trial.arm / f"trial_{trial.number}"
    return where if tuning.num_seeds == 1 else where / f"seed_{seed}"


def trial_recipe(recipe: StudyRecipe, directory: Path, trial: Trial, seed: int) -> StudyRecipe:
    """What a run of a trial is given: its setting, tuning's budget, one seed; nothing is validated or kept on the way.

    It is measured on the held-out windows after those that students are: what chooses is not what is reported.
    """
    assert recipe.tuning is not None
    arms = {**recipe.arms, trial.arm: with_setting(recipe.arms[trial.arm], trial.setting)}
    allowed = [*recipe.allow_difference, *{LEARNING_RATE} - {*recipe.allow_difference}]
    tried = recipe.model_copy(update={"arms": arms, "allow_difference": allowed})
    run = run_recipe(tried, trial.arm, seed)
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


def trial_pieces(recipe: StudyRecipe, directory: Path, trial: Trial) -> list[Piece]:
    """The runs of a trial, one for each seed of tuning."""
    assert recipe.tuning is not None
    return [_run_piece(recipe, recipe.tuning, directory, trial, seed) for seed in recipe.tuning.seeds]


def _run_piece(recipe: StudyRecipe, tuning: TuningRecipe, directory: Path, trial: Trial, seed: int) -> Piece:
    where = trial_directory(directory, trial, tuning, seed)
    label = trial.label if tuning.num_seeds == 1 else f"{trial.label}, seed {seed}"

    def run() -> None:
        from kd_megatron.study.calibration import require_this_machine
        from kd_megatron.training.branch import forget_checkpoints
        from kd_megatron.training.run import pretrain

        require_this_machine(directory)
        study = trial_recipe(recipe, directory, trial, seed)
        try:
            pretrain(study, trial.arm, seed, where, teacher_path(recipe, directory))
        except NonFiniteError as error:  # on all ranks
            say(f"{label}: not finite, which counts as the worst: {error.given}")
            if dist.is_main():
                write_json(where / NON_FINITE_FILE, {"error": error.given})
        if dist.is_main():
            forget_checkpoints(where)
        dist.barrier()

    return Piece("trial", f"tuning: {label}", lambda: _of_run(where) is not None, run)


def result(tuning: TuningRecipe, directory: Path, trial: Trial) -> dict[str, Any] | None:
    """What became of ``trial``, as ``tuning.json`` holds it; None while a run of it is not finished.

    With several seeds the loss is their mean, steps, tokens and what was spent are sums, and ``runs`` has each; one
    run that was not finite makes the trial so.
    """
    found = {seed: _of_run(trial_directory(directory, trial, tuning, seed)) for seed in tuning.seeds}
    runs = [{"seed": seed, **run} for seed, run in found.items() if run is not None]
    if len(runs) < tuning.num_seeds:
        return None
    row: dict[str, Any] = {"trial": trial.number, "setting": trial.setting, "round": trial.round}
    finite = all(run["is_finite"] for run in runs)
    row["probe_mlm_loss"] = math.fsum(run["probe_mlm_loss"] for run in runs) / len(runs) if finite else None
    row["is_finite"] = finite
    for key in ("steps", "tokens", "spent"):
        known = [run[key] for run in runs if run[key] is not None]
        row[key] = sum(known) if len(known) == len(runs) else None
    return row if tuning.num_seeds == 1 else row | {"runs": runs}


def _of_run(where: Path) -> dict[str, Any] | None:
    """What became of one run; None while it is not finished."""
    if (where / NON_FINITE_FILE).is_file():
        return {"probe_mlm_loss": None, "is_finite": False, "steps": None, "tokens": None, "spent": None}
    summary = layout.finished_run(where)
    if summary is None:
        return None
    loss = summary["validation"]["probe_mlm_loss"]
    finite = loss is not None and math.isfinite(loss)
    return {
        "probe_mlm_loss": loss if finite else None,
        "is_finite": finite,
        "steps": summary["steps"],
        "tokens": summary["tokens"],
        "spent": summary["budget"]["spent"],
    }


def best(arm: str, rows: list[dict[str, Any]]) -> dict[str, float]:
    """The setting with the lowest loss. Raises `RecipeError` when no trial of the arm was finite."""
    finite = [row for row in rows if row["is_finite"]]
    if not finite:
        raise RecipeError(
            given=f"tuning: none of the {len(rows)} trials of arm {arm} stayed finite",
            expected="at least one learning rate that trains",
            fix="give smaller values in tuning.learning_rates, under another name or --output",
        )
    found: dict[str, float] = min(finite, key=lambda row: row["probe_mlm_loss"])["setting"]
    return found
