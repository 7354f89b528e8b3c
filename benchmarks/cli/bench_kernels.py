"""`bench kernels`: the loss kernels, checked and then timed."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.kernels import suite
    from benchmarks.kernels.case import Case
    from benchmarks.rows import Row

TAKES = {"shapes", "kernel", "dtype", "seconds", "json", "compare", "tolerance", "markdown", "plot"}
NEEDS_FILE = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its own options."""
    group = parser.add_argument_group("bench kernels")
    group.add_argument("--shapes", metavar="SET", help="small, paper or tiny (default: small; paper on a GPU)")
    group.add_argument("--kernel", metavar="NAME", help="this kernel alone")
    group.add_argument("--dtype", choices=["fp32", "bf16"], help="of the inputs (default: fp32; bf16 on a GPU)")
    group.add_argument("--seconds", type=float, help="time for one shape; 5 rounds it gets anyway (default: 30)")


def run(args: argparse.Namespace) -> int:
    """Check and time the kernels."""
    import os

    import torch

    from benchmarks.cli import bench_output
    from benchmarks.kernels import shapes, suite
    from benchmarks.kernels.correctness import DTYPES
    from benchmarks.rows import as_json
    from kd_megatron.errors import RecipeError
    from kd_megatron.machine import facts

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise RecipeError(given=f"bench kernels with {os.environ['WORLD_SIZE']} processes", expected="one process")
    source = args.json or "the last run"
    bench_output.check_outputs(args, source)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    to_check, to_time = shapes.chosen(args.shapes, args.kernel, device)
    dtype = DTYPES[args.dtype or ("bf16" if device.type == "cuda" else "fp32")]
    plan = suite.SuitePlan(dtype, device, seconds=30.0 if args.seconds is None else args.seconds)
    rows = _measure(to_check, to_time, plan)
    record = as_json(rows, facts.facts(("torch", "triton", "liger-kernel")))
    bench_output.present(args, source, rows, record)
    bench_output.finish(args, rows, record)
    return 0


def _measure(to_check: "list[Case]", to_time: "list[Case]", plan: "suite.SuitePlan") -> "list[Row]":
    """Check all, then time, with a progress bar; say what was left out."""
    from benchmarks.kernels import suite
    from benchmarks.kernels.correctness import refuse_red
    from kd_megatron.console import logs

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
