"""`bench step`: whole training steps of every arm of a recipe, in turn."""

import argparse

TAKES = {"file", "overrides", "steps", "json"}
NEEDS_FILE = "a study recipe, such as recipes/debug.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its own options."""
    group = parser.add_argument_group("bench step")
    group.add_argument("--steps", type=int, help="rounds; every arm runs one step in each (default: 20)")


def run(args: argparse.Namespace) -> int:
    """Time the arms of a recipe."""
    from pathlib import Path

    from rich.table import Table

    from kd_megatron import config, dist, logs
    from kd_megatron.data.loader import Loader
    from kd_megatron.errors import RecipeError
    from kd_megatron.hardware import resolve_precision
    from kd_megatron.kernels.bench.rows import as_json
    from kd_megatron.schema import StudyRecipe
    from kd_megatron.study import runner, throughput
    from kd_megatron.training.fingerprint import fingerprint

    num_steps = 20 if args.steps is None else args.steps
    if num_steps < 1:
        raise RecipeError(given=f"--steps {num_steps}", expected="at least 1")
    recipe = config.load(args.file, StudyRecipe, args.overrides)
    root = Path("runs") / recipe.name
    logs.quiet_libraries()
    dist.initialise()
    try:
        recipe = resolve_precision(recipe)
        runner.prepare_inputs(recipe, root)
        teacher = runner.teacher_path(recipe, root)
        rows = throughput.time_arms(recipe, num_steps, teacher)
        facts = fingerprint(Loader(recipe.data, recipe.seeds[0]), teacher)
    finally:
        dist.shut_down()
    first = rows[0]
    table = Table(title=f"{recipe.name}, {first.shape}, {first.dtype}: one optimizer step, {num_steps} rounds")
    for column in ("arm", "backend", "p50 ms", "p20 to p80", "tokens/s", f"relative to {first.ratio_to}"):
        table.add_column(column, justify="left" if column in ("arm", "backend") else "right")
    for row in rows:
        spread, speed = f"{row.p20_ms:,.0f} to {row.p80_ms:,.0f}", f"{row.tokens_per_second:,.0f}"
        arm = row.name.removeprefix("step/")
        table.add_row(arm, row.backend, f"{row.p50_ms:,.0f}", spread, speed, f"{row.ratio:.2f}")
    if dist.is_main():
        logs.console.print(table)
        if args.json:
            logs.write_json(Path(args.json), as_json(rows, facts))
    return 0
