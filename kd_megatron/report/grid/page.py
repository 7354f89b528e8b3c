"""The report over a grid of studies: does an arm's lead over the reference grow when text repeats, or with the budget?

Each cell has a report of its own; this one compares leads across cells (`analysis.leads`), no stronger than the seeds
allow.
"""

from collections.abc import Sequence
from pathlib import Path

from kd_megatron import __version__
from kd_megatron.analysis import leads, run_checks
from kd_megatron.analysis.leads import AXES, Axis, GridResults, Growth
from kd_megatron.analysis.measure import Measure
from kd_megatron.analysis.statistics import Method
from kd_megatron.console import units
from kd_megatron.console.units import budget_in_words, num_seeds, seeds_of
from kd_megatron.objectives.words import of_arm_in_words
from kd_megatron.recipe import recipe_yaml
from kd_megatron.report.grid import figures
from kd_megatron.report.grid.tables import FIXED, all_tables
from kd_megatron.report.page import words
from kd_megatron.report.page.document import Block, Bullets, Details, Heading, Paragraph
from kd_megatron.report.page.page import Page, figure_blocks, table_blocks
from kd_megatron.report.page.table import Table
from kd_megatron.report.study.protocol import registration_in_words
from kd_megatron.study import fairness, layout
from kd_megatron.study.registration import read_entries

CAPTIONS = {
    "lead_against_repetition": "Lead over the reference against how often the reference read its text, one panel for "
    "each budget; bars: 95 % intervals over seeds, not corrected. Above the line: ahead.",
    "lead_against_budget": "Lead over the reference against the budget, one panel for each pool of text; bars: 95 % "
    "intervals over seeds, not corrected. Above the line: ahead.",
}


def grid_page(directory: Path, interval: Method = "t") -> Page:
    """The page of a grid, and ``results.json``: all it says, in base units (scores in [0, 1], nats)."""
    grid = leads.load(directory, interval)
    tables = all_tables(grid)
    data = {
        "study": grid.recipe.name,
        "answer": answer(grid),
        "ranked_by": grid.measures[0].quantity,
        "reference": grid.reference,
        "missing": grid.missing,
        "tables": {table.name: table.plain_rows() for table in tables},
        "caveats": caveats(grid),
        "recipe": recipe_yaml.read((directory / layout.RECIPE_FILE).read_text(encoding="utf-8")),
    }
    return Page(f"Grid of studies {grid.recipe.name}", _subtitle(grid), content(grid, tables), tables, data)


def _subtitle(grid: GridResults) -> str:
    recipe = grid.recipe
    assert recipe.grid is not None
    cells = f"{len(recipe.grid.budgets)} budgets x {len(recipe.grid.unique_tokens)} pools of text"
    seeds = seeds_of(grid.num_seeds) if grid.num_seeds else f"{num_seeds(len(recipe.seeds))} planned"
    return f"{cells}, {len(recipe.arms)} arms, {seeds} each. kd_megatron {__version__}."


def answer(grid: GridResults) -> str:
    """What repetition does to the lead of the distilled arms, and what the budget does."""
    if not grid.cells:
        return "No cell has begun: there is no answer."
    if grid.unfair:
        return f"Nothing is concluded: arms with the same seed differ in more than their objective ({grid.unfair[0]})."
    if word := grid.objection(grid.measures[0]):
        return f"Nothing is concluded by the {grid.measures[0].name}: {word} (see the cells' own pages)."
    if not grid.distilled:
        return f"No arm with a teacher has a result beside {grid.reference}: there is no answer yet."
    said = [_axis_answer(grid, axis) for axis in AXES]
    return " ".join(sentence for sentence in said if sentence)


