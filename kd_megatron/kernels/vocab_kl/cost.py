"""What the launches of `vocab_kl` take: logits once, as a row's second pass finds them in a cache, and their gradient.

Shapes: C rows of a chunk, V vocabulary, k tokens known.
"""

from collections.abc import Mapping
from typing import Any

from kd_megatron.kernels.launch_cost import CostOfLaunch, LaunchCost, bytes_of


def _cross_entropy(arguments: Mapping[str, Any]) -> LaunchCost:
    """Of every logit an exponential, and once more for the gradient."""
    return _cost(arguments, ("student", "student_bias"), 1.0)


def _divergence(arguments: Mapping[str, Any]) -> LaunchCost:
    """Of every token an exponential of each model's logit, and one of the student's at the temperature."""
    names = ("student", "student_bias", "teacher", "teacher_bias")
    return _cost(arguments, names, 2.0 + _is_tempered(arguments))


def _top_divergence(arguments: Mapping[str, Any]) -> LaunchCost:
    """As of the cross-entropy, and one exponential at the temperature; known tokens by the way."""
    names = ("student", "student_bias", "token_ids", "log_targets")
    return _cost(arguments, names, 1.0 + _is_tempered(arguments))


def _is_tempered(arguments: Mapping[str, Any]) -> bool:
    return bool(arguments["INVERSE_TEMPERATURE"] != 1.0)


def _cost(arguments: Mapping[str, Any], read: tuple[str, ...], exponentials_of_a_pass: float) -> LaunchCost:
    student, gradient = arguments["student"], arguments["gradient"]
    passes = 1.0 if gradient is None else 2.0
    # Apart: the gradient may be in the place of the logits, which are read nevertheless.
    num_bytes = bytes_of(*(arguments[name] for name in read)) + bytes_of(gradient)
    return LaunchCost(0.0, passes * exponentials_of_a_pass * student.numel(), num_bytes)


COSTS: dict[str, CostOfLaunch] = {
    "cross_entropy_rows": _cross_entropy,
    "divergence_rows": _divergence,
    "top_divergence_rows": _top_divergence,
}
