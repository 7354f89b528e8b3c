"""How many cores this process may really use, and how its threads wait for each other."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
TOPOLOGY = Path("/sys/devices/system/cpu")
LOADAVG = Path("/proc/loadavg")
# Rounds that a thread of libgomp spins at a barrier before it sleeps; libgomp's own 300,000 burn the time slices of a
# core that another process could use, the other thread's among them. docs/performance.md has the measurement.
SPIN_COUNT = "1000"


_notes: list[str] = []


def settle() -> None:
    """Set threads and their waiting for the libraries that this process loads next, torch first, where nobody has.

    Cores that other processes keep busy are not counted: threads that share a core wait for each other at every
    barrier. The number stays what it is until the process ends, as the order of a sum hangs on it.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        cores, busy = usable_cores(), busy_cores()
        free = max(1, round(cores - busy))
        os.environ["OMP_NUM_THREADS"] = str(max(1, free // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))
        if free < cores:
            _notes.append(
                f"other processes keep {busy:.1f} of {cores} cores busy, so that this command computes with {free}; "
                f"OMP_NUM_THREADS={cores} takes all"
            )
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def note() -> str | None:
    """What `settle` has to say to the user of a command that computes for long; None: nothing."""
    return " ".join(_notes) or None


def busy_cores() -> float:
    """How many threads of other processes run now and, on average, ran in the last minute: the smaller of the two.

    The one alone would count what has just ended, the other what has just begun and may end at once.
    """
    try:
        words = LOADAVG.read_text(encoding="ascii").split()
        running_now = int(words[3].partition("/")[0]) - 1  # without this one
        return max(0.0, min(float(words[0]), running_now))
    except (OSError, ValueError, IndexError):
        return 0.0


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
