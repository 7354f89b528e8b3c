"""An arm's lead over the reference, cell by cell of a grid, and whether it grows: with repetition, with the budget.

A growth is a difference of differences: the lead in one cell less the lead in another, seed by seed, for students of a
seed begin from the same weights in all cells. The growths of all arms and levels along both axes, by all measures, and
their means over the distilled arms are one family and are corrected together; the answer rests on the means.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal, get_args

from kd_megatron.analysis import results
from kd_megatron.analysis.fitness import Objection, objections, too_few_students
from kd_megatron.analysis.measure import PROBE, SCORE, Measure
from kd_megatron.analysis.once import once
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.run_checks import unfair_checks
from kd_megatron.analysis.statistics import Estimate, Method, estimate, judged, verdict
from kd_megatron.recipe import StudyRecipe, config
from kd_megatron.study import layout
from kd_megatron.study.cells import GridPoint, cell_directory, cell_recipe, places
from kd_megatron.study.edits import compare

Axis = Literal["repetition", "budget"]
AXES: tuple[Axis, ...] = get_args(Axis)
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
        floors = [self.study.finetuning_variance(one, measure.quantity) for one in (arm, self.study.reference)]
        return estimate(list(self.leads(arm, measure).values()), method=self.study.interval, floor=sum(floors))


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
        return self.recipe.reference

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
        return [SCORE, PROBE] if self.cells and scored else [PROBE]

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

    def objection(self, measure: Measure) -> Objection | None:
        """What takes verdicts away in some cell, the gravest of the first."""
        return next((found[0] for cell in self.cells if (found := objections(cell.study, measure.quantity))), None)


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
    objection: Objection | None = None  # what takes the verdict away

    @property
    def verdict(self) -> str:
        """``"grows"`` or ``"shrinks"`` when the corrected interval excludes zero, else why nothing can be said."""
        word = self.objection.word if self.objection else None
        return verdict(self.growth, self.corrected, word, "grows" if self.growth.mean > 0 else "shrinks")


@dataclass(frozen=True, eq=False)
class CellPair:
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
def contrasts(grid: GridResults, axis: Axis) -> list[CellPair]:
    """For each budget the pools read least and most often; for each pool the smallest and the largest budget."""
    found, position = [], partial(grid.position, axis)
    for level, cells in grid.levels(axis).items():
        low, high = min(cells, key=position), max(cells, key=position)
        if position(high) >= (MORE_OFTEN if axis == "repetition" else 1.0) * position(low) and high is not low:
            found.append(CellPair(level, low, high))
    return found


Asked = tuple[Axis, Measure, tuple[str, ...], tuple[CellPair, ...]]  # a growth, before its values are known


@once
def growths(grid: GridResults, axis: Axis, measure: Measure) -> list[Growth]:
    """Each arm at each level."""
    wanted = {(axis, measure, (arm,), (one,)) for arm in grid.arms for one in contrasts(grid, axis)}
    return [growth for asked, growth in all_growths(grid).items() if asked in wanted]


@once
def mean_growth(grid: GridResults, axis: Axis, measure: Measure) -> Growth | None:
    """The mean over the distilled arms and all levels; None without any."""
    return all_growths(grid).get((axis, measure, tuple(grid.distilled), tuple(contrasts(grid, axis))))


@once
def all_growths(grid: GridResults) -> dict[Asked, Growth]:
    """Every growth whose values are known: one family over arms, levels, axes and measures, means included."""
    known = {asked: ends for asked in _asked(grid, grid.arms) if (ends := _ends(*asked[1:]))[0]}
    values = [[high[seed] - low[seed] for seed in low] for low, high in known.values()]
    found: dict[Asked, Growth] = {}
    floors = [_finetuning_variance(grid, *asked[1:]) for asked in known]
    family = judged(values, grid.interval, num_growths(grid), floors)
    for (asked, both), sure in zip(known.items(), family, strict=True):
        low, high = (estimate(list(one.values()), method=grid.interval) for one in both)
        if sure and low and high:  # None: a value that is not finite
            axis, measure, arms, compared = asked
            level = compared[0].level if len(compared) == 1 else f"mean over {len(compared)}"
            read = [_mean_epochs(grid, [getattr(one, end) for one in compared]) for end in ("low", "high")]
            doubt = _objection(grid, measure, sure[0].n)
            found[asked] = Growth(axis, arms, level, low, high, (read[0], read[1]), *sure, doubt)
    return found


@once
def num_growths(grid: GridResults) -> int:
    """The size of the family: of all arms of the recipe, whether they have a result yet or not."""
    return len(_asked(grid, [arm for arm in grid.recipe.arms if arm != grid.reference]))


def _finetuning_variance(
    grid: GridResults, measure: Measure, arms: tuple[str, ...], found: tuple[CellPair, ...]
) -> float:
    """Of a growth, by fine-tunings alone: of means of leads, in which arms of one cell share the reference."""
    variance = 0.0
    for cell in (cell for one in found for cell in (one.low, one.high)):
        own = math.fsum(cell.study.finetuning_variance(arm, measure.quantity) for arm in arms)
        shared = len(arms) ** 2 * cell.study.finetuning_variance(grid.reference, measure.quantity)
        variance += (own + shared) / (len(arms) * len(found)) ** 2
    return variance


def _asked(grid: GridResults, arms: Sequence[str]) -> list[Asked]:
    """Each arm at each level of each axis by each measure, and the mean over all that learn from the teacher."""
    found: dict[Asked, None] = {}
    for axis, measure in product(AXES, grid.measures):
        compared = contrasts(grid, axis)
        found |= {(axis, measure, (arm,), (one,)): None for arm in arms for one in compared}
        if compared and grid.distilled:
            found[axis, measure, tuple(grid.distilled), tuple(compared)] = None
    return list(found)


def _objection(grid: GridResults, measure: Measure, num_seeds: int) -> Objection | None:
    """The gravest: of the instruments in some cell, or of too few seeds."""
    protocol = grid.recipe.protocol
    few = too_few_students(num_seeds, num_growths(grid), protocol.students if protocol else None)
    return grid.objection(measure) or next(iter(few), None)


def _ends(measure: Measure, arms: tuple[str, ...], found: tuple[CellPair, ...]) -> list[dict[int, float]]:
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
