"""Measure, relative to something measured in the same run; absolute times depend on what else the machine does.

step RECIPE      whole training steps of every arm, in turn: what each objective costs in tokens per second
model RECIPE     a step of every arm on a GPU that is not there, by bytes and FLOPs: modelled, not measured
finetune RECIPE  whole fine-tuning runs beside Hugging Face's Trainer; a grid on one process and on several
data             reading and masking beside megatron-core, opening shard sets of up to 1B tokens, and `prepare` beside
                 Megatron-LM's way of tokenizing; minutes
kernels          every backend of the loss kernels: checked against float64 first, then time and peak memory beside
                 eager PyTorch and torch.compile; minutes
show FILE        the rows that --json wrote, as a table, a page or a figure

kd-megatron bench step recipes/debug.yaml
kd-megatron bench step benchmarks/recipes/step_6x384.yaml --best-batch --peer-python peers/bin/python
kd-megatron bench step benchmarks/recipes/step_6x384.yaml --ladder --compare benchmarks/results/ladder_6x384_cpu.json
kd-megatron bench model --device h200 recipes/paper_6l.yaml
kd-megatron bench finetune benchmarks/recipes/finetune.yaml --model DIR --peer-python peers/bin/python
kd-megatron bench data --tokens 1e9 --directory /tmp/pools --json benchmarks/results/data_cpu.json
kd-megatron bench kernels --json benchmarks/results/kernels_cpu.json
kd-megatron bench kernels --kernel score_mse --shapes tiny
kd-megatron bench show benchmarks/results/kernels_cpu.json --markdown docs/performance.md --plot kernels.png
"""

import argparse
import importlib
from types import ModuleType

HELP = "throughput of every arm, of the data, and the kernels beside eager and torch.compile"
# Each is a module `bench_NAME` with TAKES, NEEDS_FILE, add_arguments and run.
SUBCOMMANDS = ("step", "model", "finetune", "data", "kernels", "show")


def subcommand(name: str) -> ModuleType:
    """The module of ``bench NAME``."""
    return importlib.import_module(f"benchmarks.cli.bench_{name}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what several of them take, and then each one's own."""
    parser.add_argument("what", choices=SUBCOMMANDS, help="what to measure or show")
    parser.add_argument("file", nargs="?", help="step, model, finetune: a recipe; show: a file that --json wrote")
    parser.add_argument("overrides", nargs="*", help="step, model, finetune: dotted keys of the recipe")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE, with date, commit and versions")
    parser.add_argument(
        "--compare", metavar="FILE", help="fail (exit code 8) where a ratio is worse than in FILE, which --json wrote"
    )
    parser.add_argument("--tolerance", type=float, help="of --compare: this share of the ratio (default: 0.1)")
    parser.add_argument(
        "--markdown", metavar="PAGE", help="put the table into PAGE, at the line that names the JSON file"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw speed and peak memory into FILE (.png, .pdf, .svg)")
    for name in SUBCOMMANDS:
        subcommand(name).add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Refuse what this one does not take, and hand over to it."""
    from kd_megatron.errors import RecipeError

    module = subcommand(args.what)
    known = set().union(*(subcommand(name).TAKES for name in SUBCOMMANDS))
    for name, value in vars(args).items():
        if value and name in known and name not in module.TAKES:
            raise RecipeError(given=f"bench {args.what} takes no {name}: {value}", fix="see bench --help")
    if module.NEEDS_FILE and not args.file:
        raise RecipeError(given=f"bench {args.what} without a file", expected=module.NEEDS_FILE)
    return int(module.run(args))
