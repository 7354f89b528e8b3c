"""One page of whatever kind, of a study, a grid or a fine-tuning: what it holds, and the files that it becomes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kd_megatron.files import records
from kd_megatron.report.page import drawing, latex
from kd_megatron.report.page.document import Block, FigureBlock, TableBlock, to_html, to_markdown
from kd_megatron.report.page.table import Table

MARKDOWN, HTML = "report.md", "index.html"  # of a report


@dataclass(frozen=True)
class Page:
    """A page before it is written."""

    title: str
    subtitle: str
    blocks: list[Block]
    tables: list[Table]  # for csv; those on the page and more
    data: dict[str, Any] = field(default_factory=dict)  # of results.json; empty: there is none, and no LaTeX
    markdown: str = MARKDOWN  # names of its two files
    html: str | None = HTML  # None: it has no HTML

    def write(self, target: Path) -> None:
        """Write its files to ``target``, a new directory. Figures that there is no data for are left out."""
        for part in ("figures", "tables"):
            (target / part).mkdir(parents=True)
        draws = {block.name: block.draw for block in self.blocks if isinstance(block, FigureBlock)}
        drawn = drawing.write(target / "figures", draws)
        shown = [block for block in self.blocks if not isinstance(block, FigureBlock) or block.name in drawn]
        for table in self.tables:
            table.write_csv(target / "tables")
            if self.data:
                latex.write(table, target / "tables")
        if self.data:
            records.write_json(target / "results.json", self.data)
        (target / self.markdown).write_text(to_markdown(self.title, self.subtitle, shown), encoding="utf-8")
        if self.html:
            (target / self.html).write_text(to_html(self.title, self.subtitle, shown, target), encoding="utf-8")


def figure_blocks(captions: dict[str, str], draws: Iterable[Callable[..., Figure | None]], *given: Any) -> list[Block]:
    """A block for each of ``draws``, called with ``given``; a figure has the name of its function."""
    return [FigureBlock(draw.__name__, captions[draw.__name__], partial(draw, *given)) for draw in draws]


def table_blocks(tables: Iterable[Table], *names: str) -> list[Block]:
    """The named ones of ``tables``, in the order of ``names``, where they are there."""
    there = {table.name: table for table in tables}
    return [TableBlock(there[name]) for name in names if name in there]
