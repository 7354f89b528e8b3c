"""One cell of the grid: fine-tune a model on a task with one learning rate, batch size and seed, and score it on dev.

The optimiser recipe is the same for every model: AdamW without decay on biases and norms, gradients clipped at norm 1,
learning rate warmed up and then falling linearly to zero (Devlin et al. 2019). The last step's weights are scored.
Everything random is a function of the seed: head, data order and dropout agree between models.

Shapes: B batch, C classes (1 for a regression).
"""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_megatron import marks
from kd_megatron.errors import NonFiniteError
from kd_megatron.finetune.batches import EncodedSplit, EncodedTask, dev_batches, train_batches
from kd_megatron.finetune.model import load_classifier
from kd_megatron.schema import FinetuneRecipe

GRADIENT_CLIPPING = 1.0
CURVE_POINTS = 20  # of the learning curve; the loss is also checked there, so that no step waits for the device
DEV_BATCH_SIZE = 64


@dataclass(frozen=True)
class Cell:
    """What one fine-tuning differs in from the others of its task."""

    task: str
    learning_rate: float
    batch_size: int
    seed: int

    def __str__(self) -> str:
        return f"{self.task} lr {self.learning_rate:g} batch {self.batch_size} seed {self.seed}"


def count_steps(num_train: int, cell: Cell, epochs: float) -> int:
    """Optimizer steps of a cell; the last batch of an epoch may be smaller."""
    return max(1, round(epochs * math.ceil(num_train / cell.batch_size)))


def run_cell(
    model_path: Path,
    encoded: EncodedTask,
    cell: Cell,
    recipe: FinetuneRecipe,
    device: torch.device,
    on_step: Callable[[int], None] = lambda num_examples: None,
) -> dict[str, Any]:
    """Train and score one cell; ``on_step`` hears the number of examples of each step.

    The recipe's precision is decided already (`kd_megatron.hardware.resolve_precision`). bf16 is autocast over fp32
    weights: the optimizer and the outputs are always fp32.

    Returns:
        The content of the cell's file: score, metrics, learning curve, speed.

    Raises:
        NonFiniteError: the loss or an output became NaN or infinite.
    """
    task = encoded.task
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model = load_classifier(model_path, max(1, len(task.label_names)), task.regression, cell.seed).to(device)
        torch.manual_seed(cell.seed)  # of dropout
        start = time.perf_counter()
        curve, num_examples = _train(model, encoded.train, cell, recipe, on_step)
        seconds = time.perf_counter() - start
    metrics: dict[str, float] = {}
    scores = []
    start = time.perf_counter()
    for name, split in encoded.devs.items():
        predictions = _predict(model, split, cell, recipe.precision)
        values = task.metric.compute(predictions, split.labels.numpy())
        scores.append(task.metric.score(values))
        metrics |= {f"{name}/{key}" if len(encoded.devs) > 1 else key: value for key, value in values.items()}
    return {
        "task": cell.task,
        "learning_rate": cell.learning_rate,
        "batch_size": cell.batch_size,
        "seed": cell.seed,
        "score": scores[0],
        "metrics": metrics,
        "precision": recipe.precision,
        "num_steps": count_steps(len(encoded.train), cell, recipe.epochs),
        "num_examples": num_examples,
        "examples_per_second": num_examples / seconds,
        "train_seconds": seconds,
        "dev_seconds": time.perf_counter() - start,
        "learning_curve": curve,
    }


def _train(
    model: nn.Module,
    split: EncodedSplit,
    cell: Cell,
    recipe: FinetuneRecipe,
    on_step: Callable[[int], None],
) -> tuple[list[dict[str, float]], int]:
    """Train ``model`` in place. Returns the learning curve and how many examples were seen."""
    num_steps = count_steps(len(split), cell, recipe.epochs)
    optimizer = build_optimizer(model, cell.learning_rate, recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, num_steps, recipe.warmup_fraction)
    )
    device = next(model.parameters()).device
    curve: list[dict[str, float]] = []
    loss_sum, num_since, num_examples = torch.zeros((), device=device), 0, 0
    model.train()
    batches = train_batches(split.lengths, cell.batch_size, cell.seed, num_steps)
    for step, indices in enumerate(batches, start=1):
        inputs, labels = split.batch(indices, device)
        with _autocast(device, recipe.precision):
            logits = model(**inputs).logits  # [B, C]
        loss = loss_of(logits, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIPPING)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        loss_sum += loss.detach() * len(indices)
        num_since, num_examples = num_since + len(indices), num_examples + len(indices)
        on_step(len(indices))
        marks.beat()
        if step * CURVE_POINTS // num_steps > (step - 1) * CURVE_POINTS // num_steps:
            mean_loss = _finite(loss_sum / num_since, "loss", cell, step).item()
            curve.append({"step": step, "examples": num_examples, "loss": mean_loss})
            loss_sum, num_since = torch.zeros((), device=device), 0
    return curve, num_examples


@torch.inference_mode()
def _predict(model: nn.Module, split: EncodedSplit, cell: Cell, precision: str) -> np.ndarray:
    """Class indices ([N] int64), or values ([N] float64) of a regression, in the order of the split."""
    model.eval()
    device = next(model.parameters()).device
    outputs: list[tuple[np.ndarray, Tensor]] = []
    for indices in dev_batches(split.lengths, DEV_BATCH_SIZE):
        marks.beat()
        with _autocast(device, precision):
            outputs.append((indices, model(**split.batch(indices, device)[0]).logits.float()))
    logits = torch.cat([batch for _, batch in outputs]).cpu()  # [N, C] by length
    _finite(logits, "dev prediction", cell, None)
    regression = split.labels.is_floating_point()
    values = logits.squeeze(1).double().numpy() if regression else logits.argmax(1).numpy()
    predictions = np.empty_like(values)
    predictions[np.concatenate([indices for indices, _ in outputs])] = values
    return predictions


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of ``logits`` [B, C], or mean squared error of [B, 1] when ``labels`` [B] are values; fp32."""
    if labels.is_floating_point():
        return functional.mse_loss(logits.float().squeeze(1), labels)
    return functional.cross_entropy(logits.float(), labels)


def build_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (fused) that decays matrices only: biases and norms are the parameters with one dimension."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Iterable[Tensor] | float]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def learning_rate_factor(step: int, num_steps: int, warmup_fraction: float) -> float:
    """Share of the peak learning rate in the 0-based ``step``: linear warm-up, then linear to zero."""
    num_warmup = math.ceil(warmup_fraction * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    return max(0.0, (num_steps - step) / max(1, num_steps - num_warmup))


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def _finite(values: Tensor, what: str, cell: Cell, step: int | None) -> Tensor:
    if not torch.isfinite(values).all():
        raise NonFiniteError(
            given=f"{cell}: the {what} is not finite" + (f" by step {step}" if step else ""),
            expected="finite numbers; nothing of this cell was kept",
            fix="leave out this learning rate, try precision=fp32, or look for broken weights in the model",
        )
    return values
