"""What the compiler makes of the Triton kernels, for GPUs that need not be there: see aot_compile.py."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from aot_cases import CAPABILITIES, CASES

pytest.importorskip("triton")

HERE = Path(__file__).parent
MOST_REGISTERS = 255
MOST_SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # of one block
# Exponentials of an entry of the tile, and of a row: the forward's rescaling, which every thread that holds a part of
# the row does for itself.
EXPONENTIALS = {
    "relation_kl_forward": (2, 2),
    "relation_kl_backward": (4, 0),
    "relation_kl_whole": (2, 0),
    "score_tiles": (0, 0),
    "hidden_mse_forward": (0, 0),
    "hidden_mse_backward": (0, 0),
}
MOST_ROWS_OF_A_THREAD = 4
NEWEST = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
ROWS_OF_NEWEST = 64  # by four warps: smaller tiles get sm_80's instruction on later GPUs too
# A loop stands once in the code, but for sm_100 its last turn may stand beside it.
MOST_BODIES = {80: 1, 90: 1, 100: 2}

SHIPPED = [name for name, case in CASES.items() if not case.spills]


@functools.cache
def all_reports():
    """Everything compiled in one process; Triton keeps it for the next run."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), environment.get("PYTHONPATH", "")])
    script = [sys.executable, str(HERE / "aot_compile.py")]
    done = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def reports_of(case, capability):
    reports = [r for r in all_reports() if r["case"] == case and r["capability"] == capability]
    assert reports
    return reports


def spilled(report):
    return report["LDL"] + report["STL"] + report["stack_bytes"] + report["local_bytes"]


pytestmark = pytest.mark.parametrize("capability", CAPABILITIES)


@pytest.mark.parametrize("case", SHIPPED)
def test_fits_into_registers_and_shared_memory(case, capability):
    for report in reports_of(case, capability):
        assert report["registers"] <= MOST_REGISTERS, report
        assert report["shared_bytes"] <= MOST_SHARED_BYTES[capability], report
        assert spilled(report) == 0, report


@pytest.mark.parametrize("case", SHIPPED)
def test_products_are_matrix_instructions(case, capability):
    for report in reports_of(case, capability):
        newest = NEWEST[capability] if report["rows"] >= ROWS_OF_NEWEST else "HMMA"
        for instruction in NEWEST.values():
            expected = CASES[case].matrix_instructions and instruction == newest
            assert (report[instruction] > 0) == expected, report


@pytest.mark.parametrize("case", SHIPPED)
def test_no_exponential_is_computed_twice(case, capability):
    for report in reports_of(case, capability):
        of_an_entry, of_a_row = CASES[case].exponentials or EXPONENTIALS[report["kernel"]]
        entries_of_a_thread = report["rows"] * report["columns"] // (32 * report["num_warps"])
        needed = of_an_entry * entries_of_a_thread
        allowed = [
            range(bodies * needed, bodies * (needed + of_a_row * MOST_ROWS_OF_A_THREAD) + 1)
            for bodies in range(1, MOST_BODIES[capability] + 1)
        ]
        assert any(report["MUFU.EX2"] in counts for counts in allowed), report


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.spills])
def test_a_tile_too_large_shows_as_spills(case, capability):
    assert any(spilled(report) for report in reports_of(case, capability))
