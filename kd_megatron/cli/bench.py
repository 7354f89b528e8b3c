"""Measure, relative to something measured in the same run; absolute times depend on what else the machine does.

step RECIPE      whole training steps of every arm, in turn: what each objective costs in tokens per second
kernels          every backend of the loss kernels: checked against float64 first, then time and peak memory beside
                 eager PyTorch and torch.compile; minutes
show FILE        the rows that --json wrote, as a table, a page or a figure

kd-megatron bench step recipes/debug.yaml
kd-megatron bench kernels --json benchmarks/results/kernels_cpu.json
kd-megatron bench kernels --kernel score_mse --shapes tiny
kd-megatron bench show benchmarks/results/kernels_cpu.json --markdown docs/performance.md --plot kernels.png
"""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kd_megatron.kernels.bench import suite
    from kd_megatron.kernels.bench.case import Case
    from kd_megatron.kernels.bench.rows import Row

HELP = "throughput of every arm, and the kernels beside eager and torch.compile"
# Positionals and options that only some of the three take.
TAKES = {
    "step": {"file", "overrides", "steps", "json"},
    "kernels": {"shapes", "kernel", "dtype", "seconds", "json", "markdown", "plot"},
    "show": {"file", "markdown", "plot"},
}
MIN_WIDTHS = (13, 6, 14, 6, 8, 7, 9)  # of the columns of figures, so that the tables of all shapes line up
NEEDS_FILE = {"step": "a study recipe, such as recipes/debug.yaml", "show": "a file that --json wrote"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("what", choices=list(TAKES), help="what to measure or show")
    parser.add_argument("file", nargs="?", help="step: a study recipe; show: a file that --json wrote")
    parser.add_argument("overrides", nargs="*", help="step: dotted keys of the recipe")
    parser.add_argument("--json", metavar="FILE", help="also write the rows to FILE, with date, commit and versions")
    step = parser.add_argument_group("bench step")
    step.add_argument("--steps", type=int, help="rounds; every arm runs one step in each (default: 20)")
    kernels = parser.add_argument_group("bench kernels")
    kernels.add_argument("--shapes", metavar="SET", help="small, paper or tiny (default: small; paper on a GPU)")
    kernels.add_argument("--kernel", metavar="NAME", help="this kernel alone")
    kernels.add_argument("--dtype", choices=["fp32", "bf16"], help="of the inputs (default: fp32; bf16 on a GPU)")
    kernels.add_argument("--seconds", type=float, help="time for one shape; 5 rounds it gets anyway (default: 30)")
    show = parser.add_argument_group("bench kernels, bench show")
    show.add_argument(
        "--markdown", metavar="PAGE", help="put the table into PAGE, at the line that names the JSON file"
    )
    show.add_argument("--plot", metavar="FILE", help="draw speed and peak memory into FILE (.png, .pdf, .svg)")


def run(args: argparse.Namespace) -> int:
    """Measure and print the table."""
    from kd_megatron.errors import RecipeError

    for name, value in vars(args).items():
        if value and name not in TAKES[args.what] and any(name in taken for taken in TAKES.values()):
            raise RecipeError(given=f"bench {args.what} takes no {name}: {value}", fix="see bench --help")
    if args.what in NEEDS_FILE and not args.file:
        raise RecipeError(given=f"bench {args.what} without a file", expected=NEEDS_FILE[args.what])
    return {"step": run_step, "kernels": run_kernels, "show": run_show}[args.what](args)


def run_step(args: argparse.Namespace) -> int:
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


def run_kernels(args: argparse.Namespace) -> int:
    """Check and time the kernels."""
    import os
    from pathlib import Path

    import torch

    from kd_megatron import logs, machine
    from kd_megatron.errors import RecipeError
    from kd_megatron.kernels.bench import shapes, suite
    from kd_megatron.kernels.bench.correctness import DTYPES
    from kd_megatron.kernels.bench.rows import as_json

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise RecipeError(given=f"bench kernels with {os.environ['WORLD_SIZE']} processes", expected="one process")
    source = args.json or "the last run"
    _check_outputs(args, source)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    to_check, to_time = shapes.chosen(args.shapes, args.kernel, device)
    dtype = DTYPES[args.dtype or ("bf16" if device.type == "cuda" else "fp32")]
    plan = suite.Plan(dtype, device, seconds=30.0 if args.seconds is None else args.seconds)
    rows = _measure(to_check, to_time, plan)
    record = as_json(rows, machine.facts(("torch", "triton", "liger-kernel")))
    if args.json:
        logs.write_json(Path(args.json), record)
    _present(args, source, rows, record)
    return 0


def _measure(to_check: "list[Case]", to_time: "list[Case]", plan: "suite.Plan") -> "list[Row]":
    """Check all, then time, with a progress bar; say what was left out."""
    from kd_megatron import logs
    from kd_megatron.kernels.bench import suite
    from kd_megatron.kernels.bench.correctness import refuse_red

    rows: list[Row] = []
    left_out: list[suite.LeftOut] = []
    with logs.progress_bar("shapes") as bar:
        task = bar.add_task("checking", total=len(to_check) + len(to_time), note="")
        for case in to_check:
            bar.update(task, note=f"{case.name} {case.shape}")
            refuse_red(suite.check_case(case, plan))
            bar.advance(task)
        for case in to_time:
            bar.update(task, description="timing", note=f"{case.name} {case.shape}")
            suite.measure(case, plan, rows, left_out)
            bar.advance(task)
    for reason in left_out:
        logs.say(str(reason))
    return rows


def run_show(args: argparse.Namespace) -> int:
    """Show recorded rows."""
    from pathlib import Path

    from kd_megatron.study import performance

    rows, record = performance.read(Path(args.file))
    _check_outputs(args, args.file)
    _present(args, args.file, rows, record)
    return 0


def _check_outputs(args: argparse.Namespace, source: str) -> None:
    """Refuse now what could not be written in the end."""
    from pathlib import Path

    from kd_megatron.errors import RecipeError
    from kd_megatron.study import performance

    for name in (args.json, args.markdown, args.plot):
        if name:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
    if args.markdown:
        performance.check_page(Path(args.markdown), source)
    if args.plot and Path(args.plot).suffix not in performance.FIGURE_ENDINGS:
        raise RecipeError(
            given=f"--plot {args.plot}",
            expected=f"a name that ends with one of {', '.join(performance.FIGURE_ENDINGS)}",
        )


def _present(args: argparse.Namespace, source: str, rows: "Sequence[Row]", record: dict[str, Any]) -> None:
    """The table on the console; on a page and as a figure where asked for."""
    from pathlib import Path

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from kd_megatron.kernels.bench.rows import COLUMNS, NUM_PLACE_COLUMNS, cells
    from kd_megatron.study import performance

    console = Console()
    places = list(dict.fromkeys((row.name, row.shape, row.dtype) for row in rows))
    for place in places:
        table = Table(title=" ".join(place), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for index, column in enumerate(COLUMNS[NUM_PLACE_COLUMNS:]):
            table.add_column(column, min_width=MIN_WIDTHS[index], justify="right" if index else "left")
        for row in rows:
            if (row.name, row.shape, row.dtype) == place:
                table.add_row(*cells(row, rows)[NUM_PLACE_COLUMNS:])
        console.print(table)
    console.print(f"Forward and backward. {performance.describe(record)}", highlight=False)
    if args.markdown:
        performance.fill_page(Path(args.markdown), source, rows, record)
    if args.plot:
        performance.draw(rows, Path(args.plot))
