"""More trials where the best value of some arm lies at an edge of those tried: a better one may lie beyond.

A round of it continues lists of values at their ends, each by one value, in the ratio of the list's last two. The ends
are those at which some arm's best value lies, and every arm is given one more trial for each of them, so that effort
stays equal: the arm's own list is continued on that side, with the best of its other value. An arm without such a list
(it has no weight, or one value alone) continues its other list on the same side; where no value lies beyond, the trial
is given up and counted. docs/fairness.md, clause 16.

What a round continues is written down when it is decided, so that a study that was stopped, or was given another arm,
goes on with the same trials.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from kd_megatron.errors import RecipeError, disk_full_is_clear
from kd_megatron.files.records import write_json
from kd_megatron.recipe import StudyRecipe
from kd_megatron.recipe.arms import split_arm
from kd_megatron.study.effective import LEARNING_RATE, TUNING_FILE, read, with_setting
from kd_megatron.study.trials import Trial, best, result, trials

Which = Literal["learning_rate", "weight"]
Side = Literal["below", "above"]
Rows = list[dict[str, Any]]  # of `trials.result`

ROUNDS_FILE = "rounds.json"  # in the study's directory of trials: what was decided before there is a choice
DIGITS = 6  # of a value that continues a list: 0.002, not 0.0020000000000000005
LARGEST_SHARE = 0.5  # of an arm's budget that charged trials may take, those beyond an edge included


@dataclass(frozen=True)
class End:
    """One end of the lists of learning rates, or of weights, and the arms whose best value lay there."""

    which: Which
    side: Side
    arms: list[str]


Round = list[End]


def continued(values: set[float], side: Side) -> float | None:
    """The value after the last one on this side, in the ratio of the last two; None where there is none.

    There is none of a list of one value, and nothing lies below zero.
    """
    ends = sorted(values, reverse=side == "below")
    if len(ends) < 2 or min(ends[-2:]) <= 0:
        return None
    return float(f"{ends[-1] * (ends[-1] / ends[-2]):.{DIGITS}g}")


def at_edge(rows: Rows, chosen: dict[str, float]) -> dict[str, Side]:
    """Path -> side, of the chosen values that are the smallest or the largest of those tried."""
    found: dict[str, Side] = {}
    for path, value in chosen.items():
        tried = _tried(rows, path)
        if len(tried) > 1 and value in (min(tried), max(tried)):
            found[path] = "below" if value == min(tried) else "above"
    return found


def ends(recipe: StudyRecipe, rows: dict[str, Rows]) -> Round:
    """The ends at which the best value of some arm lies and that can be continued there.

    Args:
        rows: arm -> results of all its trials so far.

    Raises:
        RecipeError: no trial of an arm was finite.
    """
    found: dict[tuple[Which, Side], list[str]] = {}
    for arm, tried in rows.items():
        chosen = best(arm, tried)
        for path, side in at_edge(tried, chosen).items():
            if _beyond(recipe, arm, [row["setting"] for row in tried], chosen, path, side):
                found.setdefault(("learning_rate" if path == LEARNING_RATE else "weight", side), []).append(arm)
    return [End(which, side, arms) for (which, side), arms in sorted(found.items())]


def settings_beyond(recipe: StudyRecipe, arm: str, rows: Rows, these: Round) -> list[dict[str, float] | None]:
    """The arm's trials of one round, one for each end; None is one that it gives up."""
    chosen = best(arm, rows)
    tried: list[dict[str, float]] = [row["setting"] for row in rows]
    found: list[dict[str, float] | None] = []
    for end in these:
        own = [path for path in chosen if (path == LEARNING_RATE) == (end.which == "learning_rate")]
        others = [path for path in chosen if path not in own]
        settings = (_beyond(recipe, arm, tried, chosen, path, end.side) for path in [*own, *others])
        new = next((setting for setting in settings if setting), None)
        found.append(new)
        if new is not None:
            tried.append(new)
    return found


def _beyond(
    recipe: StudyRecipe, arm: str, tried: list[dict[str, float]], chosen: dict[str, float], path: str, side: Side
) -> dict[str, float] | None:
    """``chosen`` with the next value of one list; None where there is none, or the objective does not take it."""
    from kd_megatron.objectives import of_arm

    value = continued({setting[path] for setting in tried}, side)
    if value is None:
        return None
    setting = {**chosen, path: value}
    options, _ = split_arm(with_setting(recipe.arms[arm], setting))
    try:
        of_arm.parse_options(options, where=f"study {recipe.name}, tuning, {arm}")
    except RecipeError:
        return None
    return setting


