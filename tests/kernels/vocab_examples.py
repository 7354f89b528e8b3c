"""Random heads of two models, and the comparison of any backend with the float64 definition.

Shapes: N rows, D hidden size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from kernel_examples import tap
from torch import Tensor

from kd_megatron.kernels.vocab_kl.top_logits import top_logits
from kd_megatron.tensors import IGNORED, FactoredLogits, TopLogits

STUDENT_SIZE, TEACHER_SIZE = 5, 7  # D of the two models
VOCAB_SIZE = 11


def head(
    num_rows: int,
    hidden_size: int,
    seed: int,
    vocab_size: int = VOCAB_SIZE,
    with_bias: bool = True,
    requires_grad: bool = False,
    scale: float = 1.0,
) -> FactoredLogits:
    """float64; the states times ``scale`` are standard normal, and so are weight and bias."""
    states, weight, bias = (
        tap(shape, 10 * seed + place)
        for place, shape in enumerate([(num_rows, hidden_size), (vocab_size, hidden_size), (vocab_size,)])
    )
    logits = FactoredLogits(scale * states, weight, bias if with_bias else None)
    return changed(logits, lambda tensor: tensor.requires_grad_(requires_grad))


def student_head(num_rows: int, **options: object) -> FactoredLogits:
    return head(num_rows, STUDENT_SIZE, 1, **{"requires_grad": True, **options})


def teacher_head(num_rows: int, **options: object) -> FactoredLogits:
    return head(num_rows, TEACHER_SIZE, 2, **options)


def top_of(logits: FactoredLogits, num_tokens: int, temperature: float) -> TopLogits:
    """What a cache keeps of a teacher, float64."""
    return top_logits(logits.dense().detach(), num_tokens, temperature)


def changed(logits: FactoredLogits, change: Callable[[Tensor], Tensor]) -> FactoredLogits:
    """The same with every tensor changed."""
    given = [getattr(logits, field.name) for field in fields(logits)]
    return FactoredLogits(*(None if tensor is None else change(tensor) for tensor in given))


def leaves(logits: FactoredLogits, dtype: torch.dtype) -> FactoredLogits:
    """Copies in ``dtype`` that require a gradient."""
    return changed(logits, lambda tensor: tensor.detach().to(dtype).clone().requires_grad_(True))


def tensors(logits: FactoredLogits) -> list[Tensor]:
    return [tensor for tensor in (logits.states, logits.weight, logits.bias) if tensor is not None]


def rows(num_rows: int, vocab_size: int = VOCAB_SIZE) -> tuple[Tensor, Tensor]:
    """Labels [N] and kl_rows [N]: of every ten rows some are used by both losses, by either alone, and by none."""
    generator = torch.Generator().manual_seed(num_rows)
    labels = torch.randint(vocab_size, (num_rows,), generator=generator)
    place = torch.arange(num_rows) % 10
    return labels.masked_fill((place == 1) | (place >= 8), IGNORED), (place != 2) & (place < 9)


def combined(losses: tuple[Tensor, Tensor], weights: tuple[float, float]) -> Tensor:
    return weights[0] * losses[0] + weights[1] * losses[1]


def assert_close_to_exact(
    actual: tuple[list[Tensor], list[Tensor]],
    exact: tuple[list[Tensor], list[Tensor]],
    loss_relative: float,
    gradient_of_largest: float,
) -> None:
    """(losses, gradients) against those in float64; a gradient in bfloat16 may be rounded once more."""
    for loss, exact_loss in zip(actual[0], exact[0], strict=True):
        assert loss.item() == pytest.approx(exact_loss.item(), rel=loss_relative, abs=0)
    for gradient, exact_gradient in zip(actual[1], exact[1], strict=True):
        error = (gradient.double() - exact_gradient).abs()
        rounding = (
            torch.finfo(gradient.dtype).eps / 2 * exact_gradient.abs() if gradient.dtype != torch.float64 else 0.0
        )
        assert torch.all(error <= gradient_of_largest * exact_gradient.abs().max() + rounding)
