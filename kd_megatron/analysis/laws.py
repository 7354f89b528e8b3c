"""Losses as laws of what was spent, fitted where there are enough amounts, and what must be said of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kd_megatron.analysis import curves, results
from kd_megatron.analysis.crossover import Crossover, crossover
from kd_megatron.analysis.fitness import objection
from kd_megatron.analysis.measure import PROBE
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.scaling import FEWEST_AMOUNTS, FEWEST_SEEDS, Fit, Point, Refusal, fit, num_amounts
from kd_megatron.errors import OutputError
from kd_megatron.recipe import StudyRecipe, diff

ENOUGH_AMOUNTS = 8
WIDE_RANGE = 10.0  # most tokens / fewest
FAR = 10.0  # times the largest budget measured
REPEATED, OFTEN = 1.05, 4.0  # epochs; Muennighoff et al. 2023 (arXiv 2305.16264): up to four are nearly new text


@dataclass(frozen=True)
class Laws:
    """What was fitted, and between which arms the order changes."""

    fits: dict[str, Fit | Refusal]
    crossovers: dict[str, Crossover]  # arm -> with the reference
    warnings: list[str]
    sizes: dict[str, float]  # arm -> parameters of the reported study's own students
    objection: str | None = None  # what takes claims away in some study (`analysis.fitness`), in a word or two

    @property
    def fitted(self) -> dict[str, Fit]:
        """The arms that have a law."""
        return {arm: found for arm, found in self.fits.items() if isinstance(found, Fit)}

    @property
    def of_own_size(self) -> dict[str, Fit]:
        """The same for students of the reported study's own size."""
        return {arm: law.of_size(self.sizes[arm]) for arm, law in self.fitted.items()}


def laws(studies: Sequence[StudyResults]) -> Laws:
    """Fit a law to each arm of the first study.

    Args:
        studies: the one reported, then others that differ from it in budget, pool, seeds or size alone.
    """
    study = studies[0]
    fits: dict[str, Fit | Refusal] = {
        arm: _fit(found, _shares_runs(studies, arm, found)) for arm in study.arms for found in [points(studies, arm)]
    }
    sizes = {arm: float(next(iter(study.runs[arm].values())).summary.parameters) for arm in study.arms}
    doubts = (objection(one, PROBE.quantity) for one in studies)
    found = Laws(fits, {}, [], sizes, next((word for word in doubts if word), None))
    crossovers = _crossovers(study, found.of_own_size)
    return replace(found, crossovers=crossovers, warnings=_warnings(studies, found.fitted, crossovers))


def _crossovers(study: StudyResults, fitted: dict[str, Fit]) -> dict[str, Crossover]:
    """Arm -> its crossover with the reference, by laws of one size."""
    if study.reference not in fitted:
        return {}
    priced = {arm: (arm, law, _price(study, arm)) for arm, law in fitted.items()}
    base = priced.pop(study.reference)
    return {arm: crossover(one, base) for arm, one in priced.items()}


def points(studies: Sequence[StudyResults], arm: str) -> list[Point]:
    """Final losses, and those of branches, where they are of enough budgets; else every loss on the way."""
    for is_final in (True, False):
        found = [point for study in studies for point in _points(study, arm, is_final)]
        if is_final and num_amounts(found) >= FEWEST_AMOUNTS:
            return found
    return found


def _points(study: StudyResults, arm: str, final_alone: bool) -> list[Point]:
    found = []
    for seed, run in study.runs.get(arm, {}).items():
        readings = curves.loss_readings(study, run)
        settled = [reading for reading in readings if reading.is_decayed] if run.branches else readings[-1:]
        for reading in settled if final_alone else readings:
            so_far = max(1.0, run.summary.epochs * reading.tokens / max(run.summary.tokens, 1))
            size = float(run.summary.parameters)
            found.append(Point(reading.tokens, reading.value, seed, size, so_far, reading.is_decayed))
    return found


def _shares_runs(studies: Sequence[StudyResults], arm: str, found: Sequence[Point]) -> bool:
    """Whether a run gives more than one of the points, which are then not independent."""
    return len(found) > sum(len(study.runs.get(arm, {})) for study in studies)


def _fit(found: list[Point], shares_runs: bool) -> Fit | Refusal:
    sizes, seeds = ({getattr(point, name) for point in found} for name in ("parameters", "seed"))
    by_seed = shares_runs and len(seeds) >= FEWEST_SEEDS
    return fit(found, with_sizes=len(sizes) > 1, unit="seeds" if by_seed else "points")


