"""Attention in bfloat16 on a CPU, by whole matrix products.

PyTorch's kernel multiplies tile by tile and, in the backward pass, at a fraction of the speed that bfloat16 products
have there. Here scores are float32, as in that kernel, and so is the softmax; its probabilities are kept for the
backward pass in bfloat16, L x L a head, which is why long sequences are left to that kernel.

Shapes: B batch, H attention heads, L length, d head size.
"""

from typing import Any

import torch
from torch import Tensor

LONGEST = 256  # beyond it the memory for probabilities grows and the gain is gone


def is_faster(queries: Tensor) -> bool:
    """Whether `attend` is to be preferred for queries [B, H, L, d] like these."""
    return queries.device.type == "cpu" and queries.dtype == torch.bfloat16 and queries.shape[-2] <= LONGEST


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V: [B, H, L, d], bfloat16.

    Args:
        queries, keys, values: [B, H, L, d] bfloat16.
        mask: [B, 1, 1, L] bool, False at padding, True at one key of each sequence at least; None: no padding.
    """
    context: Tensor = _Attention.apply(queries, keys, values, mask)
    return context


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        scores = (queries.float() * queries.shape[-1] ** -0.5) @ keys.float().mT
        if mask is not None:
            scores.masked_fill_(~mask, -torch.inf)
        probabilities = scores.softmax(-1).to(queries.dtype)
        ctx.save_for_backward(queries, keys, values, probabilities)
        return probabilities @ values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, probabilities = ctx.saved_tensors
        scale = queries.shape[-1] ** -0.5
        of_probabilities = (gradient @ values.mT).float()
        of_scores = torch._softmax_backward_data(of_probabilities, probabilities.float(), -1, torch.float32)
        of_scores = of_scores.mul_(scale).to(queries.dtype)
        return of_scores @ keys, of_scores.mT @ queries, probabilities.mT @ gradient, None
