"""`bench model`: a step of every arm of a recipe on a GPU that is not there, modelled and not measured."""

import argparse
from typing import Any

TAKES = {"file", "overrides", "json", "markdown", "arms", "device", "micro_batch", "top"}
NEEDS_FILE = "a study recipe, such as recipes/paper_6l.yaml"
DEFAULT_TOP = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its own options."""
    group = parser.add_argument_group("bench model")
    group.add_argument("--device", metavar="GPU", help="h200, h100, a100 or b200 (default: h200)")
    group.add_argument("--micro-batch", type=int, metavar="SIZE", help="sequences of a micro-batch, for every arm")
    group.add_argument("--top", type=int, metavar="N", help=f"operations to list for each arm (default: {DEFAULT_TOP})")


def run(args: argparse.Namespace) -> int:
    """Model the arms of a recipe."""
    from pathlib import Path

    from benchmarks import pages
    from benchmarks.cli.bench_step import with_arms
    from benchmarks.model import model_page, model_record
    from benchmarks.model.modelled_arms import model_arms
    from benchmarks.model.rates import modelled_gpu
    from benchmarks.steps.throughput import reference_arm
    from kd_megatron.console import logs
    from kd_megatron.files import records
    from kd_megatron.ranks import dist
    from kd_megatron.recipe import StudyRecipe, config
    from kd_megatron.recipe.paths import require_place

    top = DEFAULT_TOP if args.top is None else args.top
    _check(args, top)
    gpu = modelled_gpu(args.device or "h200")
    for name in (args.json, args.markdown):
        if name:
            require_place(Path(name))
    start = model_page.start_of(args.json or "the last run")
    if args.markdown:
        pages.check_place(Path(args.markdown), start)
    micro_batch = [] if args.micro_batch is None else [f"training.micro_batch_size={args.micro_batch}"]
    recipe = with_arms(config.load(args.file, StudyRecipe, [*args.overrides, *micro_batch]), args.arms)
    logs.quiet_libraries()
    with dist.joined():
        arms = model_arms(recipe, gpu)
    record = model_record.as_record(arms, reference_arm(recipe), gpu, recipe, top)
    _show(record)
    if args.json:
        records.write_json(Path(args.json), record)
    if args.markdown:
        pages.fill_place(Path(args.markdown), start, model_page.render(record))
    return 0


def _check(args: argparse.Namespace, top: int) -> None:
    import os

    from kd_megatron.errors import RecipeError

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise RecipeError(given=f"bench model with {os.environ['WORLD_SIZE']} processes", expected="one process")
    if top < 0:
        raise RecipeError(given=f"--top {top}", expected="at least 0")
    if args.micro_batch is not None and args.micro_batch < 1:
        raise RecipeError(given=f"--micro-batch {args.micro_batch}", expected="at least 1")


def _show(record: dict[str, Any]) -> None:
    """Arms, where their milliseconds go, their largest operations, and what all of it rests on."""
    from benchmarks.cli import bench_output
    from benchmarks.model import model_page

    page = bench_output.console()
    page.print(_table(model_page.title(record), *model_page.arms(record)))
    page.print(f"{model_page.spread(record)}\n", highlight=False)
    page.print(_table("where the modelled milliseconds go", *model_page.parts(record)))
    for arm in record["arms"]:
        if arm["top"]:
            title = f"{arm['arm']}: the operations that take most, modelled"
            page.print(_table(title, *model_page.top(arm), num_words=4))
    for line in record["assumptions"]:
        page.print(f"- {line}", highlight=False)


def _table(title: str, heads: list[str], lines: list[list[str]], num_words: int = 1) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, head in enumerate(heads):
        table.add_column(head, justify="left" if index < num_words else "right")
    for line in lines:
        table.add_row(*line)
    return table
