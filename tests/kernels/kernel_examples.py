"""Random taps and masks for the tests of kernels.

Shapes: B batch, L length, H attention heads, d head size.
"""

from collections.abc import Callable

import pytest
import torch
from tolerances import FLOAT32_GRADIENT_OF_LARGEST, FLOAT32_LOSS_RELATIVE
from torch import Tensor

STUDENT = (3, 7, 3, 4)  # [B, L, H_s, d_s]: width 12
TEACHER = (3, 7, 2, 9)  # [B, L, H_t, d_t]: width 18
LENGTHS = (7, 4, 1)  # real tokens per sequence


def tap(shape: tuple[int, ...], seed: int, requires_grad: bool = False) -> Tensor:
    """Standard normal float64 numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(requires_grad)


def mask(lengths: tuple[int, ...] = LENGTHS, length: int = STUDENT[1]) -> Tensor:
    """[B, L] bool: the first ``lengths[b]`` positions are real."""
    return torch.arange(length)[None, :] < torch.tensor(lengths)[:, None]


def assert_computed_in_float32(
    losses: Callable[..., tuple[Tensor, ...]], student: list[Tensor], dtype: torch.dtype, autocast: bool
) -> None:
    """``losses`` of ``student`` tensors in ``dtype``: float32 accuracy, gradient rounded once to ``dtype``.

    ``losses`` converts its teacher tensors to the dtype of the first argument, after rounding them to ``dtype``.
    """
    rounded = [x.to(dtype) for x in student]
    narrow_losses, narrow = _losses_and_gradients(losses, rounded, autocast)
    wide_losses, wide = _losses_and_gradients(losses, [x.float() for x in rounded])
    exact_losses, exact = _losses_and_gradients(losses, [x.double() for x in rounded])
    assert {loss.dtype for loss in narrow_losses} == {torch.float32}
    for narrow_loss, wide_loss, exact_loss in zip(narrow_losses, wide_losses, exact_losses, strict=True):
        assert narrow_loss.item() == wide_loss.item()
        assert narrow_loss.item() == pytest.approx(exact_loss.item(), rel=FLOAT32_LOSS_RELATIVE)
    for a, b, c in zip(narrow, wide, exact, strict=True):
        assert torch.equal(a, b.to(dtype))
        assert (b.double() - c).abs().max() <= FLOAT32_GRADIENT_OF_LARGEST * c.abs().max()


def _losses_and_gradients(
    losses: Callable[..., tuple[Tensor, ...]], student: list[Tensor], autocast: bool = False
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    leaves = [x.clone().requires_grad_(True) for x in student]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):  # of forward alone, as torch prescribes
        values = losses(*leaves)
    return values, torch.autograd.grad(torch.stack(values).sum(), leaves)
