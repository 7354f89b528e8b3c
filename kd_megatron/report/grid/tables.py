"""The tables over a grid of studies: leads in each cell, their growth along an axis, and what each cell measured."""

import math
from functools import partial
from typing import Any

from kd_megatron.analysis import leads
from kd_megatron.analysis.leads import AXES, Axis, GridCell, GridResults, Growth
from kd_megatron.analysis.measure import Measure
from kd_megatron.analysis.statistics import Estimate
from kd_megatron.console import units
from kd_megatron.report.page import words
from kd_megatron.report.page.table import Column, Table, numbers, texts

FIXED = {"repetition": "budget", "budget": "pool of text"}


def all_tables(grid: GridResults) -> list[Table]:
    """Every table, for csv."""
    return [leads_table(grid), *(table for axis in AXES if (table := growth_table(grid, axis))), cells_table(grid)]


def leads_table(grid: GridResults) -> Table:
    """Each arm's lead in each cell."""
    columns = [
        Column("budget", "budget (x)", units.number),
        *texts(pool="pool of text", arm="arm"),
        *numbers(units.ratio, epochs_reference=f"epochs, {grid.reference}", epochs="epochs, arm"),
    ]
    columns += [Column(f"lead_{m.quantity}", f"lead, {m.name} ({m.unit})", partial(_shown, m)) for m in grid.measures]
    rows = [_lead_row(grid, cell, arm) for cell in grid.cells for arm in grid.arms if arm in cell.study.arms]
    note = (
        f"Lead: how far an arm is ahead of {grid.reference} in the same cell, mean over seeds with its 95 % interval, "
        "paired by seed, not corrected; in the probe's loss too, above zero is better. Epochs: tokens seen per "
        "distinct token. At equal budgets the cheaper arm reads more, and so repeats a small pool more often."
    )
    return Table("leads", "How far each arm is ahead", columns, rows, note)


def _shown(measure: Measure, value: Estimate | None) -> str:
    return words.difference(value, measure.scale, measure.digits)


def _lead_row(grid: GridResults, cell: GridCell, arm: str) -> dict[str, Any]:
    return {
        "cell": cell.place.name,
        "budget": cell.place.budget,
        "pool": cell.place.pool_in_words,
        "unique_tokens": cell.place.unique_tokens,
        "arm": arm,
        "epochs_reference": cell.epochs(grid.reference),
        "epochs": cell.epochs(arm),
        **{f"lead_{measure.quantity}": cell.lead(arm, measure) for measure in grid.measures},
    }


def growth_table(grid: GridResults, axis: Axis) -> Table | None:
    """How leads differ between the ends of an axis; None where the grid has no two such cells."""
    rows = []
    for measure in grid.measures:
        mean = leads.mean_growth(grid, axis, measure)
        found = leads.growths(grid, axis, measure)
        rows += [_growth_row(one, measure) for one in [*([mean] if mean and len(found) > 1 else []), *found]]
    if not rows:
        return None
    columns = [
        *texts("arm", level=FIXED[axis], measure="measured by", epochs="epochs of the reference"),
        *texts(shown="growth of the lead", corrected="corrected interval"),
        Column("p_holm", "p (Holm)", units.thousandths),
        Column("verdict", "the lead", is_text=True),
    ]
    ends = "the pool read most often less the one read least often" if axis == "repetition" else (
        "the largest budget less the smallest"
    )  # fmt: skip
    note = (
        f"Growth: the lead with {ends}, seed by seed, with its 95 % interval. The corrected intervals (Bonferroni) and "
        f"p (Holm) hold together for one family of {leads.num_growths(grid)} growths: all arms and levels of both axes "
        "by all measures, means over distilled arms included. Points, or nats of the probe's loss, where above zero is "
        "better."
    )
    title = "Does the lead grow when text repeats?" if axis == "repetition" else "Does the lead grow with the budget?"
    return Table(f"growth_with_{axis}", title, columns, rows, note)


def _growth_row(growth: Growth, measure: Measure) -> dict[str, Any]:
    return {
        "arm": growth.arms[0] if len(growth.arms) == 1 else f"mean of {len(growth.arms)} distilled",
        "level": growth.level,
        "measure": measure.name,
        "epochs": f"{growth.epochs[0]:.1f} to {growth.epochs[1]:.1f}",
        "shown": words.difference(growth.growth, measure.scale, measure.digits),
        "growth": growth.growth,
        "corrected": words.ends(growth.corrected, measure.scale, measure.digits) or units.NOTHING,
        "num_comparisons": growth.num_comparisons,
        "p_value": growth.p_value,
        "p_holm": growth.p_holm,
        "verdict": growth.verdict,
    }


def cells_table(grid: GridResults) -> Table:
    """Each arm in each cell: what it read and what it scores."""
    columns = [
        *texts("cell", "arm"),
        Column("seeds", "seeds"),
        *numbers(units.count, tokens="tokens seen", unique_tokens="unique tokens"),
        Column("score", "average score", words.score),
        Column("probe_loss", "held-out MLM loss (probe)", words.loss),
    ]
    rows = [_cell_row(cell, arm) for cell in grid.cells for arm in cell.study.arms]
    note = "Means over seeds ± half of the 95 % interval. Each cell's own report is in cells/CELL/report."
    return Table("cells", "", columns, rows, note)


def _cell_row(cell: GridCell, arm: str) -> dict[str, Any]:
    runs = list(cell.study.runs[arm].values())
    keys = ("tokens", "unique_tokens")
    mean = {key: math.fsum(getattr(run.summary, key) for run in runs) / len(runs) for key in keys}
    scores = {quantity: cell.study.mean(arm, quantity) for quantity in ("score", "probe_loss")}
    return {"cell": cell.place.name, "arm": arm, "seeds": len(runs), **mean, **scores}
