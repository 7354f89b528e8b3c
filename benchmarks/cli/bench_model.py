"""`bench model`: a step of every arm of a recipe on a GPU that is not there, modelled and not measured."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

TAKES = {"file", "overrides", "json", "arms", "device", "micro_batch", "top"}
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

    from benchmarks.cli.bench_step import with_arms
    from benchmarks.model import model_record
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
    if args.json:
        require_place(Path(args.json))
    micro_batch = [] if args.micro_batch is None else [f"training.micro_batch_size={args.micro_batch}"]
    recipe = with_arms(config.load(args.file, StudyRecipe, [*args.overrides, *micro_batch]), args.arms)
    logs.quiet_libraries()
    with dist.joined():
        arms = model_arms(recipe, gpu)
    record = model_record.as_record(arms, reference_arm(recipe), gpu, recipe, top)
    _show(record)
    if args.json:
        records.write_json(Path(args.json), record)
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

    page, batch = bench_output.console(), record["batch"]
    of = f"modelled, not measured: {record['device']}, {batch['precision']}, {batch['sequences']} sequences of "
    of += f"{batch['length']} a step, {batch['micro_batch_size']} at a time"
    page.print(_table(f"{record['recipe']}, {of}", *_arms(record["arms"])))
    page.print(f"Modelled MFU differs by {100 * record['spread_of_mfu']:.1f} points over the arms.\n", highlight=False)
    page.print(_table("where the modelled milliseconds go", *_parts(record["arms"])))
    for arm in record["arms"]:
        if arm["top"]:
            page.print(_table(f"{arm['arm']}: the operations that take most, modelled", *_top(arm["top"]), num_words=4))
    for line in record["assumptions"]:
        page.print(f"- {line}", highlight=False)


def _arms(arms: "Sequence[dict[str, Any]]") -> tuple[list[str], list[list[str]]]:
    heads = ["arm", "ms", "MFU", "FLOP bound", "times bound", "speed", "at equal MFU", "teacher ms", "launches"]
    return heads, [
        [
            arm["arm"],
            f"{arm['modelled_ms']:.1f}",
            f"{arm['mfu']:.1%}",
            f"{arm['flop_bound_ms']:.1f}",
            f"{arm['times_bound']:.2f}",
            f"{arm['speed']:.2f}x",
            f"{arm['speed_at_equal_mfu']:.2f}x",
            f"{arm['teacher_ms']:.1f}",
            f"{arm['launches']:,}",
        ]
        for arm in arms
    ]


def _parts(arms: "Sequence[dict[str, Any]]") -> tuple[list[str], list[list[str]]]:
    parts = dict.fromkeys(part for arm in arms for part in arm["parts_ms"])
    lines = [[part, *(f"{arm['parts_ms'].get(part, 0.0):.1f}" for arm in arms)] for part in parts]
    return ["part", *(arm["arm"] for arm in arms)], lines


def _top(operations: "Sequence[dict[str, Any]]") -> tuple[list[str], list[list[str]]]:
    heads = ["part", "operation", "of", "limit", "times", "ms"]
    return heads, [
        [
            *(str(one[name]) for name in ("part", "operation", "shape", "limit")),
            f"{one['times']:,}",
            f"{one['modelled_ms']:.2f}",
        ]
        for one in operations
    ]


def _table(title: str, heads: list[str], lines: list[list[str]], num_words: int = 1) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, head in enumerate(heads):
        table.add_column(head, justify="left" if index < num_words else "right")
    for line in lines:
        table.add_row(*line)
    return table
