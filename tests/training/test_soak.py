"""10,000 steps in one process: memory and the number of Python objects stay where they were after 1,000."""

import gc
from pathlib import Path

import numpy as np
import pytest
from processes import run
from tiny_study import ARMS, tiny_study, write_inputs
from tolerances import SOAK_MIB_PER_1000_STEPS, SOAK_OBJECTS_PER_1000_STEPS

from kd_megatron.console import logs
from kd_megatron.data.prefetch import Prefetcher
from kd_megatron.ranks import dist
from kd_megatron.ranks.process import keep_freed_memory
from kd_megatron.ranks.signals import StopRequest
from kd_megatron.training.loop import Progress, charge, one_step
from kd_megatron.training.setup import prepare_run

NUM_STEPS, WARM_UP, EVERY = 10_000, 1_000, 100


def resident_mib() -> float:
    """What this process holds of the machine's memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20


def soak(inputs: Path, arm: str) -> None:
    """All steps of one arm; fails when memory or objects grow. To be run in a process of its own."""
    keep_freed_memory()  # as every command of ours does
    logs.quiet_libraries()
    dist.initialise()
    study = tiny_study(inputs, training={"tensorboard": False})
    prepared = prepare_run(study, arm, 0, inputs / arm, str(inputs / "teacher"))
    progress = Progress(prepared)
    steps, memory, objects = [], [], []
    with Prefetcher(prepared.micro_batches, first=0) as batches:
        for step in range(1, NUM_STEPS + 1):
            one_step(prepared, batches, 1e-3, StopRequest())
            charge(prepared)
            if step % EVERY == 0:
                progress.report(prepared.step.read(), fraction=step / NUM_STEPS, rate=1e-3)
                if step >= WARM_UP:
                    gc.collect()
                    steps.append(step / 1000)
                    memory.append(resident_mib())
                    objects.append(len(gc.get_objects()))
    growth, more = (float(np.polyfit(steps, values, 1)[0]) for values in (memory, objects))
    print(f"{arm}: MiB {[round(mib, 1) for mib in memory[::10]]}, objects {objects[::10]}")
    assert growth <= SOAK_MIB_PER_1000_STEPS, f"{growth:.3f} MiB per 1,000 steps: {memory}"
    assert more <= SOAK_OBJECTS_PER_1000_STEPS, f"{more:.1f} objects per 1,000 steps: {objects}"


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("arm", ARMS)
def test_10_000_steps_leave_memory_flat(arm: str, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    call = f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n"
    program = f"{call}from pathlib import Path; import test_soak; test_soak.soak(Path({str(inputs)!r}), {arm!r})"
    print(run(["-c", program], timeout_seconds=1700))
