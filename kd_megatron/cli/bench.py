"""Time whole training steps of every arm of a recipe, in turn, and print what each objective costs.

The last column is the arm's tokens per second relative to the first arm's, step by step in the same run: quote that,
as absolute times depend on what else the machine does. (Kernel benchmarks will follow.)

  kd-megatron bench step recipes/debug.yaml
  kd-megatron bench step recipes/wiki_small.yaml --steps 10 --json benchmarks/results/step.json
"""

import argparse

HELP = "throughput of every arm, and the KD tax"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("what", choices=["step"], help="what to time: whole training steps")
    parser.add_argument("recipe", help="a study recipe, such as recipes/debug.yaml")
    parser.add_argument("overrides", nargs="*", help="dotted keys of the recipe")
    parser.add_argument("--steps", type=int, default=20, help="rounds; every arm runs one step in each (default: 20)")
    parser.add_argument("--json", metavar="FILE", help="also write the rows to FILE, with date, commit and versions")


def run(args: argparse.Namespace) -> int:
    """Time the arms and print the table."""
    from pathlib import Path

    from rich.table import Table

    from kd_megatron import config, dist, logs
    from kd_megatron.data.loader import Loader
    from kd_megatron.errors import RecipeError
    from kd_megatron.hardware import resolve_precision
    from kd_megatron.schema import StudyRecipe
    from kd_megatron.study import runner, throughput
    from kd_megatron.training.fingerprint import fingerprint

    if args.steps < 1:
        raise RecipeError(given=f"--steps {args.steps}", expected="at least 1")
    recipe = config.load(args.recipe, StudyRecipe, args.overrides)
    root = Path("runs") / recipe.name
    logs.quiet_libraries()
    dist.initialise()
    try:
        recipe = resolve_precision(recipe)
        runner.prepare_inputs(recipe, root)
        teacher = runner.teacher_path(recipe, root)
        rows = throughput.time_arms(recipe, args.steps, teacher)
        facts = fingerprint(Loader(recipe.data, recipe.seeds[0]), teacher)
    finally:
        dist.shut_down()
    table = Table(title=f"{recipe.name}: one optimizer step, {args.steps} rounds")
    for column in (
        "step",
        "shape",
        "dtype",
        "p20 ms",
        "p50 ms",
        "p80 ms",
        "tokens/s",
        f"relative to {rows[0].ratio_to}",
    ):
        table.add_column(column, justify="left" if column in ("step", "shape", "dtype") else "right")
    for row in rows:
        figures = (f"{row.p20_ms:,.1f}", f"{row.p50_ms:,.1f}", f"{row.p80_ms:,.1f}", f"{row.tokens_per_second:,.0f}")
        table.add_row(row.name, row.shape, row.dtype, *figures, f"{row.ratio:.2f}")
    if dist.is_main():
        logs.console.print(table)
        if args.json:
            logs.write_json(Path(args.json), throughput.as_json(rows, facts))
    return 0
