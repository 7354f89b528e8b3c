"""How many cores this process may really use."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
TOPOLOGY = Path("/sys/devices/system/cpu")


def usable_cores() -> int:
    """Cores, not hardware threads, that the affinity mask and the CPU quota of the control group leave to this process.

    Two hardware threads of one core share its arithmetic units and only wait for each other.
    """
    allowed = os.sched_getaffinity(0)
    cores = {_siblings(cpu) for cpu in allowed}
    quota = _quota()
    return max(1, len(cores) if quota is None else min(len(cores), math.ceil(quota)))


def _siblings(cpu: int) -> str:
    """The hardware threads of the core of ``cpu``, as the kernel lists them; the thread itself where it does not."""
    try:
        return (TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text(encoding="ascii")
    except OSError:
        return str(cpu)


def _quota() -> float | None:
    """CPUs' worth of time that the control group grants (version 2, then 1); None without a limit."""
    try:
        limit, period = (CGROUP / "cpu.max").read_text(encoding="ascii").split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        files = (CGROUP / "cpu" / f"cpu.cfs_{what}_us" for what in ("quota", "period"))
        limit, period = (file.read_text(encoding="ascii") for file in files)
        return None if int(limit) <= 0 else int(limit) / int(period)
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    print(usable_cores())
