"""`vocab_cross_entropy` by liger-kernel (arXiv 2410.10989), an optional package for GPUs.

Its logits, and their gradient, have the dtype of the states: with bfloat16 states they are rounded once more than in
the other backends. It reads the number of labels on the host, and scales its gradients in place: one backward a call.
"""

import importlib
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from kd_megatron.tensors import IGNORED, FactoredLogits

PACKAGE = "liger_kernel"


def vocab_cross_entropy(student: FactoredLogits, labels: Tensor) -> Tensor:
    """Sum over labelled rows of the cross-entropy."""
    function = _function(student.states.device)
    # Liger multiplies every row, ignored ones by a gradient of 0: what they hold must be finite.
    states = student.states.masked_fill((labels == IGNORED)[:, None], 0.0)
    if not states.requires_grad and torch.is_grad_enabled() and student.weight.requires_grad:
        states.requires_grad_(True)  # or it makes no gradient of the weight either
    loss, *_ = function.apply(
        states,
        student.weight,
        labels,
        student.bias,
        None,  # weights of the tokens
        IGNORED,
        0.0,  # z-loss
        0.0,  # label smoothing
        "sum",
        None,  # soft cap
        False,  # return the z-loss
        torch.float32,  # gradients of weight and bias are summed over chunks in it
    )
    return loss


def _function(device: torch.device) -> Any:
    if importlib.util.find_spec(PACKAGE) is None:
        raise ValueError(
            "backend 'liger' needs the package liger-kernel, which is not installed (pip install 'kd-megatron[gpu]'); "
            "allowed: 'auto'"
        )
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"backend 'liger' needs tensors on a GPU, not on {device}; allowed: 'auto'")
    module = importlib.import_module(f"{PACKAGE}.ops.fused_linear_cross_entropy")
    return module.LigerFusedLinearCrossEntropyFunction
