"""An arm's lead over the reference, cell by cell of a grid, and whether it grows: with repetition, with the budget.

A growth is a difference of differences: the lead in one cell less the lead in another, seed by seed, for students of a
seed begin from the same weights in all cells. Growths of all arms and levels along one axis are one family and are
corrected together; the answer rests on their mean over the distilled arms, corrected for the two axes asked about.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal, get_args

from kd_megatron.analysis import results
from kd_megatron.analysis.comparisons import GATED, TOO_FEW
from kd_megatron.analysis.fitness import objection
from kd_megatron.analysis.measure import PROBE, SCORE, Measure
from kd_megatron.analysis.once import once
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.run_checks import unfair_checks
from kd_megatron.analysis.statistics import Estimate, Method, estimate, judged, verdict
from kd_megatron.recipe import StudyRecipe, config
from kd_megatron.study import layout
from kd_megatron.study.cells import GridPoint, cell_directory, cell_recipe, places
from kd_megatron.study.edits import compare
from kd_megatron.study.power import students_needed

Axis = Literal["repetition", "budget"]
AXES: tuple[Axis, ...] = get_args(Axis)
DECIDED = ("grows", "shrinks")
MORE_OFTEN = 1.5  # times: text that is read less than that much more often is no repetition to speak of


@dataclass(frozen=True)
class GridCell:
    """One study of the grid, begun or finished."""

    place: GridPoint
    study: StudyResults

    @once
    def epochs(self, arm: str) -> float | None:
        """How often ``arm`` read its text, mean over seeds; None before it has a run."""
        each = [run.summary.epochs for run in self.study.runs.get(arm, {}).values()]
        return math.fsum(each) / len(each) if each else None

    @once
    def leads(self, arm: str, measure: Measure) -> dict[int, float]:
        """Seed -> how far ``arm`` is ahead of the reference, in the measure's base unit; below zero: behind."""
        sign = 1.0 if measure.higher_is_better else -1.0
        own = self.study.by_seed(arm, measure.quantity)
        reference = self.study.by_seed(self.study.reference, measure.quantity)
        return {seed: sign * (own[seed] - reference[seed]) for seed in sorted(own.keys() & reference.keys())}

    @once
    def lead(self, arm: str, measure: Measure) -> Estimate | None:
        """Mean of `leads` with its interval; None without any."""
        return estimate(list(self.leads(arm, measure).values()), method=self.study.interval)


@dataclass(frozen=True)
class GridResults:
    """Everything a grid has found so far."""

    directory: Path
    recipe: StudyRecipe
    cells: list[GridCell]  # those that have begun, in the recipe's order
    missing: list[str] = field(default_factory=list)
    interval: Method = "t"

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return layout.reference_of(self.recipe)

    @property
    def num_seeds(self) -> list[int]:
        """How many seeds there are of each arm in each cell, where there are any."""
        return [len(runs) for cell in self.cells for runs in cell.study.runs.values() if runs]

    @property
    def arms(self) -> list[str]:
        """The other arms, in the recipe's order, that have a result in some cell."""
        found = {arm for cell in self.cells for arm in cell.study.arms}
        return [arm for arm in self.recipe.arms if arm in found and arm != self.reference]

    @property
    def distilled(self) -> list[str]:
        """Those of them that learn from a teacher."""
        return [arm for arm in self.arms if any(cell.study.learns_from_teacher(arm) for cell in self.cells)]

    @property
    def measures(self) -> list[Measure]:
        """What is known in every cell, in the order in which the answer takes them."""
        scored = all(cell.study.by_seed(arm, "score") for cell in self.cells for arm in cell.study.arms)
        scored &= not self.averages_differ
        return [SCORE, PROBE] if self.cells and scored else [PROBE]

    @functools.cached_property
    def averages_differ(self) -> bool:
        """Whether cells average over different tasks, so that no score of one compares with another's."""
        return len({tuple(cell.study.averaged_tasks) for cell in self.cells if cell.study.arms}) > 1

    @property
    def primary(self) -> list[Measure]:
        """Those of `measures` that the protocol names; all of them without one."""
        protocol = self.recipe.protocol
        named = [one for one in self.measures if protocol and one.quantity == protocol.measure]
        return named or self.measures

    def position(self, axis: Axis, cell: GridCell) -> float:
        """Where a cell lies on an axis: its budget, or how often the reference read its text."""
        return cell.place.budget if axis == "budget" else cell.epochs(self.reference) or 0.0

    def levels(self, axis: Axis) -> dict[str, list[GridCell]]:
        """The cells in which the reference has a result, by what is held fixed along an axis, in words."""
        groups: dict[str, list[GridCell]] = {}
        for cell in self.cells:
            fixed = cell.place.pool_in_words if axis == "budget" else f"{cell.place.budget:g} x budget"
            if cell.epochs(self.reference) is not None:
                groups.setdefault(fixed, []).append(cell)
        return groups

    @functools.cached_property
    def unfair(self) -> list[str]:
        """The checks that failed in some cell, with its name."""
        return [f"{cell.place.name}: {'; '.join(found)}" for cell in self.cells if (found := unfair_checks(cell.study))]

    def objection(self, measure: Measure) -> str | None:
        """What takes verdicts away in some cell, in a word or two."""
        return next((word for cell in self.cells if (word := objection(cell.study, measure.quantity))), None)


