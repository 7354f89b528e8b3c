"""The modelled tables of docs/performance.md are those of the committed files."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.model import model_page

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
SOURCES = re.findall(r"<!-- model of (.+) -->", TEXT)


def test_the_page_has_a_place():
    assert "benchmarks/results/model_h200_before.json" in SOURCES


@pytest.mark.parametrize("source", SOURCES)
def test_tables_are_those_of_the_file(source: str):
    record = json.loads((ROOT / source).read_text())
    assert record["modelled"] is True
    assert f"{model_page.start_of(source)}\n\n{model_page.render(record)}" in TEXT