def _axis_answer(grid: GridResults, axis: Axis) -> str:
    """The question, and what each measure says of it."""
    growths = [(measure, leads.mean_growth(grid, axis, measure)) for measure in grid.measures]
    found = [_growth_answer(growth, measure) for measure, growth in growths if growth is not None]
    if not found and leads.contrasts(grid, axis):
        return _no_mean(grid, axis)
    if not found:
        return _no_contrast(grid) if axis == "repetition" else ""
    question = f"Does the lead of distillation over {grid.reference} grow"
    reached = "when its text repeats" if axis == "repetition" else "with the budget"
    return f"{question} {reached}? {' '.join(found)}"


def _growth_answer(growth: Growth, measure: Measure) -> str:
    openings = {"grows": "Yes, as far as these seeds tell", "shrinks": "No, it shrinks"}
    if _is_behind(growth):
        openings = {
            "grows": "It has none, and falls behind by less, as far as these seeds tell",
            "shrinks": "No, it has none and falls behind by more",
        }
    opening = openings.get(growth.verdict, "These seeds cannot tell")
    return f"{opening}: {growth_in_words(growth, measure)}."


def _is_behind(growth: Growth) -> bool:
    """Whether the lead is one in name alone: below zero at both ends."""
    return growth.low.mean < 0 and growth.high.mean < 0


def _no_mean(grid: GridResults, axis: Axis) -> str:
    """Why there is no mean over the distilled arms where cells can be compared."""
    cells = [cell for contrast in leads.contrasts(grid, axis) for cell in (contrast.low, contrast.high)]
    absent = [arm for arm in grid.distilled if not all(cell.leads(arm, grid.measures[0]) for cell in cells)]
    has = "has" if len(absent) == 1 else "have"
    why = f"{', '.join(absent)} {has} no result in one of them" if absent else "they share no seed"
    of = "repetition" if axis == "repetition" else "the budget"
    return f"Nothing is said of {of} as a mean over the distilled arms: in the cells that are compared, {why}."


def _no_contrast(grid: GridResults) -> str:
    often = [epochs for cell in grid.cells if (epochs := cell.epochs(grid.reference)) is not None]
    most = f"{max(often):.1f} times at most" if often else "not at all yet"
    return (
        f"Nothing can be said of repetition: no two finished cells with one budget differ by a factor of "
        f"{leads.MORE_OFTEN:g} in how often {grid.reference} read its text ({most})."
    )


def growth_in_words(growth: Growth, measure: Measure) -> str:
    """The leads at both ends, the growth and its interval."""
    leads_by, sign = ("is behind by", -1) if _is_behind(growth) else ("leads by", 1)
    low, high = (
        units.signed(sign * measure.scale * end.mean, measure.digits).removeprefix("+" * (sign < 0))
        for end in (growth.low, growth.high)
    )
    if growth.axis == "repetition":
        ends = f"{low} where text is read {growth.epochs[0]:.1f} times and {high} at {growth.epochs[1]:.1f} times"
    else:
        ends = f"{low} at the smallest budget and {high} at the largest"
    varies = not growth.growth.has_interval or growth.growth.low != growth.growth.high
    size = words.difference(growth.corrected, measure.scale, measure.digits)
    size = size if varies else units.signed(measure.scale * growth.growth.mean, measure.digits)
    arms = growth.arms[0] if len(growth.arms) == 1 else f"the mean of {', '.join(growth.arms)}"
    over = "" if not growth.level.startswith("mean") else f", {growth.level} levels of {FIXED[growth.axis]}"
    what = "mean score" if measure.quantity == "score" else measure.name
    said = f"by {what}, {arms} {leads_by} {ends}{over}, a growth of {size} {measure.unit}"
    if not growth.growth.has_interval:
        return f"{said}: one observation and no evidence"
    if not varies:
        return f"{said}, the same in {num_seeds(growth.growth.n)}: no variation, which is no evidence"
    zero = "excludes" if growth.corrected.excludes_zero else "includes"
    both = ", corrected for the two questions asked," if growth.num_comparisons > 1 else ""
    return f"{said} (95 % interval{both} over {num_seeds(growth.growth.n)}, which {zero} zero)"


# --- the page ---------------------------------------------------------------------------------------------


