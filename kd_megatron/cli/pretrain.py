"""Train one arm of a study at one seed.

The run is left in runs/STUDY/ARM/seed_K: resolved recipe, fingerprint, metrics, ledger, summary, checkpoints, and the
student in Hugging Face format under export/. Run the same command again after a stop: it goes on from the last
checkpoint. A study whose teacher is trained first trains it into runs/STUDY/teacher.

A recipe with budget.calibrate is run by the clock here: steps are fixed for the arms of a study, beside each other.

  kd-megatron pretrain recipes/debug.yaml --arm minilm
  kd-megatron pretrain recipes/paper_6l.yaml --arm scratch --seed 1 budget.hours=0.5
  kd-megatron pretrain recipes/wiki_small.yaml --arm minilm budget.tokens=1e6 --output runs/minilm_1m
"""

import argparse

HELP = "one arm of a study"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recipe", help="a study recipe, such as recipes/debug.yaml")
    parser.add_argument("overrides", nargs="*", help="dotted keys of the recipe, such as budget.hours=0.1")
    parser.add_argument("--arm", required=True, help="which arm of the recipe")
    parser.add_argument("--seed", type=int, help="of weights, data order and masks (default: the recipe's first)")
    parser.add_argument("--output", metavar="DIR", help="where to keep the run (default: runs/STUDY/ARM/seed_K)")


def run(args: argparse.Namespace) -> int:
    """Train or resume on all ranks, and print the export's path."""
    from pathlib import Path

    from kd_megatron.console import logs
    from kd_megatron.engine.compiling import resolve_compile
    from kd_megatron.errors import RecipeError, nearest
    from kd_megatron.launch.preflight import compare_nodes
    from kd_megatron.machine.precision import resolve_precision
    from kd_megatron.ranks import dist
    from kd_megatron.recipe import LARGEST_SEED, StudyRecipe, config
    from kd_megatron.study.effective import run_recipe
    from kd_megatron.study.piece import teacher_path
    from kd_megatron.study.prerequisites import prepare_inputs
    from kd_megatron.training.run import RECIPE, pretrain

    recipe = config.load(args.recipe, StudyRecipe, args.overrides)
    if args.arm not in recipe.arms:
        raise RecipeError(given=f"--arm {args.arm!r}: {nearest(args.arm, recipe.arms)}")
    seed = recipe.seeds[0] if args.seed is None else args.seed
    if not 0 <= seed <= LARGEST_SEED:
        raise RecipeError(given=f"--seed {seed}", expected=f"a whole number from 0 to {LARGEST_SEED}")
    root = Path("runs") / recipe.name
    directory = Path(args.output) if args.output else root / args.arm / f"seed_{seed}"
    with dist.joined():
        compare_nodes([args.recipe, *args.overrides])
        recipe = resolve_compile(resolve_precision(recipe), directory / RECIPE)
        prepare_inputs(recipe, root)
        if recipe.budget.calibrate is not None:
            logs.say("budget.calibrate is of studies: this run alone is ended by the clock, and noise counts")
        study = run_recipe(recipe, args.arm, seed)
        pretrain(study, args.arm, seed, directory, teacher_path(recipe, root))
        if dist.is_main():
            print(directory / "export")
    return 0
