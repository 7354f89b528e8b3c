"""From logits to losses and gradient for a block of rows, in the memory of the logits.

The teacher's side are logits too, or the k likeliest tokens: they and the rest are then k + 1 outcomes.

Shapes: R rows of a block, N rows in all, V vocabulary, k tokens whose probability is known.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from kd_megatron.tensors import IGNORED, TopLogits


@dataclass(frozen=True)
class Use:
    """Which rows each loss uses, and what of it goes into the gradient."""

    labels: Tensor  # [N] int64, or IGNORED
    kl_rows: Tensor  # [N] bool
    temperature: float
    gradient_weights: tuple[float, float]  # of divergence and cross-entropy

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(self.labels[rows], self.kl_rows[rows], self.temperature, self.gradient_weights)

    @property
    def of_logits(self) -> tuple[float, float]:
        """The weights as they stand before differences of probabilities in the gradient of the logits."""
        return self.gradient_weights[0] / self.temperature, float(self.gradient_weights[1])


@dataclass(frozen=True)
class Targets:
    """The label of each row, and the weight of each loss in the gradient of its logits: 0 where a loss has no use."""

    labels: Tensor  # [N, 1] int64, any token where a row has none
    divergence: Tensor  # [N, 1]: a / T
    cross_entropy: Tensor  # [N, 1]: b

    @classmethod
    def of(cls, use: Use, dtype: torch.dtype) -> Self:
        """Those of all rows."""
        labelled = use.labels != IGNORED
        divergence, cross_entropy = use.of_logits
        return cls(
            use.labels.masked_fill(~labelled, 0)[:, None],
            divergence=use.kl_rows.to(dtype)[:, None] * divergence,
            cross_entropy=labelled.to(dtype)[:, None] * cross_entropy,
        )

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(self.labels[rows], self.divergence[rows], self.cross_entropy[rows])


class Softmax(NamedTuple):
    """A softmax before its division, which the losses do without and the gradient takes along."""

    numerators: Tensor  # [R, V], exponentials of logits less their maximum: at most 1
    sums: Tensor  # [R, 1], at least 1

    def times(self, factor: Tensor) -> Tensor:
        """The softmax times ``factor`` [R, 1], in the place of the numerators."""
        return self.numerators.mul_(factor / self.sums)


class Softmaxes(NamedTuple):
    """What the gradient is made of. The divergence compares ``tempered`` with ``teacher``."""

    student: Softmax  # at temperature 1
    tempered: Softmax | None  # the student's at temperature T; ``student`` itself at T = 1; None without a teacher
    teacher: Softmax | None  # at temperature T

    def put_gradient(self, targets: Targets) -> None:
        """Put the gradient of the student's logits, [R, V], in the place of its softmax at temperature 1."""
        student, tempered, teacher = self
        weights = targets.cross_entropy + targets.divergence if tempered is student else targets.cross_entropy
        gradient = student.times(weights)
        if tempered is not None and tempered is not student:
            gradient.addcmul_(tempered.numerators, targets.divergence / tempered.sums)
        if teacher is not None:
            gradient.addcmul_(teacher.numerators, targets.divergence / teacher.sums, value=-1)
        gradient.scatter_add_(-1, targets.labels, -targets.cross_entropy)


def losses_of_logits(
    student: Tensor, teacher: Tensor | None, spare: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Softmaxes]:
    """Divergence [R] and cross-entropy [R]; the logits give their memory to the softmaxes.

    Args:
        student: [R, V] logits.
        teacher: [R, V] logits; None: the divergence is 0.
        spare: [R, V], of any content; it is overwritten.
        labels: [R, 1] int64.
        temperature: T > 0.
    """
    student.sub_(student.amax(-1, keepdim=True))
    label_logits = student.gather(-1, labels)
    if teacher is None:
        divergence, softmaxes = torch.zeros_like(label_logits), Softmaxes(softmax_in_place(student), None, None)
    else:
        teacher.sub_(teacher.amax(-1, keepdim=True))
        divergence, softmaxes = _compare(student, teacher, spare, temperature)
    cross_entropy = softmaxes.student.sums.log() - label_logits
    return divergence.squeeze(-1), cross_entropy.squeeze(-1), softmaxes


def _compare(student: Tensor, teacher: Tensor, spare: Tensor, temperature: float) -> tuple[Tensor, Softmaxes]:
    """Divergence [R, 1] and softmaxes of logits whose rows have their maximum at 0.

    The mean of the differences of logits, not the difference of two means: at equality every term is exactly 0.
    """
    difference = torch.sub(teacher, student, out=spare)
    target = softmax_in_place(teacher.mul_(1.0 / temperature))
    mean_difference = difference.mul_(target.numerators).sum(-1, keepdim=True) / (temperature * target.sums)
    if temperature == 1.0:
        tempered = at_temperature_1 = softmax_in_place(student)
    else:
        tempered = softmax_in_place(torch.mul(student, 1.0 / temperature, out=spare))
        at_temperature_1 = softmax_in_place(student)
    divergence = mean_difference + tempered.sums.log() - target.sums.log()
    return divergence, Softmaxes(at_temperature_1, tempered, target)


def softmax_in_place(shifted_logits: Tensor) -> Softmax:
    """Of logits [R, V] whose rows have their maximum at 0."""
    numerators = shifted_logits.exp_()
    return Softmax(numerators, numerators.sum(-1, keepdim=True))


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
