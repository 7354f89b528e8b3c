"""Runs of a tiny study on the fake GPU."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_study import tiny_study

from benchmarks.model import fake_library
from benchmarks.model.fake_cuda import FakeCuda
from kd_megatron.data.prefetch import Prefetcher
from kd_megatron.ranks.signals import StopRequest
from kd_megatron.training.loop import charge, one_step
from kd_megatron.training.setup import Run, prepare_run

needs_fake_cuda = pytest.mark.skipif(fake_library.missing() is not None, reason=str(fake_library.missing()))


@contextlib.contextmanager
def prepared(
    inputs: Path, directory: Path, arm: str, training: dict[str, Any] | None = None, **sections: Any
) -> Iterator[Run]:
    """A run of ``arm``, as wide as its teacher, two micro-batches a step; ``sections`` replace keys of the study's."""
    sections = {"student": {"hidden_size": 32}, "training": {"micro_batch_size": 4} | (training or {}), **sections}
    study = tiny_study(inputs, **sections)
    run = prepare_run(study, arm, 0, directory, str(inputs / "teacher"))
    try:
        yield run
    finally:
        run.close()


def steps(fake: FakeCuda, run: Run, number: int) -> None:
    """So many steps, in which the host must wait for nothing."""
    with Prefetcher(run.micro_batches, first=run.ledger.steps) as batches:
        for _ in range(number):
            with fake.hot():
                one_step(run, batches, 1e-3, StopRequest())
                charge(run)
