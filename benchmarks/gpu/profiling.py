"""Where the time of a training step goes: its kernels by time, and a trace."""

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as record

from benchmarks.gpu.report import Report
from benchmarks.steps.variants import TimedVariant

NUM_STEPS = 3
NUM_KERNELS = 30


def profile(run: TimedVariant, name: str, report: Report) -> None:
    """Say the kernels of `NUM_STEPS` steps that take longest, and write ``trace_NAME.json.gz`` of them.

    The trace is read by https://ui.perfetto.dev, which sends it nowhere.
    """
    on_a_gpu = run.run.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_a_gpu]
    run.step()
    if on_a_gpu:
        torch.cuda.synchronize()
    with record(activities=activities, acc_events=True) as recorded:
        for _ in range(NUM_STEPS):
            run.step()
        if on_a_gpu:
            torch.cuda.synchronize()
    place = "device" if on_a_gpu else "cpu"
    events = recorded.key_averages()
    shown = [event for event in events if not on_a_gpu or event.device_type == torch.autograd.DeviceType.CUDA]
    times = {event.key: getattr(event, f"self_{place}_time_total") for event in shown}
    counts = {event.key: event.count for event in shown}
    total = sum(times.values())
    report.say(f"{name}: the {NUM_KERNELS} kernels that take longest, of {total / NUM_STEPS / 1000:.4g} ms a step")
    for key in sorted(times, key=lambda key: -times[key])[:NUM_KERNELS]:
        kernel = {"ms_per_step": times[key] / NUM_STEPS / 1000, "share": times[key] / total}
        kernel |= {"calls_per_step": counts[key] / NUM_STEPS}
        report.say("  {ms_per_step:9.4f} ms  {share:6.1%}  {calls_per_step:6.1f} calls  ".format(**kernel) + key[:90])
        report.found["kernels"].append({"profile": name, "kernel": key} | kernel)
    recorded.export_chrome_trace(str(report.directory / f"trace_{name}.json.gz"))
