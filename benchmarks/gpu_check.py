"""Check, time and tune the kernels on a GPU; needs torch and triton alone. `gpu_check.sh` runs it.

Writes gpu_check.json and gpu_check.txt. What the time does not allow is skipped, and said to be. Exit code 1 when a
check is red.
"""

import argparse
import os
import sys
from pathlib import Path


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    output = os.environ.get("OUT", "benchmarks/results")
    parser.add_argument("--output", type=Path, default=Path(output), help=f"directory to write to (now: {output})")
    parser.add_argument("--minutes", type=float, default=9.0, help="the time for all of it (default: 9)")
    parser.add_argument("--dry-run", action="store_true", help="small, on a CPU, in Triton's interpreter")
    arguments = parser.parse_args()
    if arguments.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: it is read when a kernel is decorated

    import torch

    from kd_megatron.kernels.bench import device_check, device_sizes

    if not arguments.dry_run and not torch.cuda.is_available():
        parser.error("no GPU was found; --dry-run needs none")
    sizes = device_sizes.DRY_RUN if arguments.dry_run else device_sizes.GPU
    return device_check.DeviceCheck(sizes, arguments.output, arguments.minutes).run()


if __name__ == "__main__":
    sys.exit(main())
