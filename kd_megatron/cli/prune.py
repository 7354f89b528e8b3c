"""Remove the checkpoints of finished runs: nothing goes on from them.

Exports, metrics, ledgers and summaries stay, so that reports, fine-tuning, more seeds and more arms work as before.
Kept are checkpoints of runs that are not finished, those that branches have still to leave from, and those that the
recipe keeps for good (training.keep_every_steps, training.keep_at). It may be used beside a study that is running.

  kd-megatron prune studies/wiki_small
  kd-megatron prune runs
"""

import argparse

HELP = "free disk: remove the checkpoints of finished runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("directories", nargs="+", metavar="DIR", help="a run, a study or a grid, such as studies/demo")


def run(args: argparse.Namespace) -> int:
    """Remove, and say how much each directory gave back."""
    from pathlib import Path

    from kd_megatron.training.branch import prune

    for directory in args.directories:
        number, num_bytes = prune(Path(directory))
        print(f"{directory}: {number} checkpoints removed, {num_bytes / 2**30:.2f} GiB")
    return 0
