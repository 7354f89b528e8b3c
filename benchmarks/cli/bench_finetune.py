"""`bench finetune`: whole fine-tuning runs beside Hugging Face's Trainer, and a grid on one process and on several."""

import argparse

TAKES = {
    "file", "overrides", "json", "compare", "tolerance", "markdown", "model", "rounds", "processes", "peers",
    "peer_python", "skip_full_length",
}  # fmt: skip
NEEDS_FILE = "a fine-tuning recipe, such as benchmarks/recipes/finetune.yaml"
PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its own options; --peers and --peer-python are those of `bench step`."""
    group = parser.add_argument_group("bench finetune")
    group.add_argument("--model", metavar="DIR", help="the encoder to fine-tune")
    group.add_argument("--rounds", type=int, help="how often each one runs, with another seed each time (default: 2)")
    group.add_argument(
        "--skip-full-length",
        action="store_true",
        help="leave out the Trainer that pads to the full length: it learns the same, in much more time",
    )
    group.add_argument(
        "--processes", metavar="NUMBERS", help="time a grid on so many processes instead of single runs, such as 1,2"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, keep the rows."""
    from pathlib import Path

    from benchmarks.cli import bench_output
    from benchmarks.finetune import finetune_throughput
    from benchmarks.rows import as_json
    from kd_megatron.console import logs
    from kd_megatron.finetune.cell.model import check_directory
    from kd_megatron.machine import facts
    from kd_megatron.machine.precision import resolve_precision
    from kd_megatron.ranks import dist
    from kd_megatron.recipe import FinetuneRecipe, config

    num_rounds = 2 if args.rounds is None else args.rounds
    processes = _check(args, num_rounds)
    source = args.json or "the last run"
    bench_output.check_outputs(args, source)
    logs.quiet_libraries()
    model = Path(args.model)
    check_directory(model)
    with dist.joined():
        recipe = resolve_precision(config.load(args.file, FinetuneRecipe, args.overrides))
        if processes:
            rows, scores = finetune_throughput.time_grid(model, recipe, num_rounds, processes)
        else:
            with_peers = args.peers or args.peer_python is not None
            rows, scores = finetune_throughput.time_tasks(
                model, recipe, num_rounds, with_peers, args.peer_python, full_length=not args.skip_full_length
            )
    timed = "Whole runs: texts to dev score. Tokens are those of the training texts, without padding."
    record = as_json(rows, facts.facts(PACKAGES) | {"timed": timed, "scores": scores})
    bench_output.present(args, source, rows, record)
    bench_output.finish(args, rows, record)
    return 0


def _check(args: argparse.Namespace, num_rounds: int) -> list[int]:
    """Refuse options that cannot be used before anything is built. Returns the numbers of processes."""
    import os
    import shutil

    from kd_megatron.errors import RecipeError

    if not args.model:
        raise RecipeError(given="bench finetune without --model", expected="the directory of an encoder")
    if num_rounds < 1:
        raise RecipeError(given=f"--rounds {num_rounds}", expected="at least 1")
    if args.peer_python and shutil.which(args.peer_python) is None:
        raise RecipeError(given=f"--peer-python {args.peer_python}: there is no such program", expected="a Python")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise RecipeError(given=f"bench finetune with {os.environ['WORLD_SIZE']} processes", expected="one process")
    if not args.processes:
        return []
    try:
        numbers = [int(number) for number in args.processes.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise RecipeError(given=f"--processes {args.processes}", expected="whole numbers, such as 1,2")
    return numbers
