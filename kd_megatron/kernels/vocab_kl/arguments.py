"""Refusal of arguments that cannot be right: `ValueError` or `TypeError` naming what was given and what is allowed.

Shapes: N rows, D hidden size (of either model), V vocabulary, k tokens of which a teacher's probability is known.
"""

import math

import torch
from torch import Tensor

from kd_megatron.kernels import door
from kd_megatron.tensors import IGNORED, FactoredLogits, TopLogits

NORMALISED_WITHIN = 0.05  # logarithms of probabilities kept in bfloat16 are off by up to 2^-9 of 8 nats


def check_logits(name: str, logits: FactoredLogits) -> None:
    """Refuse what is no head of rows."""
    if not isinstance(logits, FactoredLogits):
        raise TypeError(f"{name} is {type(logits).__name__}; allowed: FactoredLogits (states, weight, bias)")
    states, weight, bias = logits.states, logits.weight, logits.bias
    door.check_floating(f"{name}.states", states, num_dimensions=2, shape="[N, D]")
    door.check_floating(f"{name}.weight", weight, num_dimensions=2, shape="[V, D]")
    door.check_same_place(f"{name}.weight", weight, f"{name}.states", states)
    vocab_size, hidden_size = weight.shape
    if hidden_size != states.shape[1]:
        raise ValueError(
            f"{name}.weight has shape {tuple(weight.shape)}; "
            f"allowed: [V, {states.shape[1]}], as {name}.states has {states.shape[1]} features"
        )
    if bias is None:
        return
    door.check_floating(f"{name}.bias", bias, num_dimensions=1, shape="[V]")
    door.check_same_place(f"{name}.bias", bias, f"{name}.states", states)
    if bias.shape[0] != vocab_size:
        raise ValueError(f"{name}.bias has shape {tuple(bias.shape)}; allowed: ({vocab_size},), as {name}.weight")


def check_teacher(student: FactoredLogits, teacher: FactoredLogits) -> None:
    """Refuse a teacher that is not frozen, or has other rows or tokens than the student."""
    tensors = {"teacher.states": teacher.states, "teacher.weight": teacher.weight, "teacher.bias": teacher.bias}
    door.check_frozen({name: tensor for name, tensor in tensors.items() if tensor is not None})
    door.check_same_place("teacher.states", teacher.states, "student.states", student.states)
    for name, index, size in (("states", 0, "rows"), ("weight", 0, "tokens")):
        given, allowed = getattr(teacher, name).shape[index], getattr(student, name).shape[index]
        if given != allowed:
            raise ValueError(f"teacher.{name} has {given} {size}; allowed: {allowed}, as student.{name}")


def check_top_logits(teacher: TopLogits, student: FactoredLogits, rows: Tensor) -> None:
    """Refuse a teacher that is not frozen or, at ``rows`` [N], holds no distribution over the student's tokens."""
    if not isinstance(teacher, TopLogits):
        raise TypeError(f"teacher is {type(teacher).__name__}; allowed: TopLogits (log_probabilities, token_ids, ...)")
    check_temperature("teacher.temperature", teacher.temperature)
    kept, token_ids, rest = teacher.log_probabilities, teacher.token_ids, teacher.log_rest
    num_rows, vocab_size = student.states.shape[0], student.weight.shape[0]
    door.check_floating("teacher.log_probabilities", kept, num_dimensions=2, shape="[N, k]")
    door.check_floating("teacher.log_rest", rest, num_dimensions=1, shape="[N]")
    door.check_frozen({"teacher.log_probabilities": kept, "teacher.log_rest": rest})
    if token_ids.dtype != torch.int64:
        raise TypeError(f"teacher.token_ids is {token_ids.dtype}; allowed: torch.int64")
    if not 1 <= kept.shape[1] <= vocab_size:
        raise ValueError(f"teacher.log_probabilities has {kept.shape[1]} tokens; allowed: 1 to {vocab_size}")
    for name, tensor, shape in (
        ("log_probabilities", kept, (num_rows, kept.shape[1])),
        ("token_ids", token_ids, (num_rows, kept.shape[1])),
        ("log_rest", rest, (num_rows,)),
    ):
        door.check_same_place(f"teacher.{name}", tensor, "student.states", student.states)
        if tensor.shape != shape:
            raise ValueError(f"teacher.{name} has shape {tuple(tensor.shape)}; allowed: {shape}")
    if token_ids.device.type == "cpu":  # elsewhere looking would make the host wait
        _check_distributions(kept[rows], token_ids[rows], rest[rows], vocab_size)


def _check_distributions(kept: Tensor, token_ids: Tensor, rest: Tensor, vocab_size: int) -> None:
    outside = token_ids[(token_ids < 0) | (token_ids >= vocab_size)]
    if outside.numel():
        raise ValueError(f"teacher.token_ids has {outside[0].item()}; allowed: 0 to {vocab_size - 1}")
    ordered = token_ids.sort(-1).values
    twice = ordered[:, 1:][ordered.diff() == 0]
    if twice.numel():
        raise ValueError(f"teacher.token_ids has {twice[0].item()} twice in one row; allowed: distinct tokens")
    totals = kept.double().exp().sum(-1) + rest.double().exp()
    wrong = totals[(totals - 1.0).abs() > NORMALISED_WITHIN]
    if wrong.numel():
        raise ValueError(
            f"teacher's probabilities, the rest included, add up to {wrong[0].item():g} in a row; allowed: 1 "
            "(logarithms of probabilities, not logits)"
        )


def check_temperature(name: str, temperature: float) -> None:
    """Refuse one that is not positive and finite."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"{name} is {temperature}; allowed: greater than 0, and finite")


def check_use(student: FactoredLogits, kl_rows: Tensor | None, gradient_weights: tuple[float, float]) -> None:
    """Refuse rows that are no mask of the student's, and weights that are no promise."""
    door.check_mask("kl_rows", kl_rows, "student.states", student.states, num_dimensions=1)
    if not all(math.isfinite(weight) for weight in gradient_weights):
        raise ValueError(f"gradient_weights is {gradient_weights}; allowed: two finite numbers")


def check_labels(labels: Tensor, student: FactoredLogits) -> None:
    """Refuse labels that are not one token, or `IGNORED`, per row."""
    num_rows, vocab_size = student.states.shape[0], student.weight.shape[0]
    if labels.dtype != torch.int64:
        raise TypeError(f"labels is {labels.dtype}; allowed: torch.int64")
    if labels.shape != (num_rows,):
        raise ValueError(f"labels has shape {tuple(labels.shape)}; allowed: ({num_rows},)")
    door.check_same_place("labels", labels, "student.states", student.states)
    if labels.device.type != "cpu":  # looking would make the host wait; the gather of the loss asserts on the device
        return
    outside = labels[(labels != IGNORED) & ((labels < 0) | (labels >= vocab_size))]
    if outside.numel():
        raise ValueError(
            f"labels has {outside[0].item()}; allowed: 0 to {vocab_size - 1}, or {IGNORED} for a row without a label"
        )