@dataclass(frozen=True)
class Growth:
    """How much a lead grows from one cell to another, over the seeds of both; in the measure's base unit."""

    axis: Axis
    arms: tuple[str, ...]  # more than one: the mean over them
    level: str  # what is held fixed, in words
    low: Estimate  # the lead at the one end
    high: Estimate
    epochs: tuple[float, float]  # of the reference, at both ends
    growth: Estimate
    corrected: Estimate
    num_comparisons: int
    p_value: float | None
    p_holm: float | None
    objection: str | None = None  # what takes the verdict away in some cell, in a word or two

    @property
    def verdict(self) -> str:
        """``"grows"`` or ``"shrinks"`` when the corrected interval excludes zero, else why nothing can be said."""
        return verdict(self.growth, self.corrected, self.objection, "grows" if self.growth.mean > 0 else "shrinks")


@dataclass(frozen=True)
class Contrast:
    """Two cells that differ along one axis."""

    level: str
    low: GridCell
    high: GridCell


def load(directory: Path, interval: Method = "t") -> GridResults:
    """Read a grid's directory, finished or not. Raises `OutputError` when it is no study."""
    if not (directory / layout.RECIPE_FILE).is_file():
        raise layout.no_study(directory)
    recipe = config.load(directory / layout.RECIPE_FILE, StudyRecipe)
    cells, missing = [], []
    for place in places(recipe):
        where = cell_directory(directory, place)
        if not (where / layout.RECIPE_FILE).is_file():
            missing.append(f"cell {place.name}")
            continue
        wanted = cell_recipe(recipe, place)
        if edited := compare(config.load(where / layout.RECIPE_FILE, StudyRecipe), wanted).keys:
            missing.append(f"cell {place.name}, which has runs of another recipe ({'; '.join(edited)})")
            continue
        study = results.load(where, interval)
        cells.append(GridCell(place, study))
        if study.missing:
            missing.append(f"{len(study.missing)} pieces of cell {place.name}")
        if added := {*product(wanted.arms, wanted.seeds)} - {*product(study.recipe.arms, study.recipe.seeds)}:
            missing.append(f"{len(added)} students of cell {place.name}, which the recipe has gained")
    return GridResults(directory, recipe, cells, missing, interval)


@once
def contrasts(grid: GridResults, axis: Axis) -> list[Contrast]:
    """For each budget the pools read least and most often; for each pool the smallest and the largest budget."""
    found, position = [], partial(grid.position, axis)
    for level, cells in grid.levels(axis).items():
        low, high = min(cells, key=position), max(cells, key=position)
        if position(high) >= (MORE_OFTEN if axis == "repetition" else 1.0) * position(low) and high is not low:
            found.append(Contrast(level, low, high))
    return found


