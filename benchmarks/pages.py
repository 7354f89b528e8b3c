"""Recorded benchmark rows as a figure and as the tables of a page: `docs/performance.md` is written by it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.finetune import finetune_scores
from benchmarks.rows import Row, as_markdown, peak_share
from kd_megatron.errors import DataError, OutputError
from kd_megatron.report.page.drawing import COLOURS, MARKERS, STYLE

END = "<!-- end of rows -->"


FIGURE_ENDINGS = (".png", ".pdf", ".svg")


def read(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """(rows, the whole record) of a file that ``--json`` wrote.

    Raises:
        DataError: it is no such file.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(**row) for row in record["rows"]]
        describe(record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            given=f"{path}: {type(error).__name__}: {error}", expected="a file that bench kernels --json wrote"
        ) from error
    return rows, record


def describe(record: dict[str, Any]) -> str:
    """When and on what: one line."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version != "absent")
    hardware, changed = record["hardware"], " with uncommitted changes" * record["uncommitted_changes"]
    return (
        f"{record['date']}, commit {record['commit'][:12]}{changed}; {hardware['device']}, "
        f"{hardware['num_threads_per_process']} threads; {versions}."
    )


def check_page(page: Path, source: str) -> None:
    """Raise `OutputError` unless ``page`` has a place for the rows of ``source``, or does not exist yet."""
    check_place(page, start_of(source))


def check_place(page: Path, start: str) -> None:
    """Raise `OutputError` unless ``page`` has the line ``start`` and `END` after it, or does not exist yet."""
    if page.exists() and not _place(start).search(page.read_text(encoding="utf-8")):
        raise OutputError(
            given=f"{page} has no place for the {start.strip('<!->').strip()}",
            expected=f"a line {start} with a line {END} after it",
            fix="add both lines where the table belongs, or name a page that does not exist yet",
        )


def fill_page(page: Path, source: str, rows: Sequence[Row], record: dict[str, Any]) -> None:
    """Put the table into ``page``, between the line that names its file ``source`` and `END`; see `check_page`."""
    fill_place(page, start_of(source), render(rows, record))


def fill_place(page: Path, start: str, content: str) -> None:
    """Put ``content`` into ``page``, between the line ``start`` and `END`; see `check_place`."""
    check_place(page, start)
    text = page.read_text(encoding="utf-8") if page.exists() else f"{start}\n{END}\n"
    filled = f"{start}\n\n{content}\n{END}"
    page.write_text(_place(start).sub(lambda _: filled, text), encoding="utf-8")


def _place(start: str) -> re.Pattern[str]:
    return re.compile(re.escape(start) + r".*?" + re.escape(END), re.DOTALL)


def start_of(source: str) -> str:
    """The line that opens the place of the rows of the file ``source``."""
    return f"<!-- rows of {source} -->"


def render(rows: Sequence[Row], record: dict[str, Any]) -> str:
    """The table, that of the scores where enough were recorded, and what it was measured with."""
    scores = finetune_scores.score_lines(rows, record)
    tables = [as_markdown(rows), *([finetune_scores.as_markdown(scores)] if scores else [])]
    return "\n".join([*tables, f"{describe(record)}\n"])


def draw(rows: Sequence[Row], path: Path) -> None:
    """A line for each kernel and shape: speed and, where any was measured, peak memory, relative to ``ratio_to``."""
    places = list(dict.fromkeys((row.name, row.shape, row.dtype) for row in rows))
    backends = list(dict.fromkeys(row.backend for row in rows))
    with matplotlib.rc_context(STYLE):
        num_panels = 2 if any(row.peak_mib for row in rows) else 1
        size = (7.6, 1.5 + 0.34 * len(places))
        figure, grid = pyplot.subplots(1, num_panels, figsize=size, sharey=True, squeeze=False)
        speed, *memory = grid[0]
        for index, backend in enumerate(backends):
            mine = [row for row in rows if row.backend == backend]
            heights = [places.index((row.name, row.shape, row.dtype)) for row in mine]
            shares = [peak_share(row, rows) for row in mine]
            look: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index], "linestyle": "none"}
            speed.plot([row.ratio for row in mine], heights, label=backend, **look)
            for axes in memory:
                axes.plot([share if share else float("nan") for share in shares], heights, **look)
        speed.set_yticks(range(len(places)), [f"{name}\n{shape} {dtype}" for name, shape, dtype in places])
        speed.set_ylim(len(places) - 0.5, -0.5)
        reference = " or, where that did not run, ".join(dict.fromkeys(row.ratio_to for row in rows))
        _finish(speed, "speed: more is better")
        for axes in memory:
            _finish(axes, "peak memory: less is better")
        figure.supxlabel(f"relative to {reference}", fontsize=8)
        figure.legend(loc="outside upper center", ncols=len(backends))
        figure.savefig(path)
        pyplot.close(figure)


def _finish(axes: Axes, label: str) -> None:
    axes.set_xscale("log")
    axes.axvline(1.0, color="#777777", linewidth=0.9, zorder=1)
    axes.set_xlabel(label, fontsize=8)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
