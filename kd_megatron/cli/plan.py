"""What a study will cost, before anything is spent. Needs no data and no GPU; takes seconds.

Shows the parameters of student and teacher, the FLOPs per token of each arm by student, teacher, heads and loss, the
tokens and steps that the budget buys each arm, how often the data repeats, what the whole study takes, and the memory
per process for each ZeRO stage. With --hardware or --calibration, hours become tokens and tokens hours.
With --as-published: what the published study's own code computes instead, and the token counts that follow.

  kd-megatron plan recipes/paper_6l.yaml --hardware h100
  kd-megatron plan recipes/paper_6l.yaml --as-published
  kd-megatron plan recipes/paper_6l.yaml budget.flops=7.4e17 --procs 8 --hardware a100 --json plan.json
"""

import argparse

HELP = "what a study will cost, before it runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recipe", help="a study recipe, such as recipes/paper_6l.yaml")
    parser.add_argument("overrides", nargs="*", help="dotted keys of the recipe, such as budget.flops=1e18")
    parser.add_argument("--procs", type=int, default=1, metavar="N", help="processes to plan for (default 1)")
    parser.add_argument("--hardware", metavar="GPU", help="whose data sheet gives the speed, such as h100")
    parser.add_argument(
        "--efficiency", type=float, metavar="SHARE", help="of the data sheet's rate that training reaches (default 0.4)"
    )
    parser.add_argument("--calibration", metavar="FILE", help="tokens per second measured by the command calibrate")
    parser.add_argument(
        "--as-published", action="store_true", help="the published study's code, its token counts, and the levers here"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the whole plan to FILE")


def run(args: argparse.Namespace) -> int:
    """Compute the plan and print it to stdout."""
    from pathlib import Path
    from typing import Any

    from rich.console import Console

    from kd_megatron.cli import checkout
    from kd_megatron.errors import RecipeError
    from kd_megatron.files import records
    from kd_megatron.machine.gpus import named_gpu
    from kd_megatron.planner import plan, plan_view
    from kd_megatron.recipe import StudyRecipe, config
    from kd_megatron.recipe.paths import require_place

    if args.procs < 1:
        raise RecipeError(given=f"--procs {args.procs}", expected="1 or more", fix="give the number of processes")
    if args.json:
        require_place(Path(args.json))
    recipe, console = config.load(args.recipe, StudyRecipe, args.overrides), Console(soft_wrap=False)
    written: dict[str, Any]
    if args.as_published:
        _refuse_other_speeds(args)
        published_code = checkout.module("published_study.published_code")
        modelled = published_code.as_published(recipe, named_gpu(args.hardware) if args.hardware else None)
        checkout.module("published_study.published_code_view").show(modelled, console)
        written = modelled.to_dict()
    else:
        calibration = Path(args.calibration) if args.calibration else None
        planned = plan.plan(recipe, args.procs, plan.Hardware(args.hardware, args.efficiency, calibration))
        plan_view.show(planned, console)
        written = planned.to_dict()
    if args.json:
        records.write_json(Path(args.json), written)
    return 0


def _refuse_other_speeds(args: argparse.Namespace) -> None:
    from kd_megatron.errors import RecipeError

    if args.calibration or args.efficiency is not None:
        raise RecipeError(
            given="--as-published with --calibration or --efficiency",
            expected="the study's own speed, which follows from a number that it reports",
            fix="leave the other option out; --hardware may name the GPU to assume",
        )
