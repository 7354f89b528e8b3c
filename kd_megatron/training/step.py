"""One optimizer step: teacher, student, objective, globally normalised loss, update; and what the steps came to.

A host that reads a number of every step waits for the device at every step. Sums, gradient norm and the first loss or
gradient that is not finite therefore stay on the device until they are looked at, which is the one place where the host
waits.

Shapes: T terms of the objective.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kd_megatron.engine.build import Engine
from kd_megatron.errors import NonFiniteError
from kd_megatron.ledger import Ledger
from kd_megatron.models.taps import TappedEncoder
from kd_megatron.objectives.base import Objective
from kd_megatron.ranks import dist
from kd_megatron.tensors import Batch, Taps
from kd_megatron.training.copying import DeviceCopies
from kd_megatron.training.teacher import Teacher


@dataclass(frozen=True)
class StepReading:
    """The steps since the last reading, the same on every rank."""

    sums: dict[str, float]  # of each term over the global batches
    counts: dict[str, float]
    grad_norm: float  # of the last step, before clipping
    clipped_share: float  # of the gradient that clipping took away, mean over the steps


class Watch:
    """The numbers of the steps since the last reading.

    Args:
        clipping: the gradient norm that is clipped at; 0 where none is.
    """

    def __init__(self, terms: Sequence[str], device: torch.device, clipping: float = 0.0) -> None:
        self.terms = tuple(terms)
        self.sums = torch.zeros(len(self.terms), dtype=torch.float64, device=device)  # [T], of this rank
        self.counts = dict.fromkeys(self.terms, 0.0)  # of all ranks
        self.grad_norm = torch.zeros((), device=device)
        self.clipping, self._steps = clipping, 0
        self._clipped = torch.zeros((), device=device)  # the sum over steps of what clipping took
        self.bad = torch.zeros((), device=device)  # 1 from the first step on that is not finite on any rank
        self._bad_terms = torch.zeros(
            len(self.terms), dtype=torch.bool, device=device
        )  # [T], of this rank, of that step
        self._bad_step = torch.zeros(3, dtype=torch.int64, device=device)  # step, first and last sample id of this rank

    def before_update(self, sums: Tensor, counts: dict[str, float]) -> None:
        """Take in one step's term sums (this rank's, [T]) and counts (of all ranks). Collective."""
        self._bad_terms |= ~sums.isfinite() & (self.bad == 0)
        self.bad = torch.maximum(self.bad, dist.all_reduce(self._bad_terms.any().float(), "max"))
        self.sums += sums
        self.counts = {term: count + counts[term] for term, count in self.counts.items()}

    def after_update(self, grad_norm: Tensor, step: int, first_sample: Tensor, last_sample: Tensor) -> None:
        """Take in one step's gradient norm, and remember the step if it is the first bad one."""
        self.grad_norm = grad_norm
        self._steps += 1
        if self.clipping > 0.0:
            self._clipped += 1.0 - (self.clipping / grad_norm.clamp(min=1e-30)).clamp(max=1.0)
        this_step = torch.stack([torch.full_like(first_sample, step), first_sample, last_sample])
        is_first = (self.bad > 0) & (self._bad_step[0] == 0)
        self._bad_step = torch.where(is_first, this_step, self._bad_step)

    def check(self) -> None:
        """Wait for the device. Collective when it raises, and then on all ranks.

        Raises:
            NonFiniteError: a loss or gradient was not finite; nothing was updated from that step on.
        """
        if self.bad.item():
            self._raise()

    def read(self) -> StepReading:
        """The steps since the last reading; the next one begins anew. Collective; raises as `check` does."""
        self.check()
        sums = dist.all_reduce(self.sums.cpu()).tolist()
        clipped = self._clipped.item() / max(1, self._steps)
        reading = StepReading(dict(zip(self.terms, sums, strict=True)), self.counts, self.grad_norm.item(), clipped)
        self.sums.zero_()
        self._clipped.zero_()
        self._steps = 0
        self.counts = dict.fromkeys(self.terms, 0.0)
        return reading

    def _raise(self) -> None:
        step, first, last = self._bad_step.tolist()
        terms = [term for term, bad in zip(self.terms, self._bad_terms.tolist(), strict=True) if bad]
        ranks = dist.gather((terms, first, last))
        losses = [
            f"samples {first}-{last} on rank {rank}): loss term {', '.join(terms)}"
            for rank, (terms, first, last) in enumerate(ranks)
            if terms
        ]
        everywhere = f"samples {ranks[0][1]}-{ranks[-1][2]}): a gradient"
        raise NonFiniteError(
            given=f"step {step} ({losses[0] if losses else everywhere} is not finite",
            expected="finite losses and gradients on every rank; the weights were not updated from that step on",
            fix="lower training.learning_rate or lengthen the warm-up, then run the same command to resume",
        )


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
        self._copies = DeviceCopies(engine.device)

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
            with contextlib.ExitStack() as stack:
                with self.ledger.clock("data_wait"):
                    here = stack.enter_context(self._copies.on_device(batch))
                sums += self._micro_batch(here, counts)
                ids = here.sample_ids
            if index == 0:
                first = ids[0]
            if index + 1 < len(batches):
                with self.ledger.clock("student"):
                    self.engine.end_micro_batch()
        with self.ledger.clock("student"):
            self.watch.before_update(sums, counts)
            grad_norm = self.engine.update(learning_rate, self.watch.bad)
            self.watch.after_update(grad_norm, self.ledger.steps + 1, first, ids[-1])
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
