"""How many programs of every compiled Triton kernel a multiprocessor holds, computed from registers and shared memory.

As a program it compiles the cases of aot_cases.py (no GPU is needed), writes the table as JSON and puts it into a page:

    env -u TRITON_INTERPRET PYTHONPATH=. python tests/kernels/occupancy.py

Sizes of a multiprocessor: CUDA C++ programming guide, "technical specifications per compute capability". What comes out
is computed, not measured, and says nothing of time by itself: a kernel with many registers may be the faster one.
"""

import argparse
import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks/results/occupancy.json"
PAGE = ROOT / "docs/occupancy.md"
START, END = "<!-- table of benchmarks/results/occupancy.json -->", "<!-- end of table -->"

REGISTERS = 64 * 1024
REGISTERS_AT_ONCE = 256  # a warp gets its registers in units of as many
WARPS_AT_ONCE = 4  # registers lie in four parts, one for each scheduler
MOST_WARPS = 64
MOST_PROGRAMS = 32
RESERVED_BYTES = 1024  # of shared memory, of every program
SHARED_BYTES = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
LOADS = ("LDG", "LDGSTS")  # from global memory into registers, and into shared memory


@dataclass(frozen=True)
class Occupancy:
    """Of one multiprocessor."""

    programs: int
    warps: int
    limited_by: str


def occupancy(capability: int, num_warps: int, registers: int, shared_bytes: int) -> Occupancy:
    """How much of a kernel one multiprocessor holds at once; ``registers`` are those of a thread."""
    of_a_warp = math.ceil(32 * max(1, registers) / REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
    warps_by_registers = REGISTERS // of_a_warp // WARPS_AT_ONCE * WARPS_AT_ONCE
    programs = {
        "registers": warps_by_registers // num_warps,
        "shared memory": SHARED_BYTES[capability] // (shared_bytes + RESERVED_BYTES),
        "warps": MOST_WARPS // num_warps,
        "programs": MOST_PROGRAMS,
    }
    limit = min(programs, key=programs.__getitem__)
    return Occupancy(programs[limit], programs[limit] * num_warps, limit)


def row(report: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the record, from a report of aot_compile.py."""
    found = occupancy(report["capability"], report["num_warps"], report["registers"], report["shared_bytes"])
    kept = ("case", "kernel", "capability", "rows", "columns", "num_warps", "registers", "shared_bytes")
    return {
        **{name: report[name] for name in kept},
        "spills": report["LDL"] + report["STL"],
        "exponentials": report["MUFU.EX2"],
        "global_loads": sum(report[name] for name in LOADS),
        "programs": found.programs,
        "warps": found.warps,
        "limited_by": found.limited_by,
    }


def render(record: Mapping[str, Any]) -> str:
    """The table: a line for every kernel of every case, with the GPUs side by side."""
    places: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for each in record["rows"]:
        places.setdefault((each["case"], each["kernel"]), {})[each["capability"]] = each
    head = (
        "| case | kernel | GPU | tile, warps | registers | shared KiB | programs | warps | limited by | EX2 | loads |"
    )
    lines = [head, "|---|---|---|---|---:|---:|---:|---:|---|---:|---:|"]
    for (case, kernel), by_capability in places.items():
        lines += [_line(case, kernel, each) for each in by_capability.values()]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join([*lines, "", f"{record['date']}, commit {record['commit'][:12]}; compiled by {versions}.", ""])


def _line(case: str, kernel: str, each: Mapping[str, Any]) -> str:
    tile = f"{each['rows']} x {each['columns']}, " if each["columns"] else ""
    cells = [
        case,
        kernel,
        f"sm_{each['capability']}",
        f"{tile}{each['num_warps']}",
        each["registers"],
        f"{each['shared_bytes'] / 1024:.1f}",
        each["programs"],
        each["warps"],
        each["limited_by"],
        each["exponentials"],
        each["global_loads"],
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def fill(page: str, table: str) -> str:
    """The page with the table in its place."""
    before, _, rest = page.partition(START)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{PAGE} has no place for the table; expected: a line {START}, and after it a line {END}")
    return f"{before}{START}\n\n{table}\n{END}{after}"


def record_of(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What is kept: when, by what, and the rows."""
    from kd_megatron.machine import facts

    known = facts.facts(("torch", "triton"))
    kept = {name: known[name] for name in ("commit", "uncommitted_changes", "versions")}
    return {"date": time.strftime("%Y-%m-%d"), **kept, "rows": [row(report) for report in reports]}


def main() -> None:
    """Compile, write the record, and put the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only-render", action="store_true", help="compile nothing: the page, from the record")
    if not parser.parse_args().only_render:
        import aot_cases
        import aot_compile

        shipped = [name for name, case in aot_cases.CASES.items() if not case.spills]
        record = record_of(aot_compile.reports(shipped))
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), render(record)), encoding="utf-8")


if __name__ == "__main__":
    main()
