"""One optimizer step: teacher, student, objective, globally normalised loss, update."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kd_megatron import dist
from kd_megatron.budget import Ledger
from kd_megatron.engine.build import Engine
from kd_megatron.errors import NonFiniteError
from kd_megatron.models.taps import TappedEncoder
from kd_megatron.objectives.base import Objective
from kd_megatron.tensors import Batch, Taps
from kd_megatron.training.teacher import Teacher


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


@dataclass(frozen=True)
class StepResult:
    """What one step yields, the same on every rank."""

    sums: dict[str, float]  # of each term over the global batch
    counts: dict[str, float]
    grad_norm: float
    stop: bool  # some rank was asked to stop


class Step:
    """Runs optimizer steps.

    Args:
        engine: around a `StudentWithObjective`.
        objective: the same one, for counts and weights.
        teacher: None for objectives without one.
        ledger: charged for teacher, student and loss time.
    """

    def __init__(self, engine: Engine, objective: Objective, teacher: Teacher | None, ledger: Ledger) -> None:
        self.engine, self.objective, self.teacher, self.ledger = engine, objective, teacher, ledger

    def run(self, batches: Sequence[Batch], learning_rate: float, stop: bool) -> StepResult:
        """Train on this rank's micro-batches of one global batch.

        Raises:
            NonFiniteError: a loss or gradient is not finite on any rank; raised on all, before the update.
        """
        counts = self._global_counts(batches)
        sums = torch.zeros(len(counts), dtype=torch.float64)
        for index, batch in enumerate(batches):
            sums += self._micro_batch(batch, counts)
            if index + 1 < len(batches):
                with self.ledger.clock("student"):
                    self.engine.end_micro_batch()
        *totals, stops = dist.all_reduce(torch.cat([sums, torch.tensor([float(stop)])])).tolist()
        where = f"step {self.ledger.steps + 1} (samples {_range(batches)} on rank {dist.rank()})"
        self._check_finite(dict(zip(counts, totals, strict=True)), where)
        with self.ledger.clock("student"):
            grad_norm = self.engine.update(learning_rate, where)
        return StepResult(dict(zip(counts, totals, strict=True)), counts, grad_norm, stops > 0)

    def _global_counts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Targets of each term in the whole global batch; known before any model runs."""
        local: dict[str, Tensor] = {}
        for batch in batches:
            for term, count in self.objective.counts(batch).items():
                local[term] = local.get(term, torch.zeros((), dtype=torch.float64)) + count.double().cpu()
        total = dist.all_reduce(torch.stack(list(local.values()))).tolist()
        return dict(zip(local, total, strict=True))

    def _micro_batch(self, batch: Batch, counts: dict[str, float]) -> Tensor:
        """Forward and backward of one micro-batch; returns its term sums, float64 on the CPU, in the counts' order."""
        taps = None
        if self.teacher is not None:
            with self.ledger.clock("teacher"):
                taps = self.teacher(batch, self.objective.options.inputs)
        with self.ledger.clock("student"):
            sums = self.engine.forward(batch, taps)
            loss = sum(self.objective.weights[term] * sums[term] / max(1.0, counts[term]) for term in counts)
            assert isinstance(loss, Tensor)
            self.engine.backward(loss)
        return torch.stack([sums[term].detach().double() for term in counts]).cpu()

    def _check_finite(self, totals: dict[str, float], where: str) -> None:
        bad = [term for term, value in totals.items() if not math.isfinite(value)]
        if bad:
            raise NonFiniteError(
                given=f"{where}: loss term {', '.join(bad)} is not finite",
                expected="finite losses on every rank; the weights were not updated and the last checkpoint is good",
                fix="lower training.learning_rate or lengthen the warm-up, then run the same command to resume",
            )


def _range(batches: Sequence[Batch]) -> str:
    return f"{int(batches[0].sample_ids[0])}-{int(batches[-1].sample_ids[-1])}"
