"""What docs/results has of studies is what the software makes today of the raw.json beside it."""

import json
from pathlib import Path

import pytest
from tolerances import HAND_WORKED_STATISTIC_RELATIVE

from kd_megatron.analysis import leads, results
from kd_megatron.analysis.statistics import Estimate
from kd_megatron.report import packed as raw
from kd_megatron.report.grid import page
from kd_megatron.report.study import tables
from kd_megatron.report.study.answer import answer
from kd_megatron.study import layout

ROOT = Path(__file__).resolve().parents[2]
PACKED = sorted(ROOT.glob("docs/results/*/raw.json"))


def number(value):
    """Of an estimate its mean; 0 of what is no number, which is compared as text."""
    value = value.mean if isinstance(value, Estimate) else value["mean"] if isinstance(value, dict) else value
    return value if isinstance(value, int | float) else 0


def require_the_same(rows, recorded):
    for row, told in zip(rows, recorded, strict=True):
        assert row.keys() == told.keys()
        assert [row["arm"], row.get("objective")] == [told["arm"], told.get("objective")]
        values, expected = ([number(one[key]) for key in row] for one in (row, told))
        assert values == pytest.approx(expected, rel=HAND_WORKED_STATISTIC_RELATIVE)


@pytest.mark.parametrize("path", PACKED, ids=lambda path: path.parent.name)
def test_the_numbers_are_those_of_the_packed_study(path, tmp_path):
    packed, told = raw.read(path), json.loads((path.parent / "results.json").read_text())
    directory, _ = packed.unpack(tmp_path)
    if layout.is_grid(directory):
        assert page.answer(leads.load(directory, packed.interval)) == told["answer"]
        return
    study = results.load(directory, packed.interval)
    assert answer(study) == told["answer"]
    assert answer(study) in (path.parent / "report.md").read_text()
    for table in (tables.scores(study), tables.spending(study), tables.runs(study)):
        require_the_same(table.rows, told["tables"][table.name])
    for kind in ("/root/", "/home/", "/tmp/"):
        assert kind not in path.read_text()


def test_there_are_some():
    assert PACKED
