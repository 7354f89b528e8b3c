"""The most memory that a computation holds at once, above what was there before."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import synchronize
from kd_megatron.machine import facts


def free_bytes(device: torch.device) -> int:
    """What can still be allocated on ``device``."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return facts.memory_bytes() // 2
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Peak of the allocator above the level at the start; ``step`` has run before, so that nothing is compiled.

    On a CPU it is the running sum of the allocator's events: all tensors, those of compiled code too, but not what a
    library takes from the system itself (the packing buffers of a matrix product, some MiB).
    """
    return _cuda_peak(step, device) if device.type == "cuda" else _cpu_peak(step)


def _cuda_peak(step: Callable[[], object], device: torch.device) -> int:
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_peak(step: Callable[[], object]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it would print a line at every start and stop
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        result = step()
    del result  # alive until here: what is returned counts
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak
