"""Check, time and tune the kernels on a GPU, then whole training steps. `gpu_check.sh` runs it.

The kernels need torch, triton and numpy alone, the steps what benchmarks/gpu_wheels.txt lists. Writes gpu_check.json
and gpu_check.txt. What the time does not allow is skipped, and said to be. Exit code 1 when a check is red.
"""

import argparse
import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.gpu.report import Report

KERNELS_SHARE = 0.35  # of the time, where whole steps follow
NEEDED = ("deepspeed", "megatron", "pydantic", "psutil", "rich", "safetensors", "tokenizers", "transformers", "yaml")


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    output = os.environ.get("OUT", "benchmarks/results")
    parser.add_argument("--output", type=Path, default=Path(output), help=f"directory to write to (now: {output})")
    parser.add_argument("--minutes", type=float, default=9.0, help="the time for all of it (default: 9)")
    parser.add_argument("--only", choices=("kernels", "steps"), help="one half, with all the time for it")
    parser.add_argument("--dry-run", action="store_true", help="small, on a CPU, in Triton's interpreter")
    parser.add_argument("--has-packages", action="store_true", help="run nothing; exit code 0 if whole steps can run")
    arguments = parser.parse_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if arguments.has_packages:
        return 1 if missing else 0
    if arguments.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: it is read when a kernel is decorated

    import torch

    from benchmarks.gpu.report import Report

    if not arguments.dry_run and not torch.cuda.is_available():
        parser.error("no GPU was found; --dry-run needs none")
    report = Report(arguments.output, arguments.minutes)
    if arguments.only != "steps":
        _check_kernels(arguments.dry_run, report, alone=bool(missing) or arguments.only == "kernels")
    if arguments.only != "kernels":
        if missing:
            fix = "benchmarks/gpu_wheels.sh, where there is a package index, fills benchmarks/wheels"
            report.skip("whole steps", f"\nwhole steps are skipped: no {', '.join(missing)} here; {fix}")
        else:
            report.guarded("whole steps", _time_steps, arguments.dry_run, report)
    return report.finish()


def _check_kernels(dry_run: bool, report: "Report", alone: bool) -> None:
    from benchmarks.gpu import device_check, device_sizes

    end = report.end if alone else report.moment(KERNELS_SHARE)
    device_check.DeviceCheck(device_sizes.DRY_RUN if dry_run else device_sizes.GPU, report, end).run()


def _time_steps(dry_run: bool, report: "Report") -> None:
    start = time.perf_counter()
    from benchmarks.gpu import device_step_sizes, device_steps
    from kd_megatron.ranks import dist

    report.say(f"\nimported what whole steps need in {time.perf_counter() - start:.0f} s")
    try:
        device_steps.run(device_step_sizes.DRY_RUN if dry_run else device_step_sizes.GPU, report)
    finally:
        dist.shut_down()


if __name__ == "__main__":
    sys.exit(main())
