"""`bench step`: whole training steps of every arm of a recipe, in turn."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.rows import Row
    from kd_megatron.recipe import StudyRecipe

TAKES = {
    "file", "overrides", "json", "compare", "tolerance", "steps", "arms", "best_batch", "batches", "ladder", "peers",
    "peer_python",
}  # fmt: skip
NEEDS_FILE = "a study recipe, such as benchmarks/recipes/step_6x384.yaml"
BATCHES = "8,16,32,64"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its own options."""
    group = parser.add_argument_group("bench step")
    group.add_argument("--steps", type=int, help="rounds; every arm runs one step in each (default: 20)")
    group.add_argument("--arms", metavar="NAMES", help="these arms alone, such as scratch,minilm")
    group.add_argument("--batches", metavar="SIZES", help="time each arm at its fastest micro-batch size of these")
    group.add_argument("--best-batch", action="store_true", help=f"the same with {BATCHES}, as far as they divide")
    group.add_argument(
        "--ladder", action="store_true", help="instead, for each distilling arm: both models whole, then lever by lever"
    )
    group.add_argument("--peers", action="store_true", help="in the same rounds: Hugging Face's Trainer, bertdistiller")
    group.add_argument(
        "--peer-python",
        metavar="PYTHON",
        help="--peers by this interpreter; their pins differ from ours, so give them an environment of their own: "
        "python -m venv peers && peers/bin/pip install torch==2.13.0 bertdistiller==0.1.2",
    )


def run(args: argparse.Namespace) -> int:
    """Time the arms of a recipe."""
    from pathlib import Path

    from benchmarks.cli import bench_output
    from benchmarks.rows import as_json
    from benchmarks.steps import made_up_inputs
    from kd_megatron.console import logs
    from kd_megatron.data.loader import Loader
    from kd_megatron.engine.compiling import resolve_compile
    from kd_megatron.machine.precision import resolve_precision
    from kd_megatron.models.initialise import checkpoint_path
    from kd_megatron.ranks import dist
    from kd_megatron.recipe import StudyRecipe, config
    from kd_megatron.training.fingerprint import fingerprint

    num_steps = 20 if args.steps is None else args.steps
    _check(args, num_steps)
    bench_output.check_outputs(args, args.json or "the last run")
    recipe = with_arms(config.load(args.file, StudyRecipe, args.overrides), args.arms)
    logs.quiet_libraries()
    with (
        dist.joined(),
        made_up_inputs.inputs(resolve_precision(recipe), Path("runs") / recipe.name) as (recipe, teacher),
    ):
        recipe = resolve_compile(recipe)
        rows = _measure(args, recipe, num_steps, teacher)
        facts = fingerprint(Loader(recipe.data, recipe.seeds[0]), teacher, checkpoint_path(recipe.student.initialise))
    if dist.is_main():
        _show(rows, f"{recipe.name}, {rows[0].dtype}: one optimizer step, {num_steps} rounds")
        bench_output.finish(args, rows, as_json(rows, facts | {"timed": "Whole optimizer steps."}))
    return 0


def _check(args: argparse.Namespace, num_steps: int) -> None:
    """Refuse options that cannot be used before anything is built."""
    import os
    import shutil

    from kd_megatron.errors import RecipeError

    if num_steps < 1:
        raise RecipeError(given=f"--steps {num_steps}", expected="at least 1")
    args.peers = args.peers or args.peer_python is not None
    if args.peer_python and shutil.which(args.peer_python) is None:
        raise RecipeError(given=f"--peer-python {args.peer_python}: there is no such program", expected="a Python")
    if args.peers and os.environ.get("WORLD_SIZE", "1") != "1":
        raise RecipeError(given=f"--peers with {os.environ['WORLD_SIZE']} processes", expected="one process")
    if args.peers and args.ladder:
        raise RecipeError(given="--peers with --ladder", expected="one of them: a ladder compares an arm with itself")


def with_arms(recipe: "StudyRecipe", names: str | None) -> "StudyRecipe":
    """``recipe`` with the arms of a list such as ``"scratch,minilm"``, in the recipe's order; None is all."""
    from kd_megatron.errors import RecipeError, nearest

    chosen = list(recipe.arms) if names is None else names.split(",")
    for name in chosen:
        if name not in recipe.arms:
            raise RecipeError(given=f"--arms {names}: no arm {name!r}; {nearest(name, recipe.arms)}")
    return recipe.model_copy(update={"arms": {arm: raw for arm, raw in recipe.arms.items() if arm in chosen}})


def micro_batch_sizes(args: argparse.Namespace, global_batch_size: int, num_processes: int) -> list[int]:
    """The sizes of ``--batches`` or ``--best-batch``; none when neither is given."""
    from kd_megatron.errors import RecipeError

    try:
        sizes = [int(size) for size in (args.batches or BATCHES).split(",")]
    except ValueError:
        raise RecipeError(given=f"--batches {args.batches}", expected="whole numbers, such as 8,16,32") from None
    fitting = [size for size in sizes if size > 0 and global_batch_size % (size * num_processes) == 0]
    if args.batches and fitting != sizes:
        raise RecipeError(
            given=f"--batches {args.batches} with training.global_batch_size {global_batch_size}",
            expected=f"divisors of {global_batch_size // num_processes}, the sequences of one process",
            fix="leave the others out, or change training.global_batch_size",
        )
    return fitting if args.batches or args.best_batch else []


def _measure(args: argparse.Namespace, recipe: "StudyRecipe", num_steps: int, teacher: str | None) -> "list[Row]":
    from benchmarks.steps import peers, throughput
    from kd_megatron.ranks import dist

    sizes = micro_batch_sizes(args, recipe.training.global_batch_size, dist.world_size())
    if sizes:
        recipe = throughput.at_best_batch(recipe, sizes, teacher)
    if args.ladder:
        return throughput.time_ladder(recipe, num_steps, teacher)
    if not args.peers:
        return throughput.time_arms(recipe, num_steps, teacher)
    with peers.started(recipe, teacher, args.peer_python) as rivals:
        return throughput.time_arms(recipe, num_steps, teacher, rivals)


def _show(rows: "list[Row]", title: str) -> None:
    """One table of all rows."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from benchmarks.cli import bench_output

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("row", "backend", "shape"):
        table.add_column(column)
    for column in ("p50 ms", "p20 to p80", "tokens/s", "speed"):
        table.add_column(column, justify="right")
    table.add_column("relative to")
    has_mfu = any(row.mfu is not None for row in rows)
    if has_mfu:
        table.add_column("MFU", justify="right")
    for row in rows:
        spread, speed = f"{row.p20_ms:,.0f} to {row.p80_ms:,.0f}", f"{row.tokens_per_second:,.0f}"
        cells = [row.shape, f"{row.p50_ms:,.0f}", spread, speed, f"{row.ratio:.2f}x", row.ratio_to]
        cells += ["" if row.mfu is None else f"{row.mfu:.1%}"] * has_mfu
        table.add_row(row.name.removeprefix("step/"), row.backend, *cells)
    bench_output.console().print(table)
