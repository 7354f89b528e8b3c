"""What the steps between two looks of the host came to, kept on the device until it looks.

A host that reads a number of every step waits for the device at every step. Sums, gradient norm and the first loss or
gradient that is not finite therefore stay on the device; reading them is the one place where the host waits.

Shapes: T terms of the objective.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_megatron.errors import NonFiniteError
from kd_megatron.ranks import dist


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
