"""Run a study's tuning trials alone: data, teacher, and as many trials for every arm at the same small budget.

The recipe's section `tuning` says what is tried. What was best of each arm is kept in DIRECTORY/tuning.json, where
`study` finds it: it does the same pieces first and goes on with the chosen settings. Resumes where it stopped.

  kd-megatron sweep recipes/paper_6l.yaml
"""

import argparse

HELP = "a study's tuning trials alone: as many for every arm, at the same small budget"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recipe", help="a study recipe with a section tuning, such as recipes/paper_6l.yaml")
    parser.add_argument("overrides", nargs="*", help="dotted keys of the recipe, such as tuning.budget.hours=0.1")
    parser.add_argument("--output", metavar="DIR", help="where to keep the study (default: studies/NAME)")


def run(args: argparse.Namespace) -> int:
    """Run or continue the trials on all ranks, and print all of them."""
    from pathlib import Path

    from kd_megatron.analysis import results
    from kd_megatron.engine.compiling import resolve_compile
    from kd_megatron.errors import RecipeError
    from kd_megatron.launch.preflight import compare_nodes
    from kd_megatron.machine.precision import resolve_precision
    from kd_megatron.ranks import dist
    from kd_megatron.recipe import StudyRecipe, config
    from kd_megatron.report.study import tuning_tables
    from kd_megatron.study import begin, execute, runner, taking
    from kd_megatron.study.layout import RECIPE_FILE

    recipe = config.load(args.recipe, StudyRecipe, args.overrides)
    if recipe.tuning is None:
        raise RecipeError(
            given=f"{args.recipe} has no section tuning",
            expected="what is to be tried: tuning with learning_rates and a budget",
            fix="add the section (docs/study.md), or run the study without trials",
        )
    directory = Path(args.output or recipe.output or f"studies/{recipe.name}")
    with dist.joined():
        compare_nodes([args.recipe, *args.overrides])
        recipe = resolve_compile(resolve_precision(recipe), directory / RECIPE_FILE)
        begin.begin(recipe, directory)
        with taking.alone_if_timed(recipe, directory):
            execute.run_pieces(runner.preparing_pieces(recipe, directory), directory)
        if dist.is_main():
            tuning_tables.show(results.load(directory))
    return 0