def _price(study: StudyResults, arm: str) -> float:
    """What a token costs in the budget's unit. Of calibrated runs the hours that passed are noise: the limit counts."""
    spent = []
    for run in study.runs[arm].values():
        budget = run.summary.budget
        amount = budget.spent if budget.calibrated_steps is None else budget.limit
        spent.append((amount, run.summary.tokens))
    return math.fsum(amount for amount, _ in spent) / math.fsum(tokens for _, tokens in spent)


def _warnings(studies: Sequence[StudyResults], found: dict[str, Fit], crossovers: dict[str, Crossover]) -> list[str]:
    if not found:
        return []
    every = [point for law in found.values() for point in law.points]
    said = []
    if any(not point.is_final for point in every):
        said.append(
            "These points are of one run each, on the way, under a learning rate that had not come down. A run with "
            "that budget would have ended lower, so these are not losses of smaller budgets: the laws are too steep, "
            "their intervals too narrow, and what they say beyond the last point is no forecast. Final losses of "
            "studies with different budgets would be."
        )
    elif any(run.branches for study in studies for run in study.all_runs()):
        said.append(
            "Points before the end are of branches that left one run and brought its learning rate down: several "
            "points of a seed share what came before, which the intervals of points, not of seeds, leave out."
        )
    elif any(_shares_runs(studies, arm, law.points) for arm, law in found.items()):
        said.append(
            "Several points are of one run, at a constant learning rate: they share what came before, which the "
            "intervals of points, not of seeds, leave out."
        )
    amounts = min(num_amounts(law.points) for law in found.values())
    if amounts < ENOUGH_AMOUNTS:
        said.append(f"Few points: {amounts} amounts of text for three unknowns.")
    reach = min(law.token_range[1] / law.token_range[0] for law in found.values())
    if reach < WIDE_RANGE:
        said.append(f"The points reach over a factor of {reach:.1f} of text alone, too little to tell a floor.")
    epochs = max(point.epochs for point in every)
    if epochs > REPEATED:
        grave = "; beyond about four, text teaches much less than new text does" if epochs > OFTEN else ""
        said.append(f"Data is repeated, up to {epochs:.1f} times: the law is one for text without repetition{grave}.")
    said += [warning for arm, law in found.items() for warning in _of_one_law(arm, law)]
    for arm, change in crossovers.items():
        if change.is_known and change.at is not None and change.at > FAR * change.measured[1]:
            said.append(f"{arm}: the crossover lies more than {FAR:.0f} times beyond the largest budget measured.")
    return said


def _of_one_law(arm: str, law: Fit) -> list[str]:
    losses = [point.loss for point in law.points]
    low, high = law.interval(0)
    said = []
    if high - low > max(losses) - min(losses):
        said.append(f"{arm}: the floor's interval is wider than the range of the losses: it is not known.")
    elif law.floor < 0.01 * min(losses):
        said.append(f"{arm}: no floor can be seen in these points.")
    if law.parameters[2] > 2.0:
        said.append(f"{arm}: the loss falls in one step and no power law fits it.")
    return said


def load_beside(study: StudyResults, directories: Sequence[Path | str]) -> list[StudyResults]:
    """Other studies that give the laws points of other budgets, pools, seeds or sizes.

    Raises:
        OutputError: one is no study, or differs from ``study`` in something else.
    """
    found = []
    for directory in directories:
        other = results.load(directory)
        differing = _differing(study.recipe, other.recipe)
        if differing:
            raise OutputError(
                given=f"{directory} cannot lend its losses to {study.directory}: they differ in {', '.join(differing)}",
                expected="studies that differ in budget, data.unique_tokens, seeds or the student's size alone",
                fix="leave that study out",
            )
        found.append(other)
    return found


def _differing(recipe: StudyRecipe, other: StudyRecipe) -> list[str]:
    """The keys outside arms that may not differ and do, then those of arms that both have."""
    found = diff.changes(StudyRecipe, recipe, other, but="laws")
    options = [one for one in found if one.policy.makes_stale("arm")]
    shared = recipe.arms.keys() & other.arms.keys()
    keys = sorted(one.key for one in found if one not in options)
    keys += [one.key for one in sorted(options, key=lambda one: (one.arm, one.key)) if one.arm in shared]
    return keys
