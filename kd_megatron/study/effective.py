"""The recipe that really runs: what the file says, with what tuning chose and the steps that calibration fixed.

Both are pieces of the study that leave one file each, ``tuning.json`` and ``calibration.json``; before they are there,
the recipe is as the file says. So is whether arms are compiled, ``compile.json``. What tuning chose is written into
the arms as overrides, so that the fairness check and the report name it like any other difference.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any

from kd_megatron.errors import OutputError, RecipeError
from kd_megatron.recipe import BudgetRecipe, CalibratedSteps, ControlsRecipe, StudyRecipe, diff
from kd_megatron.recipe.arms import resolve_arm

TUNING_FILE, CALIBRATION_FILE, COMPILE_FILE = "tuning.json", "calibration.json", "compile.json"
LEARNING_RATE = "training.learning_rate"


def effective_recipe(recipe: StudyRecipe, directory: Path) -> StudyRecipe:
    """``recipe`` with what tuning chose in ``directory``, and whether arms are compiled there."""
    recipe = with_compile(recipe, directory)
    return with_tuning(recipe, read(directory / TUNING_FILE)) if recipe.tuning else recipe


def with_compile(recipe: StudyRecipe, directory: Path) -> StudyRecipe:
    """``recipe`` with ``training.compile: auto`` decided as in ``directory``; not compiled where nothing is decided."""
    if recipe.training.compile != "auto":
        return recipe
    found = read(directory / COMPILE_FILE)
    training = recipe.training.model_copy(update={"compile": bool(found and found["compiled"])})
    return recipe.model_copy(update={"training": training})


def recipe_of_run(recipe: StudyRecipe, directory: Path, arm: str, seed: int) -> StudyRecipe:
    """What one run of the study is given: the effective recipe, this arm and seed alone, calibrated steps in it."""
    run = run_recipe(effective_recipe(recipe, directory), arm, seed)
    if recipe.budget.calibrate is None:
        return run
    return with_steps(run, arm, read(directory / CALIBRATION_FILE))


def run_recipe(recipe: StudyRecipe, arm: str, seed: int) -> StudyRecipe:
    """What one run depends on, and nothing else: other seeds, fine-tuning and notes may change without staling it."""
    resolved = diff.without(keep_starts(resolve_arm(recipe, arm)), "edit")
    budget = resolved.budget.model_copy(update={"calibrate": None})
    others = {"finetune": None, "tuning": None, "grid": None, "controls": ControlsRecipe()}
    return resolved.model_copy(update={"seeds": [seed], "budget": budget, **others})


def keep_starts(recipe: StudyRecipe) -> StudyRecipe:
    """With a checkpoint kept where each branch leaves (`study.students`), which is all that a run knows of branches."""
    if recipe.markers is None:
        return recipe
    starts = [recipe.markers.start(fraction) for fraction in recipe.markers.branches]
    training = recipe.training.model_copy(update={"keep_at": sorted({*recipe.training.keep_at, *starts})})
    return recipe.model_copy(update={"training": training, "markers": None})


def with_tuning(recipe: StudyRecipe, tuning: dict[str, Any] | None) -> StudyRecipe:
    """``recipe`` with the choices of a ``tuning.json``. Doing it twice changes nothing more."""
    if not tuning:
        return recipe
    arms, allowed = dict(recipe.arms), list(recipe.allow_difference)
    for arm, chosen in tuning["chosen"].items():
        if arm in arms:
            arms[arm] = with_setting(arms[arm], chosen)
    keys = [LEARNING_RATE]
    for arm, spent in (tuning.get("charged") or {}).items():
        key = f"budget.{recipe.budget.unit}"
        keys.append(key)
        if arm in arms:
            arms[arm] = {**arms[arm], key: recipe.budget.limit - spent}
    allowed += [key for key in dict.fromkeys(keys) if key not in allowed]
    return recipe.model_copy(update={"arms": arms, "allow_difference": allowed})


def with_setting(options: dict[str, Any], setting: dict[str, Any]) -> dict[str, Any]:
    """An arm as written, with the learning rate and the option of one trial in it.

    Args:
        options: of the arm.
        setting: `LEARNING_RATE` and, where a weight is tuned, the path of an option -> its value. The path goes down
            by dots through mappings and, by number, through lists (``parts.1.weight``).
    """
    found = copy.deepcopy(options)
    for path, value in setting.items():
        if path == LEARNING_RATE:
            found[path] = value
            continue
        *parents, leaf = path.split(".")
        place: Any = found
        for parent in parents:
            place = place[int(parent)] if isinstance(place, list) else place.setdefault(parent, {})
        place[int(leaf) if isinstance(place, list) else leaf] = value
    return found


def setting_in_words(setting: dict[str, float]) -> str:
    """``learning_rate 0.001, weight_kd 5``."""
    return ", ".join(f"{path.removeprefix('training.')} {value:g}" for path, value in setting.items())


def with_steps(run: StudyRecipe, arm: str, calibration: dict[str, Any] | None) -> StudyRecipe:
    """One run's recipe with the steps that ``calibration`` makes of its budget; as it is without a calibration.

    Raises:
        RecipeError: the budget is too small for one step.
    """
    if calibration is None or arm not in calibration["arms"]:
        return run
    speed = float(calibration["arms"][arm]["tokens_per_second"]["p50"])
    tokens_per_step = run.training.global_batch_size * run.data.sequence_length
    steps = steps_within(run.budget, speed, tokens_per_step, calibration["hardware"]["num_processes"])
    if steps < 1:
        raise RecipeError(
            given=f"arm {arm}: a budget of {run.budget.limit:g} {run.budget.unit} is less than one step, which takes "
            f"{tokens_per_step / speed:.3g} s here",
            expected="a budget of many steps",
            fix=f"raise budget.{run.budget.unit} (or tuning.budget, for trials), or make training.global_batch_size "
            "smaller",
        )
    budget = run.budget.model_copy(update={"calibrated": CalibratedSteps(steps=steps, tokens_per_second=speed)})
    return run.model_copy(update={"budget": budget})


def steps_within(budget: BudgetRecipe, tokens_per_second: float, tokens_per_step: int, num_processes: int) -> int:
    """Whole steps that a budget in time is good for at this speed of the whole job; 0 where it is too small for one."""
    hours = budget.limit / (num_processes if budget.unit == "gpu_hours" else 1)
    return math.floor(hours * 3600.0 * tokens_per_second / tokens_per_step)


def read(path: Path, expected: str = "what the study wrote there") -> dict[str, Any] | None:
    """A file that a finished piece left; None when there is none yet. Raises `OutputError` when it is not JSON."""
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise OutputError(
            given=f"{path} is not valid JSON: {error}",
            expected=expected,
            fix="remove the file and run the study again: that piece alone is repeated",
        ) from error
    return found
