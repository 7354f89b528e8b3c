"""What the benchmarks share: refuse an output that cannot be written before measuring; show and keep rows."""

import argparse
from typing import TYPE_CHECKING, Any

from kd_megatron.files import records

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from benchmarks.rows import Row

WIDTH_IN_FILES = 120
MIN_WIDTHS = (13, 6, 14, 6, 8, 7, 9, 5)  # of the columns of figures, so that the tables of all shapes line up


def console() -> "Console":
    """Of the tables: as wide as the terminal, and wide enough for them where the output is a file."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=WIDTH_IN_FILES)


def check_outputs(args: argparse.Namespace, source: str) -> None:
    """Refuse now what could not be written in the end."""
    from pathlib import Path

    from benchmarks import pages
    from kd_megatron.errors import RecipeError
    from kd_megatron.recipe.paths import require_place

    for name in (args.json, args.markdown, args.plot):
        if name:
            require_place(Path(name))
    if args.compare:
        pages.read(Path(args.compare))
    if args.markdown:
        pages.check_page(Path(args.markdown), source)
    if args.plot and Path(args.plot).suffix not in pages.FIGURE_ENDINGS:
        raise RecipeError(
            given=f"--plot {args.plot}",
            expected=f"a name that ends with one of {', '.join(pages.FIGURE_ENDINGS)}",
        )


def finish(args: argparse.Namespace, rows: "Sequence[Row]", record: dict[str, Any]) -> None:
    """Write what was measured, then compare it with what was recorded, each where asked for."""
    from pathlib import Path

    from benchmarks import pages

    recorded = pages.read(Path(args.compare)) if args.compare else None  # before --json replaces that very file
    if args.json:
        records.write_json(Path(args.json), record)
    if recorded:
        _compare(args, rows, *recorded)


def _compare(
    args: argparse.Namespace, rows: "Sequence[Row]", recorded: "Sequence[Row]", record: dict[str, Any]
) -> None:
    """A table of the ratios, then and now; a ratio that is worse by more than the tolerance is an error."""
    from rich.table import Table

    from benchmarks import comparison, pages

    changes = comparison.compare(rows, recorded)
    table = Table(title=f"{args.compare}: {pages.describe(record)}", title_justify="left")
    for column in ("row", "backend", "shape", "relative to"):
        table.add_column(column)
    for column in ("recorded", "now", "slower by"):
        table.add_column(column, justify="right")
    for change in changes:
        row = change.row
        figures = (f"{change.recorded:.3g}", f"{row.ratio:.3g}", f"{change.slower_by:+.1%}")
        table.add_row(row.name, row.backend, row.shape, row.ratio_to, *figures)
    console().print(table)
    unmatched = len(rows) - len(changes)
    if unmatched:
        console().print(f"{unmatched} rows of this run are not among the recorded ones.")
    comparison.refuse_slower(changes, comparison.DEFAULT_TOLERANCE if args.tolerance is None else args.tolerance)


def present(args: argparse.Namespace, source: str, rows: "Sequence[Row]", record: dict[str, Any]) -> None:
    """A table for each name and shape on the console; all rows on a page and as a figure where asked for."""
    from pathlib import Path

    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from benchmarks import pages
    from benchmarks.finetune import finetune_scores
    from benchmarks.rows import NUM_PLACE_COLUMNS, cells, columns

    page = console()
    places = list(dict.fromkeys((row.name, row.shape, row.dtype) for row in rows))
    for place in places:
        table = Table(title=" ".join(place), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for index, column in enumerate(columns(rows)[NUM_PLACE_COLUMNS:]):
            table.add_column(column, min_width=MIN_WIDTHS[index], justify="right" if index else "left")
        for row in rows:
            if (row.name, row.shape, row.dtype) == place:
                table.add_row(*cells(row, rows)[NUM_PLACE_COLUMNS:])
        page.print(table)
    if scores := finetune_scores.score_lines(rows, record):
        table = Table(title="scores", title_justify="left", box=SIMPLE_HEAD, caption=finetune_scores.NOTE)
        for index, column in enumerate(finetune_scores.HEADS):
            table.add_column(column, justify="left" if index < finetune_scores.NUM_TEXT_COLUMNS else "right")
        for line in scores:
            table.add_row(*line)
        page.print(table)
    timed = record.get("timed", "Forward and backward.")
    page.print(f"{timed} {pages.describe(record)}", highlight=False)
    if args.markdown:
        pages.fill_page(Path(args.markdown), source, rows, record)
    if args.plot:
        pages.draw(rows, Path(args.plot))
