"""docs/fairness.md: every clause names what enforces it and tests that are there; clauses are counted without gaps."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLAUSES = re.split(r"\n(?=\d+\. \*\*)", (ROOT / "docs/fairness.md").read_text(encoding="utf-8"))[1:]


def functions_of(path: str) -> set[str]:
    """The test functions of a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def named_tests(clause: str) -> list[tuple[str, str]]:
    """(file, test) of everything after *Tested by*."""
    tested = clause.partition("*Tested by*")[2]
    found = re.findall(r"`(tests/[\w/]+\.py)`\s+\(((?:`test_\w+`[,\s]*)+)\)", tested)
    return [(path, test) for path, tests in found for test in re.findall(r"`(test_\w+)`", tests)]


def test_clauses_are_counted():
    assert [int(clause.split(".")[0]) for clause in CLAUSES] == list(range(1, len(CLAUSES) + 1))
    assert len(CLAUSES) >= 17


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.split(".")[0])
def test_a_clause_is_enforced_and_tested(clause):
    assert "*Enforced by*" in clause
    named = named_tests(clause)
    assert named
    assert not [(path, test) for path, test in named if test not in functions_of(path)]


def test_clauses_that_the_code_cites_are_there():
    """``docs/fairness.md, clause 14`` and ``clauses 3-5`` in sources."""
    cited = set()
    for path in (ROOT / "kd_megatron").rglob("*.py"):
        for text in re.findall(r"fairness\.md, clauses? ([\d, and-]+)", path.read_text(encoding="utf-8")):
            cited |= {int(number) for number in re.findall(r"\d+", text)}
    assert cited
    assert cited <= set(range(1, len(CLAUSES) + 1))
