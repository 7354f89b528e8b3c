"""As block.py, beside a teacher of which the k likeliest tokens are known: they and the rest are k + 1 outcomes.

Shapes: R rows of a block, N rows in all, V vocabulary, k tokens whose probability is known.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from kd_megatron.kernels.vocab_kl.block import Softmax, Targets, softmax_in_place
from kd_megatron.tensors import TopLogits


@dataclass(frozen=True)
class TopRows:
    """The teacher's side: what is known of each row."""

    token_ids: Tensor  # [N, k] int64, distinct in a row
    log_probabilities: Tensor  # [N, k + 1], at temperature T; the last is that of all other tokens together

    @classmethod
    def of(cls, teacher: TopLogits, used: Tensor, dtype: torch.dtype) -> Self:
        """Those of ``teacher``; harmless ones at rows not ``used`` [N], whatever stands there."""
        unused = ~used[:, None]
        some_ids = torch.arange(teacher.token_ids.shape[1], device=unused.device)
        outcomes = torch.cat([teacher.log_probabilities.to(dtype), teacher.log_rest[:, None].to(dtype)], dim=-1)
        return cls(torch.where(unused, some_ids, teacher.token_ids), outcomes.masked_fill(unused, 0.0))

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(self.token_ids[rows], self.log_probabilities[rows])


@dataclass(frozen=True)
class Outcomes:
    """What the gradient is made of: among the k + 1 outcomes, and within the last of them."""

    teacher: TopRows
    student: Tensor  # [R, k + 1] logarithms, at temperature 1
    tempered: Tensor  # [R, k + 1] logarithms, at temperature T
    rest: Softmax  # of the other tokens alone, at temperature 1
    tempered_rest: Softmax  # at temperature T; ``rest`` itself at T = 1

    def put_gradient(self, targets: Targets) -> None:
        """Put the gradient of the student's logits, [R, V], in the place of ``rest``."""
        target = self.teacher.log_probabilities.exp()
        tempered = self.tempered.exp_().mul_(target.sum(-1, keepdim=True)).sub_(target).mul_(targets.divergence)
        student = self.student.exp_().mul_(targets.cross_entropy)
        both = student + tempered
        if self.tempered_rest is self.rest:
            gradient = self.rest.times(both[:, -1:])
        else:
            gradient = self.rest.times(student[:, -1:])
            gradient.addcmul_(self.tempered_rest.numerators, tempered[:, -1:] / self.tempered_rest.sums)
        gradient.scatter_(-1, self.teacher.token_ids, both[:, :-1])
        gradient.scatter_add_(-1, targets.labels, -targets.cross_entropy)


def losses_of_top(
    student: Tensor, teacher: TopRows, spare: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Outcomes]:
    """Divergence over the k + 1 outcomes [R] and cross-entropy [R]; the logits give their memory to the softmaxes.

    Args:
        student: [R, V] logits.
        teacher: of these rows.
        spare: [R, V], of any content; it is overwritten.
        labels: [R, 1] int64.
        temperature: T > 0.
    """
    label_logits, top_logits = student.gather(-1, labels), student.gather(-1, teacher.token_ids)
    student.scatter_(-1, teacher.token_ids, -math.inf)
    # All logits are taken relative to the largest of the rest: the rest has digits also where its share is tiny.
    shift = student.amax(-1, keepdim=True)
    shift.masked_fill_(shift == -math.inf, 0.0)  # k = V: there is no rest
    student.sub_(shift)
    top_logits.sub_(shift)
    if temperature == 1.0:
        tempered_rest = rest = softmax_in_place(student)
    else:
        tempered_rest = softmax_in_place(torch.mul(student, 1.0 / temperature, out=spare))
        rest = softmax_in_place(student)
    logits = torch.cat([top_logits, rest.sums.log()], dim=-1)  # of the outcomes
    tempered = torch.cat([top_logits / temperature, tempered_rest.sums.log()], dim=-1).log_softmax(-1)
    log_total = logits.logsumexp(-1, keepdim=True)
    cross_entropy = log_total - (label_logits - shift)
    outcomes = Outcomes(teacher, logits - log_total, tempered, rest, tempered_rest)
    log_target = teacher.log_probabilities
    terms = log_target.exp() * (log_target - tempered)
    divergence = terms.masked_fill_(log_target == -math.inf, 0.0).sum(-1)  # an outcome ruled out adds 0
    return divergence, cross_entropy.squeeze(-1), outcomes