def content(grid: GridResults, tables: Sequence[Table]) -> list[Block]:
    """The report, top to bottom: answer, leads, growths, caveats, method; of `all_tables`."""
    blocks: list[Block] = [Paragraph(answer(grid), lead=True)]
    if grid.recipe.description:
        blocks.append(Paragraph(grid.recipe.description))
    if grid.cells:
        blocks += table_blocks(tables, "leads")
        for axis, draw in zip(AXES, (figures.lead_against_repetition, figures.lead_against_budget), strict=True):
            blocks += [*figure_blocks(CAPTIONS, [draw], grid), *table_blocks(tables, f"growth_with_{axis}")]
        blocks.append(Details("Every cell", table_blocks(tables, "cells")))
    return [*blocks, Heading("Caveats"), Bullets(caveats(grid)), Heading("Method"), Bullets(_method(grid))]


def caveats(grid: GridResults) -> list[str]:
    """What a reader must know before believing the numbers."""
    said = [f"Not finished: {'; '.join(grid.missing)}."] if grid.missing else []
    said += [f"Arms with the same seed differ in more than their objective in {found}." for found in grid.unfair]
    said += [f"Not all runs recorded the same {key}: {found}." for key, found in _recorded_differently(grid).items()]
    said += [
        "One seed: no interval can be given, and a growth may be chance."
        if max(grid.num_seeds, default=1) == 1
        else f"Intervals are over {seeds_of(grid.num_seeds)}, about new seeds of this corpus, teacher and size alone.",
        *_other_averages(grid),
        "Small pools are parts of the large ones, drawn once: how much the choice of a pool matters is in no interval.",
        "Repetition and the size of the pool go together here: a small pool is both read more often and less varied.",
        "The probe's loss favours arms that train masked-language modelling.",
        *_allowed(grid),
        *grid.recipe.notes,
    ]
    return said


def _other_averages(grid: GridResults) -> list[str]:
    """Where scores are not compared between cells, why."""
    if not grid.averages_differ:
        return []
    found = ((cell.place.name, ", ".join(cell.study.averaged_tasks) or "no task") for cell in grid.cells)
    listed = "; ".join(f"{name}: {tasks}" for name, tasks in found)
    return [f"Average scores are not compared: by the rule of inclusion, cells average over other tasks ({listed})."]


def _recorded_differently(grid: GridResults) -> dict[str, str]:
    """Entry of the fingerprints -> which cells recorded what; the hash of the data includes the pool."""
    found = run_checks.differences_between({cell.place.name: cell.study for cell in grid.cells})
    found.pop("data", None)
    for pool in dict.fromkeys(cell.place.unique_tokens for cell in grid.cells):
        alike = {cell.place.name: cell.study for cell in grid.cells if cell.place.unique_tokens == pool}
        found |= {key: said for key, said in run_checks.differences_between(alike).items() if key == "data"}
    return found


def _allowed(grid: GridResults) -> list[str]:
    first = grid.cells[0].study if grid.cells else None
    allowed = fairness.allowed(first.recipe, first.resolved) if first else []
    keys = ", ".join(difference.key for difference in allowed)
    return [f"The recipe lets arms differ in {keys} beside their objective: see the reports of the cells."] * bool(keys)


def _method(grid: GridResults) -> list[str]:
    recipe = grid.recipe
    arms = ", ".join(f"{arm}: {of_arm_in_words(recipe, arm)}" for arm in recipe.arms)
    return [
        f"Arms: {arms}. Lead is taken over {grid.reference}.",
        f"Budget of factor 1: {budget_in_words(recipe.budget)} for each student.",
        f"Seeds: {', '.join(map(str, recipe.seeds))}; students of one seed begin from the same weights in all cells.",
        "Data, teacher and what tuning chose are the same in all cells. A growth is a difference of differences, "
        "paired by seed; families are corrected by Bonferroni (intervals) and Holm (p): docs/statistics.md.",
        *[registration_in_words(entry) for entry in read_entries(grid.directory)[:1]],
    ]
