"""`bench show`: recorded rows as a table, a page or a figure."""

import argparse

TAKES = {"file", "markdown", "plot"}
NEEDS_FILE = "a file that --json wrote"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has no options of its own."""


def run(args: argparse.Namespace) -> int:
    """Show recorded rows."""
    from pathlib import Path

    from benchmarks import pages
    from benchmarks.cli import bench_output

    rows, record = pages.read(Path(args.file))
    bench_output.check_outputs(args, args.file)
    bench_output.present(args, args.file, rows, record)
    return 0
