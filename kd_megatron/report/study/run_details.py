"""Down to each run: what it lost on the way, where its budget went, how it was fine-tuned, what it was made of."""

from typing import Any

from kd_megatron.analysis.curves import PROBE_METRIC
from kd_megatron.analysis.results import FinishedRun, StudyResults
from kd_megatron.analysis.run_checks import fingerprint_differences
from kd_megatron.console import units
from kd_megatron.ledger import ACCOUNTS
from kd_megatron.report.page.document import Block, Bullets, Details, TableBlock
from kd_megatron.report.page.table import Column, Table, texts

MOST_ROWS = 8  # of a run's own loss, beside its validations


def run_details(study: StudyResults) -> list[Block]:
    """One folded block for each run, in the order of the recipe."""
    differing = fingerprint_differences(study)
    return [Details(f"{run.arm}, seed {run.seed}", _blocks(study, run, differing)) for run in study.all_runs()]


def losses(study: StudyResults) -> Table:
    """Every validation of every run, for csv: what the curves are drawn from."""
    keys = ("step", "tokens", "flops", "hours", "budget_fraction")
    rows = [
        {"arm": run.arm, "seed": run.seed, **{key: row.get(key) for key in keys}, "probe_loss": row[PROBE_METRIC]}
        for run in study.all_runs()
        for row in run.metrics
        if row.get(PROBE_METRIC) is not None
    ]
    return Table("losses", "", [], rows)


def _blocks(study: StudyResults, run: FinishedRun, differing: dict[str, dict[str, Any]]) -> list[Block]:
    own = [f"{key} is {values[run.name]}" for key, values in differing.items() if run.name in values]
    recorded = f"Recorded otherwise than in most runs: {'; '.join(own)}." if own else "Recorded as in most other runs."
    blocks: list[Block] = [Bullets([_in_words(run), recorded]), TableBlock(_on_the_way(run)), TableBlock(_ledger(run))]
    return blocks + ([TableBlock(_finetuning(study, run))] if run.finetune else [])


def _in_words(run: FinishedRun) -> str:
    budget = run.summary.budget
    spent = units.flops if budget.unit == "flops" else "{:.4g}".format
    return (
        f"{units.count(run.summary.steps)} steps, {units.count(run.summary.tokens)} tokens, of them "
        f"{units.count(run.summary.unique_tokens)} different ones; spent {spent(budget.spent)} of "
        f"{spent(budget.limit)} {units.unit_in_words(budget.unit)}."
    )


def _on_the_way(run: FinishedRun) -> Table:
    own = [row for row in run.metrics if row.get("loss") is not None]
    step = max(1.0, (len(own) - 1) / (MOST_ROWS - 1))
    chosen = {round(place * step) for place in range(MOST_ROWS)}
    rows = [row for number, row in enumerate(own) if number in chosen]
    rows += [row for row in run.metrics if row.get(PROBE_METRIC) is not None]
    shown = [{**row, "probe_loss": row.get(PROBE_METRIC)} for row in sorted(rows, key=lambda row: row.get("tokens", 0))]
    columns = [
        Column("budget_fraction", "budget", lambda value: units.percent(None if value is None else min(value, 1.0))),
        Column("tokens", "tokens", units.count),
        Column("loss", "own loss", _own),
        Column("probe_loss", "held-out MLM loss (probe, nats)", units.thousandths),
    ]
    return Table("", "On the way", columns, shown, "The own loss is that of the objective: no two arms share it.")


def _ledger(run: FinishedRun) -> Table:
    charged = run.summary.budget.charge
    spent = {name: (run.account(name, "seconds"), run.account(name, "flops")) for name in ACCOUNTS}
    rows = [
        {"account": name.replace("_", " "), "seconds": seconds, "flops": flops, "charged": name in charged}
        for name, (seconds, flops) in spent.items()
        if seconds or flops
    ]
    columns = [
        *texts("account"),
        Column("seconds", "seconds", lambda value: f"{value:.1f}"),
        Column("flops", "FLOPs", units.flops),
        Column("charged", "charged", lambda value: "yes" if value else "no", is_text=True),
    ]
    return Table("", "Its ledger", columns, rows)


def _finetuning(study: StudyResults, run: FinishedRun) -> Table:
    rows = [
        {
            "task": task,
            "score": summary.mean,
            "seeds": len(summary.scores),
            **{key: summary.best_cell.get(key) for key in ("learning_rate", "batch_size")},
        }
        for task, summary in run.tasks.items()
        if task in study.tasks
    ]
    columns = [
        *texts("task"),
        Column("score", "score (points)", units.points),
        Column("seeds", "fine-tuning seeds"),
        Column("learning_rate", "learning rate", units.number),
        Column("batch_size", "batch size"),
    ]
    return Table("", "Its fine-tuning", columns, rows)


def _own(value: float | None) -> str:
    """Of any size: relations that are nearly uniform differ by millionths."""
    return units.NOTHING if value is None else f"{value:#.4g}"
