"""``finetune``: the separate stage. A model, a recipe of tasks and a grid -> a table of scores with intervals."""

import argparse
from pathlib import Path
from typing import Any

HELP = "fine-tune an encoder on GLUE or own data over a grid, and print the scores"
DESCRIPTION = """\
Fine-tune a Hugging Face encoder on every task x learning rate x batch size x seed of RECIPE, and print one score per
task: that of the best cell on dev, averaged over seeds. Works for any encoder saved with safetensors and a tokenizer.

The same command again continues where it stopped; finished cells are never done twice, and a changed recipe or model
never reuses old ones. With N processes (launch.sh --procs N) the cells are spread over them; the scores are the same.
"""
EPILOG = """\
examples:
  finetune recipes/glue.yaml --model runs/x/export
  finetune recipes/glue.yaml seeds=[0,1,2] grid.learning_rates=[3e-5] grid.batch_sizes=[32] --model runs/x/export
  finetune my_task.yaml --model DIR         with my_task.yaml:
      kind: finetune
      tasks: [{name: reviews, train: train.tsv, dev: dev.jsonl, text: body, label: stars}]

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


def run(args: argparse.Namespace) -> int:
    """Run the grid and print the table."""
    from kd_megatron import config, dist
    from kd_megatron.finetune.grid import SUMMARY, run_grid
    from kd_megatron.launch.preflight import compare_nodes
    from kd_megatron.schema import FinetuneRecipe

    recipe = config.load(args.recipe, FinetuneRecipe, args.overrides)
    output = args.output or default_output(args.model)
    with dist.joined():
        compare_nodes([args.recipe, *args.overrides])
        summary = run_grid(args.model, recipe, output)
        if dist.is_main():
            _print_table(summary)
            print(f"written to {output / SUMMARY}")
    return 0


def default_output(model: Path) -> Path:
    """``runs/finetune-NAME``: a model in RUN/export is called after its run, one of a study after arm and seed."""
    path = model.resolve()
    if path.name == "export":
        path = path.parent
    name = f"{path.parent.name}-{path.name}" if path.name.startswith("seed_") else path.name
    return Path("runs") / f"finetune-{name}"


def _print_table(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from kd_megatron.finetune.summary import t_interval

    table = Table(title=f"{summary['model']} ({summary['precision']})", title_justify="left")
    for column in ("task", "metric", "train, dev", "lr, batch", "n", "mean", "95 % interval"):
        table.add_column(column, overflow="fold")
    for name, task in summary["tasks"].items():
        scores, best = list(task["scores"].values()), task["best_cell"]
        interval = t_interval(scores)
        table.add_row(
            name + ("*" if task["note"] else ""),
            task["metric"],
            f"{task['num_train']}, {task['num_dev']}",
            f"{best['learning_rate']:g}, {best['batch_size']}",
            str(len(scores)),
            f"{task['mean']:.4f}",
            f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "needs 2 seeds",
        )
    table.add_section()
    table.add_row("average", "", "", "", "", f"{summary['average']:.4f}", "")
    console = Console(highlight=False)
    console.print(table)
    for name, task in summary["tasks"].items():
        if task["note"]:
            console.print(f"* {name}: {task['note']}", soft_wrap=True)
    console.print(
        f"Each score is that of the {summary['selection']}, over n seeds; intervals are Student's t.", soft_wrap=True
    )
