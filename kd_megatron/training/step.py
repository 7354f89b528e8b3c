"""One optimizer step: teacher, student, objective, globally normalised loss, update."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd_megatron.engine.build import Engine
from kd_megatron.ledger import Ledger
from kd_megatron.models.taps import TappedEncoder
from kd_megatron.objectives.base import Objective
from kd_megatron.ranks import dist
from kd_megatron.tensors import Batch, Taps
from kd_megatron.training.teacher import Teacher
from kd_megatron.training.watch import StepReading, Watch


class StudentWithObjective(nn.Module):
    """Student and objective in one module, so that an objective's own parameters are trained by the same engine."""

    def __init__(self, student: TappedEncoder, objective: Objective, ledger: Ledger) -> None:
        super().__init__()
        self.student, self.objective, self.ledger = student, objective, ledger

    def forward(self, batch: Batch, teacher: Taps | None) -> dict[str, Tensor]:
        """The sum of each term of the objective over this micro-batch."""
        taps = self.student(batch, self.objective.options.inputs)
        with self.ledger.clock("loss"):
            sums: dict[str, Tensor] = self.objective(taps, teacher, batch)
        return sums


class Step:
    """Runs optimizer steps. On a GPU the host waits for none of them, only in `check` and `read`.

    Args:
        engine: around a `StudentWithObjective`.
        teacher: None for objectives without one.
        ledger: charged for teacher, student and loss time.
    """

    def __init__(self, engine: Engine, objective: Objective, teacher: Teacher | None, ledger: Ledger) -> None:
        self.engine, self.objective, self.teacher, self.ledger = engine, objective, teacher, ledger
        self.watch = Watch(list(objective.weights), engine.device, engine.recipe.gradient_clipping)
        self.checks_every_step = engine.device.type == "cpu"  # where looking costs nothing

    def run(self, batches: Sequence[Batch], learning_rate: float, stop: bool) -> bool:
        """Train on this rank's micro-batches of one global batch; returns whether some rank was asked to stop.

        From the first loss or gradient that is not finite on any rank, nothing is updated any more; `check` and
        `read` then raise.

        Args:
            batches: on the CPU; each goes to the device when its turn comes.
        """
        counts, some_rank_stops = self._global_counts(batches, stop)
        sums = torch.zeros_like(self.watch.sums)
        for index, batch in enumerate(batches):
            with self.ledger.clock("data_wait"):
                here = batch.to(self.engine.device)
            sums += self._micro_batch(here, counts)
            if index == 0:
                first = here.sample_ids[0]
            if index + 1 < len(batches):
                with self.ledger.clock("student"):
                    self.engine.end_micro_batch()
        with self.ledger.clock("student"):
            self.watch.before_update(sums, counts)
            grad_norm = self.engine.update(learning_rate, self.watch.bad)
            self.watch.after_update(grad_norm, self.ledger.steps + 1, first, here.sample_ids[-1])
        if self.checks_every_step:
            self.check()
        return some_rank_stops

    def check(self) -> None:
        """Wait for the steps so far; raises `NonFiniteError`, on all ranks, when one of them was not finite."""
        with self.ledger.clock("student"):
            self.watch.check()

    def read(self) -> StepReading:
        """What the steps since the last reading came to. Collective; waits and raises as `check` does."""
        with self.ledger.clock("student"):
            return self.watch.read()

    def _global_counts(self, batches: Sequence[Batch], stop: bool) -> tuple[dict[str, float], bool]:
        """Targets of each term in the whole global batch, and whether any rank was asked to stop.

        Known before any model runs, from batches that are still on the CPU: the device is not waited for.
        """
        local = torch.zeros(len(self.watch.terms) + 1, dtype=torch.float64)
        local[-1] = float(stop)
        for batch in batches:
            counts = self.objective.counts(batch)
            local[:-1] += torch.stack([counts[term] for term in self.watch.terms])
        *total, stops = dist.all_reduce(local).tolist()
        return dict(zip(self.watch.terms, total, strict=True)), stops > 0

    def _micro_batch(self, batch: Batch, counts: dict[str, float]) -> Tensor:
        """Forward and backward of one micro-batch; returns its term sums [T], float64 on the device."""
        taps = None
        if self.teacher is not None:
            with self.ledger.clock("teacher"):
                taps = self.teacher(batch, self.objective.options.inputs)
        with self.ledger.clock("student"):
            sums = self.engine.forward(batch, taps)
            loss = sum(self.objective.weights[term] * sums[term] / max(1.0, counts[term]) for term in counts)
            assert isinstance(loss, Tensor)
            self.engine.backward(loss)
        return torch.stack([sums[term].detach().double() for term in self.watch.terms])
