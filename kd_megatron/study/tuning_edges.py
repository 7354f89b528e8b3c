"""Trials beyond an edge of the grid where some arm has its best: as many more for every arm (docs/fairness.md, 16)."""

from pathlib import Path
from typing import Any

from kd_megatron.errors import RecipeError
from kd_megatron.recipe import StudyRecipe
from kd_megatron.recipe.arms import split_arm
from kd_megatron.study.effective import LEARNING_RATE, TUNING_FILE, read, with_setting
from kd_megatron.study.trials import Trial, at_edge, result, trials
from kd_megatron.study.trials import best as best_of


def all_rounds(recipe: StudyRecipe, directory: Path) -> list[list[Trial]]:
    """The trials that the recipe gives, then those of each round that was added, as far as results are known.

    Once there is a choice, the arms that have one decide alone, so that rounds stay as they were: an arm that came
    later follows them and adds none, for the others may be trained.
    """
    tuning = recipe.tuning
    assert tuning is not None
    rounds = [[trial for arm in recipe.arms for trial in trials(tuning, arm)]]
    chosen = (read(directory / TUNING_FILE) or {}).get("chosen", {})
    deciding = [arm for arm in recipe.arms if arm in chosen] or [*recipe.arms]
    rows: dict[str, list[dict[str, Any]]] = {arm: [] for arm in recipe.arms}
    while not tuning.charged and len(rounds) <= tuning.most_extensions:
        for trial in rounds[-1]:
            row = result(tuning, directory, trial)
            if row is None:
                return rounds
            rows[trial.arm].append(row)
        if any(not any(row["is_finite"] for row in tried) for tried in rows.values()):
            return rounds  # the choice says so
        number = tuning.num_trials(next(iter(recipe.arms))) + num_added(rounds)
        added = _beyond_edges(recipe, rows, deciding, first=number)
        if not added:
            return rounds
        rounds.append(added)
    return rounds


def num_added(rounds: list[list[Trial]]) -> int:
    """How many trials each arm has had beyond those that the recipe gives."""
    return len({trial.number for one in rounds[1:] for trial in one})


def _beyond_edges(
    recipe: StudyRecipe, rows: dict[str, list[dict[str, Any]]], deciding: list[str], first: int
) -> list[Trial]:
    """One more trial of every arm, numbered from ``first``, for each side at which the best of a deciding arm lies.

    An arm steps beyond its own values on that side, by the ratio of its last two, with the rest of its best setting.
    One that has no weight steps beyond its learning rates instead, so that all have as many trials. A side on which
    a deciding arm's objective does not allow the value is left alone; an arm that came later then gives the trial up.
    """
    best = {arm: best_of(arm, tried) for arm, tried in rows.items()}
    sides = sorted({side for arm in deciding for side in _sides(rows[arm], best[arm])})
    tried = {arm: [row["setting"] for row in found] for arm, found in rows.items()}
    added: list[Trial] = []
    number = first
    for side in sides:
        stepped = {arm: _stepped(tried[arm], best[arm], *side) for arm in recipe.arms}
        settings = {arm: one for arm, one in stepped.items() if one is not None and _is_allowed(recipe, arm, one)}
        if settings.keys() >= {*deciding}:
            for arm, setting in settings.items():
                tried[arm].append(setting)
                added.append(Trial(arm, number, setting))
            number += 1
    return added


def _sides(rows: list[dict[str, Any]], best: dict[str, float]) -> set[tuple[str, bool]]:
    """(``"rate"`` or ``"weight"``, whether the upper one), for each edge at which the best lies."""
    found = set()
    for path in at_edge(rows, best):
        tried = [row["setting"][path] for row in rows]
        found.add(("rate" if path == LEARNING_RATE else "weight", best[path] == max(tried)))
    return found


def _stepped(
    settings: list[dict[str, float]], best: dict[str, float], axis: str, upper: bool
) -> dict[str, float] | None:
    """The best setting with a value one step beyond those tried; None where no ratio says how far a step is."""
    path = next((one for one in best if one != LEARNING_RATE), LEARNING_RATE) if axis == "weight" else LEARNING_RATE
    tried = sorted({setting[path] for setting in settings}, reverse=not upper)
    if len(tried) < 2 or min(tried) <= 0:
        return None
    return best | {path: float(f"{tried[-1] * tried[-1] / tried[-2]:.12g}")}


def _is_allowed(recipe: StudyRecipe, arm: str, setting: dict[str, float]) -> bool:
    from kd_megatron.objectives import of_arm

    try:
        options, _ = split_arm(with_setting(recipe.arms[arm], setting))
        of_arm.parse_options(options, where=f"study {recipe.name}, tuning, {arm}")
    except RecipeError:
        return False
    return True
