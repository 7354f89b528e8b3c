"""Time every arm's training step in turn on this machine: what a budget in hours buys each of them.

Data and, where the study trains its own, the teacher are made first if they are not there. `study` does the same by
itself for a recipe with budget.calibrate, before it trains anything; this command only measures, for the planner.

  kd-megatron calibrate recipes/wiki_small.yaml budget.hours=0.1
  kd-megatron calibrate recipes/paper_6l.yaml --rounds 9 --json speeds.json
"""

import argparse

HELP = "time every arm's training step in turn: what a budget in hours buys on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recipe", help="a study recipe, such as recipes/demo.yaml")
    parser.add_argument("overrides", nargs="*", help="dotted keys of the recipe, such as budget.hours=0.1")
    parser.add_argument("--rounds", type=int, help="turns of every arm (default: budget.calibrate's, else 5)")
    parser.add_argument("--steps", type=int, help="training steps of a turn (default: budget.calibrate's, else 4)")
    parser.add_argument("--json", metavar="FILE", help="write the speeds there, as a study keeps them")
    parser.add_argument("--output", metavar="DIR", help="of the study, whose teacher is used (default: studies/NAME)")


def run(args: argparse.Namespace) -> int:
    """Measure on all ranks, and print the speeds to stdout."""
    from pathlib import Path

    from rich.console import Console

    from kd_megatron.engine.compiling import resolve_compile
    from kd_megatron.errors import disk_full_is_clear
    from kd_megatron.files.records import write_json
    from kd_megatron.launch.preflight import compare_nodes
    from kd_megatron.machine.precision import resolve_precision
    from kd_megatron.ranks import dist
    from kd_megatron.recipe import CalibrateRecipe, StudyRecipe, config
    from kd_megatron.recipe.paths import require_place
    from kd_megatron.study import calibration, fairness
    from kd_megatron.study.claim import claim_study
    from kd_megatron.study.layout import RECIPE_FILE
    from kd_megatron.study.piece import teacher_path
    from kd_megatron.study.prerequisites import prepare_inputs

    recipe = config.load(args.recipe, StudyRecipe, args.overrides)
    chosen = (recipe.budget.calibrate or CalibrateRecipe()).model_dump()
    chosen |= {key: getattr(args, key) for key in ("rounds", "steps") if getattr(args, key) is not None}
    calibrate = config.validate(CalibrateRecipe, chosen, where="--rounds and --steps")
    directory = Path(args.output or recipe.output or f"studies/{recipe.name}")
    fairness.check(recipe)
    if args.json:
        require_place(Path(args.json))
    with dist.joined():
        compare_nodes([args.recipe, *args.overrides])
        recipe = resolve_compile(resolve_precision(recipe), directory / RECIPE_FILE)
        if recipe.teacher and recipe.teacher.train:
            claim_study(recipe, directory)  # the teacher is trained in there
        prepare_inputs(recipe, directory)
        found = calibration.measure(recipe, calibrate, teacher_path(recipe, directory))
        if dist.is_main():
            if args.json:
                with disk_full_is_clear(args.json):
                    write_json(Path(args.json), found)
            Console(soft_wrap=False).print(calibration.table(recipe, found))
    return 0
