"""A report as a list of blocks, and its two renderings: one self-contained HTML page, and Markdown."""

import base64
import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from kd_megatron.report.page.style import CSS, DOTS_PER_INCH, PIXELS_PER_INCH
from kd_megatron.report.page.table import Table


@dataclass(frozen=True)
class Heading:
    """A section's heading."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Running text. ``lead`` sets it large: the answer."""

    text: str
    lead: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: list[str]


@dataclass(frozen=True)
class TableBlock:
    """A table with its title and note."""

    table: Table


@dataclass(frozen=True)
class FigureBlock:
    """A figure, drawn as the page is written, with its caption, which is also its text for those who cannot see it."""

    name: str
    caption: str
    draw: Callable[[], Figure | None]  # None: there is no data for it, and it is left out


@dataclass(frozen=True)
class Details:
    """Blocks folded away until the reader opens them."""

    summary: str
    blocks: list["Block"]


Block = Heading | Paragraph | Bullets | TableBlock | FigureBlock | Details


def to_html(title: str, subtitle: str, blocks: list[Block], directory: Path) -> str:
    """One page: styles and images (those in ``directory``) inside, no script, nothing from outside."""
    body = "\n".join(_html(block, directory) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{CSS}</style>\n</head>\n<body>\n<main>\n"
        f'<header><h1>{html.escape(title)}</h1>\n<p class="subtitle">{html.escape(subtitle)}</p></header>\n'
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def _html(block: Block, directory: Path) -> str:
    match block:
        case Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case Paragraph(text, lead):
            return f"<p{' class=lead' if lead else ''}>{html.escape(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>"
        case TableBlock(table):
            return _html_table(table)
        case FigureBlock(name, caption):
            path = directory / _figure(name)
            image = base64.b64encode(path.read_bytes()).decode("ascii")
            text = html.escape(caption)
            width = _shown_width(path)
            size = f'width="{width}" style="--width: {width}px"'
            picture = f'<div class="scroll"><img src="data:image/png;base64,{image}" {size} alt="{text}"></div>'
            return f"<figure>{picture}<figcaption>{text}</figcaption></figure>"
        case Details(summary, blocks):
            inside = "\n".join(_html(inner, directory) for inner in blocks)
            return f"<details><summary>{html.escape(summary)}</summary>\n{inside}\n</details>"


def _shown_width(path: Path) -> int:
    """CSS pixels for a PNG, so that all figures have letters of one size. A PNG's width is in its bytes 16 to 20."""
    width = int.from_bytes(path.read_bytes()[16:20], "big")
    return round(width * PIXELS_PER_INCH / DOTS_PER_INCH)


def _html_table(table: Table) -> str:
    classes = ["text" if column.is_text else "number" for column in table.columns]
    head = "".join(
        f'<th scope="col" class="{kind}">{html.escape(column.heading)}</th>'
        for column, kind in zip(table.columns, classes, strict=True)
    )
    rows = "\n".join(
        "<tr>" + "".join(f'<td class="{kind}">{cell}</td>' for cell, kind in zip(row, classes, strict=True)) + "</tr>"
        for row in table.shown(html.escape, "<strong>{}</strong>".format)
    )
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    title = f"<h3>{html.escape(table.title)}</h3>" if table.title else ""
    return (
        f'<section class="table">{title}<div class="scroll"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>{note}</section>"
    )


def _figure(name: str) -> str:
    return f"figures/{name}.png"


def to_markdown(title: str, subtitle: str, blocks: list[Block]) -> str:
    """The same as Markdown; figures are linked."""
    return f"# {title}\n\n{subtitle}\n\n" + "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {text}"
        case Paragraph(text, lead):
            return f"**{text}**" if lead else text
        case Bullets(items):
            return "\n".join(f"- {item}" for item in items)
        case TableBlock(table):
            return _markdown_table(table)
        case FigureBlock(name, caption):
            return f"![{caption}]({_figure(name)})\n\n*{caption}*"
        case Details(summary, blocks):
            inside = "\n\n".join(map(_markdown, blocks))
            return f"<details><summary>{html.escape(summary)}</summary>\n\n{inside}\n\n</details>"


def _markdown_table(table: Table) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = "|" + "|".join(" :-- " if column.is_text else " --: " for column in table.columns) + "|"
    lines = [line([column.heading for column in table.columns]), rule, *map(line, table.shown(bold="**{}**".format))]
    title = f"**{table.title}**\n\n" if table.title else ""
    return title + "\n".join(lines) + (f"\n\n{table.note}" if table.note else "")