def _tried(rows: Rows, path: str) -> set[float]:
    return {row["setting"][path] for row in rows}


# --- rounds -------------------------------------------------------------------------------------------------


def decided(directory: Path) -> tuple[list[Round], bool]:
    """(the rounds that were decided so far, whether there will be no others).

    Of a study that has chosen, they are what its choice was made with: an arm that comes later follows them.
    """
    chosen = read(directory / TUNING_FILE)
    if chosen and chosen["chosen"]:
        return [_round(one) for one in chosen.get("extensions", [])], True
    rounds = [_round(one) for one in (read(rounds_file(directory)) or {"rounds": []})["rounds"]]
    return [one for one in rounds if one], bool(rounds) and not rounds[-1]


def decide(recipe: StudyRecipe, directory: Path, number: int) -> list[Trial]:
    """The trials of round ``number`` (from 1), decided now where they were not before. Rank 0 alone.

    Raises:
        RecipeError: no trial of an arm was finite.
    """
    rounds, closed = decided(directory)
    if len(rounds) < number and not closed:
        these = ends(recipe, {arm: rows_of(recipe, directory, arm, rounds) for arm in recipe.arms})
        rounds.append(these if may_pay(recipe, _given(recipe, rounds) + len(these)) else [])
        with disk_full_is_clear(directory):
            write_json(rounds_file(directory), {"rounds": [[asdict(end) for end in one] for one in rounds]})
    found = [trial for arm in recipe.arms for trial in trials_of(recipe, directory, arm, rounds[:number])]
    return sorted((trial for trial in found if trial.round == number), key=lambda trial: trial.number)


def trials_of(recipe: StudyRecipe, directory: Path, arm: str, rounds: list[Round]) -> list[Trial]:
    """All trials of ``arm``, those of ``rounds`` included; of a round before whose trials all were finished alone."""
    assert recipe.tuning is not None
    found = trials(recipe.tuning, arm)
    for number, these in enumerate(rounds, start=1):
        rows = [result(recipe.tuning, directory, trial) for trial in found]
        known = [row for row in rows if row is not None]
        if len(known) < len(found):
            break
        first = _given(recipe, rounds[: number - 1])
        settings = settings_beyond(recipe, arm, known, these)
        found += [Trial(arm, first + place, one, number) for place, one in enumerate(settings) if one]
    return found


def rows_of(recipe: StudyRecipe, directory: Path, arm: str, rounds: list[Round]) -> Rows:
    """The results of all trials of ``arm``, each of which is finished."""
    assert recipe.tuning is not None
    found = [result(recipe.tuning, directory, trial) for trial in trials_of(recipe, directory, arm, rounds)]
    assert None not in found, "what is decided by trials comes after them"
    return [row for row in found if row is not None]


def may_pay(recipe: StudyRecipe, num_trials: int) -> bool:
    """Whether so many trials of an arm may be taken off its budget, or that of the smallest cell; uncharged: always."""
    tuning = recipe.tuning
    assert tuning is not None
    smallest = min(recipe.grid.budgets) if recipe.grid else 1.0
    return not tuning.charged or num_trials * trial_cost(recipe) <= LARGEST_SHARE * smallest * recipe.budget.limit


def trial_cost(recipe: StudyRecipe) -> float:
    """What one trial spends at most, all its seeds together, in the unit of tuning's budget."""
    assert recipe.tuning is not None
    return recipe.tuning.num_seeds * recipe.tuning.budget.limit


def most_trials(recipe: StudyRecipe) -> int:
    """How many trials an arm may be given, those beyond edges included; every arm has as many."""
    tuning = recipe.tuning
    assert tuning is not None
    given = _given(recipe, [])
    extra = range(tuning.most_extra_trials, 0, -1)
    return given + next((more for more in extra if may_pay(recipe, given + more)), 0)


def rounds_file(directory: Path) -> Path:
    """Where the rounds of a study are written down while it has not chosen."""
    return directory / "tuning" / ROUNDS_FILE


def _given(recipe: StudyRecipe, rounds: list[Round]) -> int:
    """How many trials each arm was given, those given up counted."""
    assert recipe.tuning is not None
    return recipe.tuning.num_trials(next(iter(recipe.arms))) + sum(map(len, rounds))


def _round(raw: list[dict[str, Any]]) -> Round:
    return [End(end["which"], end["side"], list(end["arms"])) for end in raw]
