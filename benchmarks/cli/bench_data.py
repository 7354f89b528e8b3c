"""`bench data`: reading, masking, opening and preparing, each beside a stated partner."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.rows import Row

TAKES = {"tokens", "directory", "text_mb", "json", "compare", "tolerance", "markdown"}
NEEDS_FILE = ""
ROUNDS = {"read": 20, "mask": 5, "open": 5, "prepare": 3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its own options."""
    group = parser.add_argument_group("bench data")
    group.add_argument(
        "--tokens", type=float, help="of the largest made-up pool, 2.1 bytes of disk each (default: 1e8; try 1e9)"
    )
    group.add_argument(
        "--directory", metavar="DIR", help="keep the made-up pools in DIR and use them again (default: removed)"
    )
    group.add_argument("--text-mb", type=float, help="docstrings to prepare, in MB; 0 leaves it out (default: 20)")


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, keep the rows."""
    import os

    from benchmarks.cli import bench_output
    from benchmarks.data.made_up_pools import MIN_TOKENS, working_directory
    from benchmarks.rows import as_json
    from kd_megatron.console import logs
    from kd_megatron.errors import RecipeError
    from kd_megatron.machine import facts as machine

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise RecipeError(given=f"bench data with {os.environ['WORLD_SIZE']} processes", expected="one process")
    num_tokens = int(1e8 if args.tokens is None else args.tokens)
    num_characters = int(1e6 * (20 if args.text_mb is None else args.text_mb))
    if num_tokens < MIN_TOKENS:
        raise RecipeError(given=f"--tokens {args.tokens:g}", expected=f"at least {MIN_TOKENS:,}")
    source = args.json or "the last run"
    bench_output.check_outputs(args, source)
    logs.quiet_libraries()
    with working_directory(Path(args.directory) if args.directory else None) as directory:
        rows = _measure(directory, num_tokens, num_characters)
    facts = machine.facts(("torch", "numpy", "tokenizers", "megatron-core"))
    record = as_json(rows, facts | {"timed": "Data on one thread, but for the workers of prepare."})
    bench_output.present(args, source, rows, record)
    bench_output.finish(args, rows, record)
    return 0


def _measure(directory: Path, num_tokens: int, num_characters: int) -> "list[Row]":
    """Every group in turn; made-up pools in ``directory``, text beside them and removed."""
    import tempfile

    from benchmarks.data import data_throughput, made_up_pools, prepare_throughput
    from benchmarks.data.in_turn import measure
    from kd_megatron.console import logs

    rows: list[Row] = []
    pools = made_up_pools.pools(directory, made_up_pools.sizes(num_tokens))
    for path in pools:
        logs.say(f"opening {data_throughput.pool_name(path)}: {ROUNDS['open']} rounds")
        rows += measure(data_throughput.opening_cases(path), ROUNDS["open"])
    for length in data_throughput.LENGTHS:
        logs.say(f"reading windows of {length} tokens: {ROUNDS['read']} rounds")
        rows += measure(data_throughput.reading_cases(pools, length), ROUNDS["read"])
        logs.say(f"masking windows of {length} tokens: {ROUNDS['mask']} rounds")
        rows += measure(data_throughput.masking_cases(pools[0], length), ROUNDS["mask"])
    if num_characters:
        with tempfile.TemporaryDirectory(dir=directory) as passing:
            texts = prepare_throughput.embedded_documents(num_characters)
            cases = prepare_throughput.cases(texts, Path(passing))
            logs.say(f"preparing {cases[0].shape}: {ROUNDS['prepare']} rounds")
            rows += measure(cases, ROUNDS["prepare"])
    return rows
