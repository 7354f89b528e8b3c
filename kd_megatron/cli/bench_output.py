"""What the benchmarks share: refuse an output that cannot be written before measuring; show and keep rows."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kd_megatron.kernels.bench.rows import Row

MIN_WIDTHS = (13, 6, 14, 6, 8, 7, 9)  # of the columns of figures, so that the tables of all shapes line up


def check_outputs(args: argparse.Namespace, source: str) -> None:
    """Refuse now what could not be written in the end."""
    from pathlib import Path

    from kd_megatron.errors import RecipeError
    from kd_megatron.study import performance

    for name in (args.json, args.markdown, args.plot):
        if name:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
    if args.markdown:
        performance.check_page(Path(args.markdown), source)
    if args.plot and Path(args.plot).suffix not in performance.FIGURE_ENDINGS:
        raise RecipeError(
            given=f"--plot {args.plot}",
            expected=f"a name that ends with one of {', '.join(performance.FIGURE_ENDINGS)}",
        )


def present(args: argparse.Namespace, source: str, rows: "Sequence[Row]", record: dict[str, Any]) -> None:
    """A table for each name and shape on the console; all rows on a page and as a figure where asked for."""
    from pathlib import Path

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from kd_megatron.kernels.bench.rows import COLUMNS, NUM_PLACE_COLUMNS, cells
    from kd_megatron.study import performance

    console = Console()
    places = list(dict.fromkeys((row.name, row.shape, row.dtype) for row in rows))
    for place in places:
        table = Table(title=" ".join(place), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for index, column in enumerate(COLUMNS[NUM_PLACE_COLUMNS:]):
            table.add_column(column, min_width=MIN_WIDTHS[index], justify="right" if index else "left")
        for row in rows:
            if (row.name, row.shape, row.dtype) == place:
                table.add_row(*cells(row, rows)[NUM_PLACE_COLUMNS:])
        console.print(table)
    console.print(f"Forward and backward. {performance.describe(record)}", highlight=False)
    if args.markdown:
        performance.fill_page(Path(args.markdown), source, rows, record)
    if args.plot:
        performance.draw(rows, Path(args.plot))
