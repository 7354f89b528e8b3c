"""How many cores this process may really use, and how its threads wait for each other."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
TOPOLOGY = Path("/sys/devices/system/cpu")
# Rounds that a thread of libgomp spins at a barrier before it sleeps; libgomp's own 300,000 burn the time slices of a
# core that another process could use, the other thread's among them. docs/performance.md has the measurement.
SPIN_COUNT = "1000"


def settle() -> None:
    """Set threads and their waiting for the libraries that this process loads next, torch first, where nobody has.

    The number does not follow the machine's load: the order of a sum hangs on it, and a run must resume bit for bit.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def load_advice() -> str | None:
    """A sentence where other processes want the cores of this one's threads; None where they are free."""
    num_threads, cores = int(os.environ.get("OMP_NUM_THREADS") or 1), usable_cores()
    busy = os.getloadavg()[0]
    if num_threads < 2 or busy < cores:
        return None
    return (
        f"the machine is busy (load {busy:.1f} on {cores} cores): {num_threads} threads often wait for each other; "
        "with OMP_NUM_THREADS=1 the same work is faster until it is free"
    )


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
