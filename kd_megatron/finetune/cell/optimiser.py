"""The optimiser recipe of fine-tuning: AdamW, warm-up, decay; a function of the recipe alone, equal for all models."""

import math

import torch
from torch import nn

from kd_megatron.engine.build import parameter_groups
from kd_megatron.recipe import FinetuneRecipe


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
