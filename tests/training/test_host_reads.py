"""Between log steps the host reads nothing from the device (docs/numerics.md, "When the host waits for the device")."""

from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from host_reads import HostReads
from tiny_study import ARMS, tiny_study, write_inputs

from kd_megatron.data.prefetch import Prefetcher
from kd_megatron.ranks import dist
from kd_megatron.ranks.signals import StopRequest
from kd_megatron.training.loop import charge, one_step
from kd_megatron.training.setup import Run, prepare_run

NUM_STEPS = 3


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dist.initialise()
    return write_inputs(tmp_path_factory.mktemp("reads"))


def make_run(inputs: Path, directory: Path, arm: str, **training: Any) -> Run:
    """Two micro-batches a step; the host looks when it is told to, as on a GPU."""
    study = tiny_study(inputs, training={"micro_batch_size": 4, **training})
    run = prepare_run(study, arm, 0, directory, str(inputs / "teacher"))
    run.step.checks_every_step = False
    return run


def steps(run: Run, batches: Prefetcher[Any]) -> None:
    for _ in range(NUM_STEPS):
        one_step(run, batches, 1e-3, StopRequest())
        charge(run)


def reads_of_steps(run: Run, monkeypatch: pytest.MonkeyPatch) -> HostReads:
    """The reads of ``NUM_STEPS`` steps, after as many that are not counted."""
    reads, accelerator = HostReads(), get_accelerator()
    monkeypatch.setattr(accelerator, "synchronize", reads.counting(accelerator.synchronize))
    with Prefetcher(run.micro_batches, first=0) as batches:
        steps(run, batches)
        reads.places.clear()
        with reads:
            steps(run, batches)
    return reads


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_host_reads_nothing_between_log_steps(
    inputs: Path, tmp_path: Path, arm: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(inputs, tmp_path, arm, precision=precision)
    reads = reads_of_steps(run, monkeypatch)
    assert not reads.places, reads.places
    with reads:
        run.step.read()
    assert reads.by("kd_megatron") >= 3  # the flag, the sums and the norm: the counter does count


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("ds_config", "by_deepspeed"), [("zero1", 0), ("zero2", 0), ("zero3", 1)])
def test_what_deepspeed_reads_at_the_stages_that_partition(
    inputs: Path, tmp_path: Path, ds_config: str, precision: str, by_deepspeed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly what docs/numerics.md says, so that an update of DeepSpeed that changes it is seen."""
    run = make_run(inputs, tmp_path, "scratch", precision=precision, ds_config=ds_config, gradient_clipping=1.0)
    reads = reads_of_steps(run, monkeypatch)
    assert reads.by("kd_megatron") == 0, reads.places
    assert reads.by("deepspeed") == by_deepspeed * NUM_STEPS, reads.places
    run.step.read()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch reports waits of a GPU only")
@pytest.mark.parametrize("arm", ARMS)
def test_torch_reports_no_wait_on_a_gpu(inputs: Path, tmp_path: Path, arm: str) -> None:
    run = make_run(inputs, tmp_path, arm, precision="bf16")
    with Prefetcher(run.micro_batches, first=0) as batches:
        steps(run, batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            steps(run, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    run.step.read()
