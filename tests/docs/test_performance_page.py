"""The tables of docs/performance.md are those of the committed rows."""

import re
from pathlib import Path

import pytest

from benchmarks import pages

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/performance.md"
SOURCES = re.findall(r"<!-- rows of (.+) -->", PAGE.read_text(encoding="utf-8"))


def test_the_page_has_places():
    assert {"benchmarks/results/kernels_cpu.json", "benchmarks/results/gpu_check.json"} <= set(SOURCES)
    for source in SOURCES:
        pages.check_page(PAGE, source)


@pytest.mark.parametrize("source", SOURCES)
def test_tables_are_those_of_the_rows(source: str):
    if not (ROOT / source).exists():
        pytest.skip(f"{source} has not been measured")
    rows, record = pages.read(ROOT / source)
    assert pages.render(rows, record) in PAGE.read_text(encoding="utf-8")
