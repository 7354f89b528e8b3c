"""The table of docs/occupancy.md is that of the committed record, which has every kernel that ships."""

import json

import aot_cases
import occupancy
import pytest


@pytest.fixture(scope="module")
def record():
    return json.loads(occupancy.RECORD.read_text(encoding="utf-8"))


def test_the_page_has_the_table_of_the_record(record):
    page = occupancy.PAGE.read_text(encoding="utf-8")
    assert occupancy.fill(page, occupancy.render(record)) == page


def test_every_case_is_in_the_record_for_every_gpu(record):
    """Otherwise: env -u TRITON_INTERPRET PYTHONPATH=. python tests/kernels/occupancy.py."""
    shipped = {name for name, case in aot_cases.CASES.items() if not case.spills}
    found = {(row["case"], row["capability"]) for row in record["rows"]}
    assert found == {(name, capability) for name in shipped for capability in aot_cases.CAPABILITIES}
    assert all(row["spills"] == 0 and row["programs"] >= 1 for row in record["rows"])


@pytest.mark.parametrize(
    ("capability", "num_warps", "registers", "shared_kib", "expected"),
    [
        (90, 8, 206, 65, occupancy.Occupancy(1, 8, "registers")),
        (90, 4, 168, 26, occupancy.Occupancy(3, 12, "registers")),  # 168 x 32 = 21 x 256: 12 warps fit, and no 13th
        (90, 4, 255, 10, occupancy.Occupancy(2, 8, "registers")),
        (80, 4, 32, 80, occupancy.Occupancy(2, 8, "shared memory")),
        (90, 4, 32, 80, occupancy.Occupancy(2, 8, "shared memory")),  # 81 of 228 KiB
        (90, 4, 32, 0, occupancy.Occupancy(16, 64, "registers")),  # as many as the warps allow
        (90, 4, 24, 0, occupancy.Occupancy(16, 64, "warps")),
        (90, 1, 24, 0, occupancy.Occupancy(32, 32, "programs")),
    ],
)
def test_occupancy_by_hand(capability, num_warps, registers, shared_kib, expected):
    assert occupancy.occupancy(capability, num_warps, registers, shared_kib * 1024) == expected


def test_a_page_without_a_place_is_refused():
    with pytest.raises(ValueError, match="has no place for the table"):
        occupancy.fill("# A page\n", "| a |")
