"""Run a whole study: data, teacher, every arm with every seed, fine-tuning, report.

Run the same command again after a stop of any kind: finished pieces are skipped, the interrupted one resumes.
More seeds or arms may be added to the recipe later; what was finished is kept. The last line is the report's path.

  kd-megatron study recipes/demo.yaml
  kd-megatron study recipes/demo.yaml seeds=[0,1,2] name=demo_3_seeds
  kd-megatron study recipes/demo.yaml arms.minilm.num_relation_heads=4 --redo minilm
  kd-megatron study recipes/wiki_small.yaml budget.flops=2e14 --output studies/wiki_twice_the_budget
  kd-megatron study recipes/proxy.yaml --workers 2      two processes, each with half the cores, share its runs
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

HELP = "every arm x seed -> fine-tuning -> report; resumes where it stopped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recipe", help="a study recipe, such as recipes/demo.yaml")
    parser.add_argument("overrides", nargs="*", help="dotted keys of the recipe, such as budget.hours=0.1")
    parser.add_argument("--output", metavar="DIR", help="where to keep the study (default: studies/NAME)")
    parser.add_argument(
        "--redo",
        metavar="ARMS",
        help="after an edit that made runs stale: move those of these arms (such as minilm,tinybert; finetune: all "
        "fine-tunings) to DIR/stale and do them anew",
    )
    parser.add_argument(
        "--recalibrate",
        action="store_true",
        help="on another machine than the one a study with budget.calibrate began on, while nothing is trained yet",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="N processes side by side, each with its share of the cores and each at runs of its own: sooner than one "
        "process where runs are small (budgets in FLOPs or tokens; a study may also be started twice by hand)",
    )


def run(args: argparse.Namespace) -> int:
    """Run or continue the study on all ranks, and print the report's path."""
    if args.workers != 1:
        return _run_workers(args)
    from pathlib import Path

    from kd_megatron.engine.compiling import resolve_compile
    from kd_megatron.launch.preflight import compare_nodes
    from kd_megatron.machine.precision import resolve_precision
    from kd_megatron.ranks import dist
    from kd_megatron.recipe import StudyRecipe, config
    from kd_megatron.study.claim import recalibrate
    from kd_megatron.study.layout import RECIPE_FILE
    from kd_megatron.study.runner import run_study

    recipe = config.load(args.recipe, StudyRecipe, args.overrides)
    directory = Path(args.output or recipe.output or f"studies/{recipe.name}")
    with dist.joined():
        compare_nodes([args.recipe, *args.overrides])
        if args.recalibrate:
            recalibrate(directory)
        recipe = resolve_compile(resolve_precision(recipe), directory / RECIPE_FILE)
        run_study(recipe, directory, _report, args.redo.split(",") if args.redo else ())
        if dist.is_main():
            print(directory / "report" / "index.html")
    return 0


def _run_workers(args: argparse.Namespace) -> int:
    from kd_megatron.errors import RecipeError
    from kd_megatron.launch.workers import run_workers

    if args.workers < 1 or args.redo or args.recalibrate:
        raise RecipeError(
            given=f"--workers {args.workers}" + (" with --redo or --recalibrate" if args.workers > 0 else ""),
            expected="a number of at least 1, and nothing that is moved aside while others look",
            fix="run the command once without --workers, stop it when the first run begins, then add --workers",
        )
    output = ["--output", args.output] if args.output else []
    return run_workers(["study", args.recipe, *args.overrides, *output], args.workers)


def _report(directory: "Path") -> None:
    """Write the report; its libraries are imported here, on the rank that writes it and when there is one to write."""
    from kd_megatron.report.study.page import write_report

    write_report(directory)
