"""What a study will cost, before anything is spent. Needs no data and no GPU; takes seconds.

Shows the parameters of student and teacher, the FLOPs per token of each arm and the teacher's share of them, the tokens
and steps that the budget buys each arm, how often the data repeats, and the memory per process for each ZeRO stage.

  kd-megatron plan recipes/paper_6l.yaml
  kd-megatron plan recipes/paper_6l.yaml budget.flops=7.4e17 --procs 8
"""

import argparse

HELP = "what a study will cost, before it runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recipe", help="a study recipe, such as recipes/paper_6l.yaml")
    parser.add_argument("overrides", nargs="*", help="dotted keys of the recipe, such as budget.flops=1e18")
    parser.add_argument("--procs", type=int, default=1, metavar="N", help="processes to plan memory for (default 1)")


def run(args: argparse.Namespace) -> int:
    """Compute the plan and print it to stdout."""
    from rich.console import Console

    from kd_megatron import config
    from kd_megatron.errors import RecipeError
    from kd_megatron.schema import StudyRecipe
    from kd_megatron.study import plan

    if args.procs < 1:
        raise RecipeError(given=f"--procs {args.procs}", expected="1 or more", fix="give the number of processes")
    recipe = config.load(args.recipe, StudyRecipe, args.overrides)
    plan.show(plan.plan(recipe, num_processes=args.procs), Console(soft_wrap=False))
    return 0
