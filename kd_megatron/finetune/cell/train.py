"""One cell of the grid: fine-tune a model on a task with one learning rate, batch size and seed, and score it.

The optimiser recipe is AdamW, warm-up and decay, a function of the recipe alone and equal for all models; the weights
of the last step are scored. Everything random (head, data order, dropout) is a function of the seed that the cell draws
from, which is the model's own (`finetune.grid.seeds`).

Shapes: N examples, B batch, C classes (1 for a regression).
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_megatron.console import logs
from kd_megatron.engine.build import parameter_groups
from kd_megatron.finetune.cell.batches import EncodedSplit, EncodedTask, train_batches
from kd_megatron.finetune.cell.evaluate import autocast, predict, score
from kd_megatron.finetune.cell.model import load_classifier
from kd_megatron.finetune.cell.unfinished import CellProgress, Unfinished
from kd_megatron.finetune.cell.untrained import read_untrained_top
from kd_megatron.finetune.cell.vocabulary import keep_rows
from kd_megatron.finetune.places import Cell
from kd_megatron.finetune.tasks.majority import is_collapsed, majority_score
from kd_megatron.ranks import stages
from kd_megatron.recipe import FinetuneRecipe

CURVE_POINTS = 20  # of the learning curve; the loss is also checked there, so that no step waits for the device
SELECTION = "selection"  # name of the slice of train that settings are chosen by, beside the dev and test splits


@dataclass(frozen=True)
class CellResult:
    """What a finished cell leaves behind."""

    content: dict[str, Any]  # of its json file: scores, metrics, curves, speed
    predictions: dict[str, np.ndarray]  # split -> float32 logits [N, C], or values [N] of a regression, in its order


def count_steps(num_train: int, cell: Cell, recipe: FinetuneRecipe) -> int:
    """Optimizer steps of a cell: its epochs, and at least ``min_steps``; the last batch of an epoch may be smaller."""
    return max(1, recipe.min_steps or 1, round(recipe.epochs * math.ceil(num_train / cell.batch_size)))


def run_cell(
    model_path: Path,
    encoded: EncodedTask,
    cell: Cell,
    recipe: FinetuneRecipe,
    device: torch.device,
    on_step: Callable[[int], None] = lambda num_examples: None,
    unfinished: Unfinished | None = None,
) -> CellResult:
    """Train and score one cell; ``on_step`` hears the number of examples of each step.

    With ``unfinished`` the cell goes on from that file where it is there, and keeps itself there on its way.

    The recipe's precision is decided already (`machine.precision.resolve_precision`). bf16 is autocast over fp32
    weights: the optimizer and the outputs are always fp32.

    Raises:
        ModelError: the model cannot be loaded, or not with the recipe's dropout or ``untrained_top``.
        NonFiniteError: the loss or an output became NaN or infinite.
    """
    top, task = read_untrained_top(model_path, recipe.untrained_top), encoded.task
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        num_outputs = max(1, len(task.label_names))
        model = load_classifier(model_path, num_outputs, task.regression, cell.draws_from, recipe.dropout, top)
        if encoded.rows is not None:
            keep_rows(model, encoded.rows)
        training = _CellTraining(model.to(device), encoded, cell, recipe)
        torch.manual_seed(cell.draws_from)  # of dropout
        training.run(on_step, unfinished)
    start, progress = time.perf_counter(), training.progress
    splits = {**encoded.devs, **encoded.tests, **({SELECTION: encoded.selection} if encoded.selection else {})}
    predictions = training.predict(splits)
    content = {
        **asdict(cell),
        "used_seed": cell.draws_from,
        **_scores(encoded, predictions),
        "precision": recipe.precision,
        "untrained_top": top.describe(),
        "num_steps": training.num_steps,
        "num_examples": progress.num_examples,
        "examples_per_second": progress.num_examples / progress.train_seconds,
        "train_seconds": progress.train_seconds,
        "dev_seconds": progress.dev_seconds + time.perf_counter() - start,
        "learning_curve": progress.curve,
        "dev_curve": progress.dev_curve,
    }
    return CellResult(content, predictions)


class _CellTraining:
    """One cell, whose ``model`` is trained in place."""

    def __init__(self, model: nn.Module, encoded: EncodedTask, cell: Cell, recipe: FinetuneRecipe) -> None:
        self.model, self.encoded, self.cell, self.recipe = model, encoded, cell, recipe
        self.num_steps = count_steps(len(encoded.train), cell, recipe)
        self.device = next(model.parameters()).device
        self._optimizer = build_optimizer(model, cell.learning_rate, recipe)
        self.progress = CellProgress(self.device)

    def run(self, on_step: Callable[[int], None], unfinished: Unfinished | None) -> None:
        """All steps that are not done yet."""
        cell, encoded, progress, num_steps = self.cell, self.encoded, self.progress, self.num_steps
        epochs = num_steps / math.ceil(len(encoded.train) / cell.batch_size)
        evaluated = _evaluation_steps(num_steps, epochs, self.recipe)
        kept = unfinished.restore(self.model, self._optimizer) if unfinished else None
        if kept:
            progress.restore(kept)
            on_step(progress.num_examples)
            logs.say(f"{cell}: goes on at step {progress.step} of {num_steps}")
        self.model.train()
        batches = train_batches(encoded.train.lengths, cell.batch_size, cell.draws_from, num_steps)
        for indices in itertools.islice(batches, progress.step, None):
            rate = cell.learning_rate * learning_rate_factor(progress.step, num_steps, self.recipe)
            progress.add(self._step(rate, indices), len(indices))
            on_step(len(indices))
            stages.beat()
            if progress.step * CURVE_POINTS // num_steps > (progress.step - 1) * CURVE_POINTS // num_steps:
                progress.end_point(str(cell), rate)
            if progress.step in evaluated:
                self._evaluate()
            if unfinished and unfinished.is_due and progress.step < num_steps:
                unfinished.save(self.model, self._optimizer, progress.to_dict())
        progress.end()

    def predict(self, splits: Mapping[str, EncodedSplit]) -> dict[str, np.ndarray]:
        """The model's outputs on each split."""
        precision = self.recipe.precision
        return {
            name: predict(self.model, split, precision, f"{self.cell}: the {name} prediction")
            for name, split in splits.items()
        }

    def _evaluate(self) -> None:
        """A point of the dev curve."""
        start, progress = time.perf_counter(), self.progress
        _, metrics = _dev_scores(self.encoded, self.predict(self.encoded.devs))
        progress.dev_curve.append({"step": progress.step, "examples": progress.num_examples, **metrics})
        self.model.train()
        progress.dev_seconds += time.perf_counter() - start

    def _step(self, learning_rate: float, indices: np.ndarray) -> Tensor:
        """One optimizer step on the training examples ``indices`` ([B]). Returns their mean loss, detached."""
        inputs, labels = self.encoded.train.batch(indices, self.device)
        with autocast(labels.device, self.recipe.precision):
            logits = self.model(**inputs).logits  # [B, C]
        loss = loss_of(logits, labels)
        loss.backward()
        if self.recipe.gradient_clipping is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_clipping)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def _evaluation_steps(num_steps: int, epochs: float, recipe: FinetuneRecipe) -> set[int]:
    """The steps after which dev metrics are taken on the way; the last step is scored in any case.

    Args:
        num_steps: of the cell.
        epochs: that these steps really are: more than the recipe's where ``min_steps`` decides.
    """
    if recipe.evaluate_every_epochs is None:
        return set()
    share = recipe.evaluate_every_epochs / (epochs if recipe.min_steps else recipe.epochs)  # of all steps
    return {max(1, round(share * number * num_steps)) for number in range(1, math.ceil(1 / share))} - {num_steps}