@once
def growths(grid: GridResults, axis: Axis, measure: Measure) -> list[Growth]:
    """Each arm at each level; secondary: one family over both axes and all measures, judged after the mean growths."""
    numbers = {one: len(grid.arms) * len(contrasts(grid, one)) for one in AXES}
    pairs = [((arm,), [contrast]) for arm in grid.arms for contrast in contrasts(grid, axis)]
    found = _family(grid, axis, measure, pairs, sum(numbers.values()) * len(grid.measures))
    return _after_primary(grid, found)


@once
def mean_growth(grid: GridResults, axis: Axis, measure: Measure) -> Growth | None:
    """The mean over the distilled arms and all levels; None without any.

    Primary are those of the protocol's measure, or of all: one family over both axes. Others come after them.
    """
    asked = {one: found for one in AXES if (found := contrasts(grid, one))}
    if not grid.distilled or axis not in asked:
        return None
    is_primary = measure in grid.primary
    alike = [one for one in grid.measures if (one in grid.primary) == is_primary]
    family = _family(grid, axis, measure, [(tuple(grid.distilled), asked[axis])], len(asked) * len(alike))
    return next(iter(family if is_primary else _after_primary(grid, family)), None)


def _after_primary(grid: GridResults, found: list[Growth]) -> list[Growth]:
    """Secondary growths, which are judged only where every primary one is decided."""
    primary = [mean_growth(grid, axis, measure) for axis in AXES for measure in grid.primary]
    if all(one.verdict in DECIDED for one in primary if one):
        return found
    return [replace(one, objection=one.objection or GATED) if one.growth.has_interval else one for one in found]


def _family(
    grid: GridResults,
    axis: Axis,
    measure: Measure,
    pairs: Sequence[tuple[tuple[str, ...], list[Contrast]]],
    num_comparisons: int,
) -> list[Growth]:
    """One growth for each pair of arms and contrasts, where they share a seed; means where these are several."""
    ends = [_ends(arms, found, measure) for arms, found in pairs]
    known = [(pair, both) for pair, both in zip(pairs, ends, strict=True) if both[0]]
    values = [[high[seed] - low[seed] for seed in low] for _, (low, high) in known]
    found, doubt, needed = [], grid.objection(measure), students_needed(grid.recipe, num_comparisons)
    for ((arms, compared), both), sure in zip(known, judged(values, grid.interval, num_comparisons), strict=True):
        low, high = (estimate(list(one.values()), method=grid.interval) for one in both)
        if sure and low and high:  # None: a value that is not finite
            level = compared[0].level if len(compared) == 1 else f"mean over {len(compared)}"
            read = [_mean_epochs(grid, [getattr(one, end) for one in compared]) for end in ("low", "high")]
            growth, corrected, num, p, p_holm = sure
            few = TOO_FEW if 2 <= growth.n < needed else None
            p_holm = None if p_holm is None else min(1.0, p_holm * num / len(known))  # num: more than are known
            sizes = (growth, corrected, num, p, p_holm)
            found.append(Growth(axis, arms, level, low, high, (read[0], read[1]), *sizes, doubt or few))
    return found


def _ends(arms: tuple[str, ...], found: list[Contrast], measure: Measure) -> list[dict[int, float]]:
    """Seed -> mean lead at the low end, and at the high one, over the seeds that both have."""
    ends = [_mean_leads(arms, [getattr(one, end) for one in found], measure) for end in ("low", "high")]
    shared = sorted(ends[0].keys() & ends[1].keys())
    return [{seed: one[seed] for seed in shared} for one in ends]


def _mean_leads(arms: Sequence[str], cells: Sequence[GridCell], measure: Measure) -> dict[int, float]:
    """Seed -> mean lead over arms and cells, of the seeds that all of them have."""
    each: list[Mapping[int, float]] = [cell.leads(arm, measure) for cell in cells for arm in arms]
    shared = set.intersection(*(set(one) for one in each)) if each else set()
    return {seed: math.fsum(one[seed] for one in each) / len(each) for seed in sorted(shared)}


def _mean_epochs(grid: GridResults, cells: Sequence[GridCell]) -> float:
    return math.fsum(grid.position("repetition", cell) for cell in cells) / len(cells)
