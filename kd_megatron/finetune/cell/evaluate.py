"""A model's outputs on a split, and what the task's metric makes of them.

Shapes: N examples of a split, B batch, C classes (1 for a regression).
"""

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd_megatron.errors import NonFiniteError
from kd_megatron.finetune.cell.batches import EncodedSplit, dev_batches
from kd_megatron.finetune.tasks.tasks import Task
from kd_megatron.ranks import stages

DEV_BATCH_SIZE = 64


@torch.inference_mode()
def predict(model: nn.Module, split: EncodedSplit, precision: str, what: str) -> np.ndarray:
    """Outputs of ``model``, which is left in evaluation mode, in the order of ``split``.

    Args:
        model: a classifier, or a regression with one output.
        split: the examples; their labels are not looked at.
        what: of which cell and split, for messages.

    Returns:
        Logits [N, C], or values [N] of a regression; float32.

    Raises:
        NonFiniteError: an output is NaN or infinite.
    """
    model.eval()
    device = next(model.parameters()).device
    outputs: list[tuple[np.ndarray, Tensor]] = []
    for indices in dev_batches(split.lengths, DEV_BATCH_SIZE):
        stages.beat()
        with autocast(device, precision):
            outputs.append((indices, model(**split.batch(indices, device)[0]).logits.float()))
    logits = require_finite(torch.cat([batch for _, batch in outputs]), what).cpu().numpy()  # [N, C] by length
    ordered = np.empty_like(logits)
    ordered[np.concatenate([indices for indices, _ in outputs])] = logits
    return ordered.squeeze(1) if split.labels.is_floating_point() else ordered


def score(task: Task, outputs: np.ndarray, labels: Tensor) -> tuple[float, dict[str, float]]:
    """The task's one number and its parts, of the ``outputs`` of `predict` and the true ``labels`` [N]."""
    predictions = outputs.astype(np.float64) if task.regression else outputs.argmax(1)
    values = task.metric.compute(predictions, labels.numpy())
    return task.metric.score(values), values


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bf16 where the precision says so; weights, optimizer and outputs stay fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def require_finite(values: Tensor, what: str, when: str = "") -> Tensor:
    """``values``; raises `NonFiniteError` that says ``what`` is not finite when any of them is not."""
    if not torch.isfinite(values).all():
        raise NonFiniteError(
            given=f"{what} is not finite{when}",
            expected="finite numbers; nothing of this cell was kept",
            fix="leave out this learning rate, try precision=fp32, or look for broken weights in the model",
        )
    return values
