"""Runs that take one whole training step when they are asked to: what `calibrate` and `bench step` time."""

import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from kd_megatron.data.prefetch import Prefetcher
from kd_megatron.ranks import dist
from kd_megatron.ranks.signals import StopRequest
from kd_megatron.recipe import StudyRecipe
from kd_megatron.training.loop import charge, one_step
from kd_megatron.training.setup import Run, prepare_run


class TimedRun:
    """One arm, built and warm. Collective, as its steps are.

    Args:
        study: with the arm's own overrides applied.
        change: what is to be carried out otherwise, before the first step.
    """

    def __init__(
        self,
        study: StudyRecipe,
        arm: str,
        directory: Path,
        teacher_path: str | None,
        num_warmup_steps: int = 2,
        change: Callable[[Run], None] = lambda run: None,
    ) -> None:
        self.run = prepare_run(study, arm, study.seeds[0], directory, teacher_path)
        change(self.run)
        self._batches = Prefetcher(self.run.micro_batches, first=0)
        for _ in range(num_warmup_steps):
            self.step()

    @property
    def num_tokens(self) -> int:
        """Of one step, all ranks together."""
        return self.run.study.training.global_batch_size * self.run.study.data.sequence_length

    def step(self) -> None:
        """One optimizer step, from the loader to the new weights."""
        one_step(self.run, self._batches, self.run.study.training.learning_rate, StopRequest())
        charge(self.run)
        dist.barrier()

    def close(self) -> None:
        """End its threads and give its memory back."""
        self._batches.close()
        self.run.close()


Key = TypeVar("Key")
Timed = TypeVar("Timed", bound=TimedRun)


@contextmanager
def built(makers: Mapping[Key, Callable[[Path], Timed]]) -> Iterator[dict[Key, Timed]]:
    """What ``makers`` make, each in a directory of its own, by the same names; memory is given back in the end."""
    runs: dict[Key, Timed] = {}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for number, (name, make) in enumerate(makers.items()):
            runs[name] = make(scratch / str(number))
            stack.callback(runs[name].close)
        yield runs
    runs.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
