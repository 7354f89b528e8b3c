"""``finetune``: the separate stage. A model, a recipe of tasks and a grid -> a table of scores with intervals."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from kd_megatron.finetune.grid.dry_run import TaskPlan
    from kd_megatron.recipe import FinetuneRecipe

HELP = "fine-tune an encoder on GLUE or own data over a grid, and print the scores"
DESCRIPTION = """\
Fine-tune a Hugging Face encoder on every task x learning rate x batch size x seed of RECIPE, and print one score per
task: that of the best setting, averaged over seeds. Works for any encoder saved with safetensors and a tokenizer.

The same command again continues where it stopped; finished cells are never done twice, and a changed recipe or model
never reuses old ones. With N processes (launch.sh --procs N) the cells are spread over them; the scores are the same.
"""
EPILOG = """\
recipes:
  recipes/glue.yaml         six tasks that are small, one setting for all (preset sane), three seeds
  recipes/glue_study.yaml   seven tasks and the grid of Bui et al. 2024
Any key can be changed on the command line: seeds=[0,1,2,3,4], epochs=3, grid.learning_rates=[3e-5], halving=true,
selection.on=train_slice (settings are chosen on rows held out of train), glue_path=DIRECTORY (your copy of GLUE).

examples:
  finetune recipes/glue.yaml --model runs/x/export
  finetune recipes/glue.yaml --model runs/x/export --dry-run       what there is to do, and how long it takes
  finetune recipes/glue.yaml --model runs/x/export --submission glue.zip
  finetune my_task.yaml --model DIR         with my_task.yaml:
      kind: finetune
      tasks: [{name: reviews, train: train.tsv, dev: dev.jsonl, text: body, label: stars}]

what it leaves in OUTPUT:
  scores.html, scores.md    the page: tables, learning curves, settings, versions
  summary.json, tables/     the same for machines
  TASK/cells/               one cell each: .json (scores, curves), .npz (predictions)
  tensorboard/              tensorboard --logdir OUTPUT/tensorboard

docs/finetuning.md has the details.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("recipe", help="a fine-tuning recipe, such as recipes/glue.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe, such as epochs=3")
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="model directory (safetensors only)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: runs/finetune-NAME, NAME from --model")
    parser.add_argument(
        "--submission", type=Path, metavar="FILE.zip", help="also write the predictions for GLUE's server"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what there is to do, and train nothing")


def run(args: argparse.Namespace) -> int:
    """Run the grid, print the table, write the page."""
    from kd_megatron.finetune.grid.dry_run import plan_grid
    from kd_megatron.finetune.grid.grid import run_grid
    from kd_megatron.finetune.grid.submission import check_recipe
    from kd_megatron.launch.preflight import compare_nodes
    from kd_megatron.ranks import dist
    from kd_megatron.recipe import FinetuneRecipe, config

    recipe = config.load(args.recipe, FinetuneRecipe, args.overrides)
    output = args.output or default_output(args.model)
    if args.submission:
        check_recipe(recipe)
    if args.dry_run:
        if dist.is_main():
            _print_plan(plan_grid(args.model, recipe, output), recipe)
        return 0
    with dist.joined(share_devices=True):
        compare_nodes([args.recipe, *args.overrides])
        summary = run_grid(args.model, recipe, output)
        if dist.is_main():
            _print_scores(summary)
            _write_outputs(summary, output, recipe, args.submission)
    return 0


def _write_outputs(summary: dict[str, Any], output: Path, recipe: "FinetuneRecipe", submission: Path | None) -> None:
    """The page, and the zip for GLUE's server where one is asked for."""
    from kd_megatron.finetune.grid.submission import write_submission
    from kd_megatron.finetune.places import SUMMARY
    from kd_megatron.report.finetune.page import HTML, write_page

    page = write_page(output)
    print(f"written to {output / SUMMARY}, {page} and {output / HTML}")
    if submission:
        absent = write_submission(summary, output, recipe, submission)
        print(f"written to {submission}" + (f"; GLUE's server also wants {', '.join(absent)}" if absent else ""))


def default_output(model: Path) -> Path:
    """``runs/finetune-NAME``: a model in RUN/export is called after its run, one of a study after arm and seed."""
    path = model.resolve()
    if path.name == "export":
        path = path.parent
    name = f"{path.parent.name}-{path.name}" if path.name.startswith("seed_") else path.name
    return Path("runs") / f"finetune-{name}"


def _print_scores(summary: dict[str, Any]) -> None:
    """The scores with their intervals, the averages, and what a reader must know of them."""
    from rich.console import Console

    table = _table(f"{summary['model']} ({summary['precision']})")
    for column in ("task", "metric", "n", "mean", "95 % interval", "lr, batch", "train, dev"):
        table.add_column(column, overflow="fold", no_wrap=column in ("mean", "95 % interval"))
    for name, task in summary["tasks"].items():
        best, interval = task["best_cell"], task["interval"]
        table.add_row(
            name + ("*" if task["note"] else ""),
            task["metric"],
            str(len(task["scores"])),
            f"{task['mean']:.4f}",
            f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "needs 2 seeds",
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
        if task["num_collapsed"]:
            collapsed = f"{task['num_collapsed']} of {len(task['scores'])}"
            console.print(f"{name}: {collapsed} fine-tunings collapsed (majority class or one answer)", soft_wrap=True)
    for average in summary["averages"].values():
        if average["tasks"]:  # someone with own data alone need not read of GLUE
            console.print(_average(average), soft_wrap=True)
    console.print(
        f"Each score is that of the {summary['selection']}, over n seeds; intervals are Student's t.", soft_wrap=True
    )


def _average(average: dict[str, Any]) -> str:
    if average["average"] is None:
        return f"{average['title']}: not given, {', '.join(average['absent'])} absent"
    partial = f"; not on GLUE's rows: {', '.join(average['partial'])}" if average["partial"] else ""
    return f"{average['title']}: {average['average']:.4f}{partial}"


def _print_plan(plans: "list[TaskPlan]", recipe: "FinetuneRecipe") -> None:
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
