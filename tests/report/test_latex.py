"""LaTeX that compiles: checked by its braces, its columns and its characters, as there may be no LaTeX here."""

import re

import pytest
import study_on_disk

from kd_megatron.analysis import results
from kd_megatron.report.page import latex
from kd_megatron.report.page.table import Column, Table
from kd_megatron.report.study import certainty_tables, published, tables


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return results.load(
        study_on_disk.write_study(tmp_path_factory.mktemp("s") / "planted", study_on_disk.study_recipe())
    )


def require_balanced(text):
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0


def test_tables_of_a_study_are_whole(study):
    found = [tables.scores(study), *certainty_tables.differences(study), tables.spending(study)]
    found += [tables.teacher_cost(study), published.rows(study)]
    for table in found:
        text = latex.to_latex(table)
        require_balanced(text)
        assert set(text).isdisjoint("\N{MINUS SIGN}\N{EN DASH}\N{PLUS-MINUS SIGN}")
        body = text.split("\\toprule\n")[1].split("\n\\bottomrule")[0].replace("\n\\midrule", "")
        for line in body.splitlines():
            assert line.endswith(r" \\")
            assert len(re.findall(r"(?<!\\)&", line)) == len(table.columns) - 1
        for command in ("tabular", "table"):
            assert text.count(f"\\begin{{{command}}}") == text.count(f"\\end{{{command}}}") == 1


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("vanilla_kd", r"vanilla\_kd"),
        ("100 % & more #1 $2 {x}", r"100 \% \& more \#1 \$2 \{x\}"),
        ("a\\b~c^d", r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d"),
        ("71.2 ± 1.3", r"71.2 $\pm$ 1.3"),
        ("\N{MINUS SIGN}0.3 < 0.001", r"$-$0.3 $<$ 0.001"),
        ("\N{PLUS-MINUS SIGN}\N{MINUS SIGN}1", r"$\pm-$1"),
    ],
)
def test_characters_are_spelled(text, spelled):
    assert latex.escape(text) == spelled
    require_balanced(latex.escape(text))


def test_winners_are_bold_and_brackets_do_not_belong_to_the_line_break():
    columns = [Column("arm", "arm", is_text=True), Column("score", "score")]
    rows = [{"arm": "a_b", "score": "[1, 2]"}, {"arm": "[c]", "score": 2}]
    text = latex.to_latex(Table("two_rows", "A title", columns, rows, "A note.", frozenset({(0, "arm")})))
    assert "\\textbf{a\\_b} & {}[1, 2] \\\\\n{}[c] & 2 \\\\\n" in text
    assert "\\caption{A title. A note.}\n\\label{tab:two-rows}" in text
    assert "\\begin{tabular}{lr}" in text


def test_wide_tables_are_not_written(tmp_path):
    for name in ("fairness", "scores"):
        latex.write(Table(name, "", [Column("arm", "arm")], []), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.tex"]
