"""Ends what an earlier attempt of a run left on this node, such as ranks that a broken link cut off.

``python -m kd_megatron.launch.leftovers RUN``: the processes whose environment names an attempt of RUN.
"""

import sys

import psutil


def main() -> int:
    """Kill them; 0 also when there are none."""
    (run,) = sys.argv[1:]
    for process in psutil.process_iter():
        try:
            if process.environ().get("KD_RUN_ID", "").startswith(f"{run}."):
                process.kill()
        except psutil.Error:  # it has ended, or is another user's
            continue
    return 0


if __name__ == "__main__":
    sys.exit(main())
