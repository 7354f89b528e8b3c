"""The trials of a tuning: which settings, where each is run, and what became of it."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_megatron.errors import RecipeError
from kd_megatron.recipe import TuningRecipe
from kd_megatron.study import layout
from kd_megatron.study.effective import LEARNING_RATE, setting_in_words

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


def trial_directory(directory: Path, trial: Trial, seed: int | None = None) -> Path:
    """Where one trial is run; ``seed`` None: the first of its seeds."""
    return directory / "tuning" / trial.arm / (f"trial_{trial.number}" + ("" if seed is None else f"_seed_{seed}"))


def places(tuning: TuningRecipe, directory: Path, trial: Trial) -> dict[int, Path]:
    """Seed -> where a trial is run with it."""
    return {seed: trial_directory(directory, trial, None if seed == tuning.seed else seed) for seed in tuning.seeds}


def result(tuning: TuningRecipe, directory: Path, trial: Trial) -> dict[str, Any] | None:
    """What became of ``trial``, over all its seeds; None while it is not finished."""
    each = [outcome(where) for where in places(tuning, directory, trial).values()]
    known = [one for one in each if one is not None]
    if len(known) < len(each):
        return None
    row: dict[str, Any] = {"trial": trial.number, "setting": trial.setting, **known[0]}
    if len(known) > 1:
        losses, spent = ([one[key] for one in known] for key in ("probe_mlm_loss", "spent"))
        row |= {
            "probe_mlm_loss": None if None in losses else math.fsum(losses) / len(losses),
            "is_finite": all(one["is_finite"] for one in known),
            "spent": None if None in spent else math.fsum(spent),
            "losses_by_seed": dict(zip(map(str, tuning.seeds), losses, strict=True)),
        }
    return row


def outcome(where: Path) -> dict[str, Any] | None:
    """What became of one run of a trial; None while it is not finished."""
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
    setting: dict[str, float] = min(finite, key=lambda row: row["probe_mlm_loss"])["setting"]
    return setting


def at_edge(rows: list[dict[str, Any]], chosen: dict[str, float]) -> list[str]:
    """The paths whose chosen value is the smallest or largest of those tried: a better one may lie beyond."""
    found = []
    for path, value in chosen.items():
        tried = {row["setting"][path] for row in rows}
        if len(tried) > 1 and value in (min(tried), max(tried)):
            found.append(path)
    return found
