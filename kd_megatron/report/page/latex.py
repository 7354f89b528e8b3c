"""Tables for a paper: LaTeX with the package booktabs, one file for each table, to be read in by ``\\input``."""

import re
from pathlib import Path

from kd_megatron.report.page.table import Table

FOR_PAPERS = ("scores", "differences", "published", "spending", "teacher_cost")  # of all tables: of a page's width
_SPELLED = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{MINUS SIGN}": r"$-$",
    "\N{EN DASH}": "--",
    "\N{DAGGER}": r"$\dagger$",
    "\n": " ",
}


def write(table: Table, directory: Path) -> None:
    """Write ``directory/NAME.tex`` when the table is one for papers."""
    if table.name in FOR_PAPERS:
        (directory / f"{table.name}.tex").write_text(to_latex(table), encoding="utf-8")


def to_latex(table: Table) -> str:
    """The table as a float with caption, label and note; winners in bold."""
    places = "".join("l" if column.is_text else "r" for column in table.columns)
    head = _row([escape(column.heading) for column in table.columns])
    body = "\n".join(map(_row, table.shown(escape, "\\textbf{{{}}}".format)))
    caption = escape(" ".join(part for part in (table.title and f"{table.title}.", table.note) if part))
    return (
        "% needs \\usepackage{booktabs}\n\\begin{table}[t]\n\\centering\\footnotesize\n\\setlength{\\tabcolsep}{4pt}\n"
        f"\\begin{{tabular}}{{{places}}}\n\\toprule\n{head}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
        f"\\caption{{{caption}}}\n\\label{{tab:{table.name.replace('_', '-')}}}\n\\end{{table}}\n"
    )


def escape(text: str) -> str:
    """``text`` as LaTeX prints it, whatever characters it has."""
    spelled = "".join(_SPELLED.get(character, character) for character in text)
    return re.sub(r"\$\$", "", spelled)  # of two formulae side by side one is made


def _row(cells: list[str]) -> str:
    """A cell that begins with a bracket is kept from being read as the ``[length]`` of the line break before it."""
    return " & ".join(f"{{}}{cell}" if cell.startswith("[") else cell for cell in cells) + r" \\"
