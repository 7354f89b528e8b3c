"""What ``finetune`` prints: the table of scores, and the plan of a dry run."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from kd_megatron.finetune.grid.dry_run import TaskPlan
    from kd_megatron.recipe import FinetuneRecipe


def print_scores(summary: dict[str, Any]) -> None:
    """The scores with their intervals, the averages, and what a reader must know of them."""
    from rich.console import Console

    table = _table(f"{summary['model']} ({summary['precision']})")
    for column in ("task", "metric", "n", "mean", "95 % interval", "lr, batch", "train, dev"):
        table.add_column(column, overflow="fold", no_wrap=column in ("mean", "95 % interval"))
    for name, task in summary["tasks"].items():
        best = task["best_cell"]
        table.add_row(
            name + ("*" if task["note"] else ""),
            task["metric"],
            str(len(task["scores"])),
            f"{task['mean']:.4f}",
            _interval(task["interval"]),
            f"{best['learning_rate']:g}, {best['batch_size']}",
            f"{task['num_train']}, {task['num_dev']}",
        )
    table.add_section()
    table.add_row("average", "", "", f"{summary['average']:.4f}", "", "", "")
    console = Console(highlight=False)
    console.print(table)
    for name, task in summary["tasks"].items():
        if task["note"]:
            console.print(f"* {name}: {task['note']}", soft_wrap=True)
    for average in summary["averages"].values():
        if average["tasks"]:  # someone with own data alone need not read of GLUE
            console.print(_average(average), soft_wrap=True)
    console.print(
        f"Each score is that of the {summary['selection']}, over n seeds; intervals are Student's t.", soft_wrap=True
    )


def _interval(interval: list[float] | None) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "needs 2 seeds"


def _average(average: dict[str, Any]) -> str:
    if average["average"] is None:
        return f"{average['title']}: not given, {', '.join(average['absent'])} absent"
    partial = f"; not on GLUE's rows: {', '.join(average['partial'])}" if average["partial"] else ""
    return f"{average['title']}: {average['average']:.4f}{partial}"


def print_plan(plans: "list[TaskPlan]", recipe: "FinetuneRecipe") -> None:
    """What there is to do, task by task."""
    from rich.console import Console

    table = _table("Nothing was trained or written. To do:")
    for column in ("task", "train, dev", "settings x seeds", "cells", "done", "examples left", "examples/s", "hours"):
        table.add_column(column, overflow="fold")
    for plan in plans:
        table.add_row(
            plan.task.name + ("*" if plan.task.note else ""),
            f"{len(plan.task.train)}, {plan.task.num_dev}",
            f"{plan.num_settings} x {plan.num_seeds}",
            str(plan.num_cells),
            str(plan.num_done),
            f"{plan.num_examples:,}",
            "-" if plan.examples_per_second is None else f"{plan.examples_per_second:.0f}",
            "-" if plan.seconds is None else f"{plan.seconds / 3600:.2f}",
        )
    console = Console(highlight=False)
    console.print(table)
    for plan in plans:
        if plan.task.note:
            console.print(f"* {plan.task.name}: {plan.task.note}", soft_wrap=True)
    if recipe.halving:
        console.print("Successive halving: after each seed the worse half of the settings is given up.")
    console.print("Speeds are those of finished cells, one process; a task without one has none.", soft_wrap=True)


def _table(title: str) -> "Table":
    from rich.table import Table

    return Table(title=title, title_justify="left")
