"""Whole training steps on a device, lever by lever, within a time: the second half of `benchmarks/gpu_check.sh`.

Every arm is built by every lever (device_step_sizes.py). Its first steps are compared with those of whole
models; what differs too much is red, and not timed. All that is left is timed in turn. A lever that fails is
red and ends nothing; one that runs out of memory tries smaller micro-batches and is then left out.
"""

import functools
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch._dynamo

from benchmarks.gpu import device_step_sizes
from benchmarks.gpu.device_place import PlaceSteps, free_memory
from benchmarks.gpu.device_step_sizes import StepSetting, StepSizes
from benchmarks.gpu.report import Report
from benchmarks.steps import made_up_inputs
from kd_megatron.console import logs
from kd_megatron.ranks import dist

TIME_TO_BUILD = 0.7  # of a place's time; the rest is for the rounds


def run(sizes: StepSizes, report: Report) -> None:
    """All places, each within its share of the time. Joins the process group."""
    logs.quiet_libraries()
    # More kinds of layers are compiled here than torch.compile expects; past its limit it would run them as they are.
    limits = {"recompile_limit": 64, "fail_on_recompile_limit_hit": True}
    compiler = torch.compiler.set_stance("default", force_backend=sizes.compiler) if sizes.compiler else nullcontext()
    with torch._dynamo.config.patch(limits), compiler:
        if report.guarded("process group", dist.initialise) is None:
            return
        for place in sizes.places:
            measure = functools.partial(_measure, sizes, place, report, report.moment(place.share))
            report.run({f"whole steps, {place}": functools.partial(report.guarded, str(place), measure)})


def _measure(sizes: StepSizes, place: StepSetting, report: Report, end: float) -> None:
    """One place, until ``end``."""
    recipe = device_step_sizes.recipe(place, sizes.precision)
    with (
        tempfile.TemporaryDirectory() as own,
        made_up_inputs.inputs(recipe, Path(own) / "runs") as (study, teacher),
        PlaceSteps(sizes, place, report, study, teacher, Path(own)) as steps,
    ):
        now = time.perf_counter()
        steps.build(now + TIME_TO_BUILD * (end - now))
        if place.has_targets:
            steps.profile()
        steps.time(end)
    torch.compiler.reset()
    free_memory()
