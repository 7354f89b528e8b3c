"""The losses of the study's own code, operation by operation: what `eager_step` counts after the models.

``kl_div`` and ``mse_loss`` are written out, as a GPU computes them in a PyTorch of the study's time (`eager_step`).

Shapes: B batch, L length, K masked positions, D hidden size, H heads, d head size, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Outputs:
    """What the study's models return in every arm."""

    logits: Tensor  # [B * K, V]
    scores: list[Tensor]  # of each layer, before the softmax: [B, H, L, L]
    projections: list[tuple[Tensor, Tensor, Tensor]]  # queries, keys, values of each layer: [B, H, L, d]
    hidden: Tensor  # the last: [B, L, D]


def _scratch(student: Outputs, targets: Tensor) -> Tensor:
    return functional.cross_entropy(student.logits, targets)


def _vanilla_kd(student: Outputs, teacher: Outputs, targets: Tensor) -> Tensor:
    """The soft cross-entropy is averaged over the vocabulary as well."""
    likelihood = (student.logits / 1.0).log_softmax(-1)
    soft = (-(teacher.logits / 1.0).softmax(-1) * likelihood).mean()
    return soft + _scratch(student, targets)


def _minilm(student: Outputs, teacher: Outputs, targets: Tensor) -> Tensor:
    """Relations of the last layers' projections by attention heads. The MLM loss is computed for the log."""
    _scratch(student, targets)
    losses = []
    for of_student, of_teacher in zip(student.projections[-1], teacher.projections[-1], strict=True):
        likelihood = _relation_scores(of_student).log_softmax(-1)
        losses.append(_divergence(likelihood, _relation_scores(of_teacher).softmax(-1)) / 1.0)
    return torch.stack(losses).sum()


def _relation_scores(projection: Tensor) -> Tensor:
    """Both sides are made contiguous, each for itself."""
    left, right = (projection.flatten(0, 1) for _ in range(2))
    return torch.bmm(left, right.transpose(1, 2)) / math.sqrt(left.size(-1))


def _tinybert(student: Outputs, teacher: Outputs, targets: Tensor) -> Tensor:
    """Scores of the first and the last layer, and the last hidden states. The MLM loss is computed for the log."""
    _scratch(student, targets)
    of_student, of_teacher = (_without_padding(scores[-1]).float() for scores in (student.scores, teacher.scores))
    pairs = [(student.scores[0], teacher.scores[0]), (of_student, of_teacher), (student.hidden, teacher.hidden)]
    return torch.stack([_mean_square(*pair) for pair in pairs]).sum()


class _Divergence(torch.autograd.Function):
    """``kl_div`` before it had ``xlogy`` (pytorch/pytorch, pull request 80334); one kernel back."""

    @staticmethod
    def forward(context: Any, likelihood: Tensor, of_teacher: Tensor) -> Tensor:
        context.save_for_backward(of_teacher)
        where_likely = of_teacher * (of_teacher.log() - likelihood)
        return torch.where(of_teacher > 0, where_likely, torch.zeros_like(where_likely)).sum()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (of_teacher,) = context.saved_tensors
        return of_teacher * gradients[0], None


def _divergence(likelihood: Tensor, of_teacher: Tensor) -> Tensor:
    loss: Tensor = _Divergence.apply(likelihood, of_teacher)
    return loss


class _MeanSquare(torch.autograd.Function):
    """``mse_loss`` as a GPU computes it: squares in a temporary, then their mean; one kernel back."""

    @staticmethod
    def forward(context: Any, of_student: Tensor, of_teacher: Tensor) -> Tensor:
        context.save_for_backward(of_student, of_teacher)
        return functional.mse_loss(of_student, of_teacher, reduction="none").mean()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        mean = 1  # the number of PyTorch's reduction
        return torch.ops.aten.mse_loss_backward(*gradients, *context.saved_tensors, mean), None


def _mean_square(of_student: Tensor, of_teacher: Tensor) -> Tensor:
    loss: Tensor = _MeanSquare.apply(of_student, of_teacher)
    return loss


def _without_padding(scores: Tensor) -> Tensor:
    return torch.where(scores <= -1e2, torch.zeros_like(scores), scores)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "scratch": _scratch,
    "vanilla_kd": _vanilla_kd,
    "minilm": _minilm,
    "tinybert": _tinybert,
}
