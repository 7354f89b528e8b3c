"""Attention by whole products against float64: outputs and every gradient, as near as PyTorch's kernel comes."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from kd_megatron.models import by_products
from kd_megatron.models.layers import sdpa

SHAPES = [(2, 4, 64, 32), (3, 1, 1, 16), (2, 3, 33, 24), (1, 2, 200, 64)]  # B, H, L, d


def inputs(shape, with_mask):
    torch.manual_seed(0)
    taps = [(1.5 * torch.randn(shape)).bfloat16().requires_grad_() for _ in range(3)]
    mask = None
    if with_mask:
        lengths = torch.randint(1, shape[2] + 1, (shape[0],))
        mask = (torch.arange(shape[2]) < lengths[:, None])[:, None, None, :]
    return taps, mask, torch.randn(shape).bfloat16()


def distances(attend, taps, mask, gradient):
    """Relative distances to float64: of the output, and of the gradients of queries, keys and values."""
    exact = [tap.detach().double().requires_grad_() for tap in taps]
    wanted = scaled_dot_product_attention(*exact, mask)
    wanted = [wanted, *torch.autograd.grad(wanted, exact, gradient.double())]
    found = attend(*taps, mask)
    found = [found, *torch.autograd.grad(found, taps, gradient)]
    pairs = zip(found, wanted, strict=True)
    return [((one.double() - other).norm() / (other.norm() + 1e-6)).item() for one, other in pairs]


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_float64_as_nearly_as_the_kernel_does(shape, with_mask):
    given = inputs(shape, with_mask)
    ours, theirs = (distances(attend, *given) for attend in (by_products.attend, scaled_dot_product_attention))
    assert all(one <= max(1.5 * other, 4e-3) for one, other in zip(ours, theirs, strict=True)), (ours, theirs)
    assert max(ours) < 6e-3  # bfloat16 has 8 bits: 2^-9 for each rounding


def test_padding_has_no_gradient():
    taps, mask, gradient = inputs((4, 2, 40, 16), with_mask=True)
    _, keys, values = torch.autograd.grad(by_products.attend(*taps, mask), taps, gradient)
    padding = ~mask.squeeze(1).mT.unsqueeze(1).expand_as(keys)
    assert not keys[padding].any()
    assert not values[padding].any()


def test_which_attention_runs():
    def queries(length, dtype):
        return torch.zeros(1, 1, length, 8, dtype=dtype)

    assert by_products.is_faster(queries(64, torch.bfloat16))
    assert not by_products.is_faster(queries(64, torch.float32))
    assert not by_products.is_faster(queries(by_products.LONGEST + 1, torch.bfloat16))


def test_dropout_is_left_to_the_kernel():
    """`by_products` has none: with it, outputs of two draws would be alike."""
    taps = [torch.randn(2, 16, 2, 8).bfloat16() for _ in range(3)]
    torch.manual_seed(1)
    first, second = (sdpa(*taps, None, 0.5) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(*(sdpa(*taps, None, 0.0) for _ in range(2)))