def _scores(encoded: EncodedTask, predictions: dict[str, np.ndarray]) -> dict[str, Any]:
    dev_score, metrics = _dev_scores(encoded, predictions)
    chosen_by = dev_score
    if encoded.selection:
        chosen_by, _ = score(encoded.task, predictions[SELECTION], encoded.selection.labels)
    outputs = predictions[next(iter(encoded.devs))]
    return {
        "score": dev_score,
        "selection_score": chosen_by,
        "metrics": metrics,
        "majority_score": majority_score(encoded.task),
        "collapsed": is_collapsed(encoded.task, dev_score, outputs),
    }


def _dev_scores(encoded: EncodedTask, predictions: dict[str, np.ndarray]) -> tuple[float, dict[str, float]]:
    """The score of the first dev split, and the metrics of all."""
    scores: list[float] = []
    metrics: dict[str, float] = {}
    for name, split in encoded.devs.items():
        value, parts = score(encoded.task, predictions[name], split.labels)
        scores.append(value)
        metrics |= {f"{name}/{key}" if len(encoded.devs) > 1 else key: part for key, part in parts.items()}
    return scores[0], metrics


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of ``logits`` [B, C], or mean squared error of [B, 1] when ``labels`` [B] are values; fp32."""
    if labels.is_floating_point():
        return functional.mse_loss(logits.float().squeeze(1), labels)
    return functional.cross_entropy(logits.float(), labels)


def build_optimizer(model: nn.Module, learning_rate: float, recipe: FinetuneRecipe) -> torch.optim.AdamW:
    """AdamW (fused) that decays matrices only: biases and norms are the parameters with one dimension."""
    first, second = recipe.betas
    groups = parameter_groups(model, recipe.weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(first, second), eps=recipe.epsilon, fused=True)


def learning_rate_factor(step: int, num_steps: int, recipe: FinetuneRecipe) -> float:
    """Share of the peak learning rate in the 0-based ``step``: linear warm-up, then the recipe's schedule.

    After the warm-up these are the schedules of the same names in transformers, which end at zero. Its warm-up is one
    step behind: there the first step has a rate of zero and changes nothing.
    """
    num_warmup = math.ceil(recipe.warmup_fraction * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    if recipe.schedule == "constant":
        return 1.0
    num_decay = max(1, num_steps - num_warmup)
    if recipe.schedule == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (step - num_warmup) / num_decay)))
    return max(0.0, (num_steps - step) / num_decay) ** recipe.decay_power
