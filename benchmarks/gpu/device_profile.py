"""Where the time of a training step goes on a GPU: a table of kernels, and a trace for a viewer, of some arms."""

from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.report import Report
from benchmarks.steps.variants import TimedVariant
from benchmarks.timing import synchronize

PROFILED_ARMS = ("scratch", "minilm")
NUM_KERNELS, NUM_STEPS = 30, 3


def profile_steps(run: TimedVariant, report: Report) -> Path:
    """Profile a few steps of ``run``; the table is said, table and trace are left in the report's directory.

    Returns:
        The trace, for chrome://tracing or Perfetto.
    """
    device = run.run.device
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    run.step()
    synchronize(device)
    with profile(activities=activities) as profiler:
        for _ in range(NUM_STEPS):
            run.step()
        synchronize(device)
    name = f"{run.variant.arm} {run.variant.backend}".replace(" + ", "_").replace(" ", "_")
    found = profiler.key_averages()
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    table = found.table(sort_by=order, row_limit=NUM_KERNELS, max_name_column_width=80)
    report.say(f"profile of {NUM_STEPS} steps, {run.variant.key}: the {NUM_KERNELS} that took most")
    report.say(table)
    for event in sorted(found, key=lambda one: -float(getattr(one, order)))[:NUM_KERNELS]:
        row = {"arm": run.variant.arm, "lever": run.variant.backend, "kernel": event.key, "calls": event.count}
        report.found["profile"].append(row | {"ms_per_step": float(getattr(event, order)) / 1000 / NUM_STEPS})
    trace = report.directory / f"trace_{name}.json.gz"
    profiler.export_chrome_trace(str(trace))
    return trace
