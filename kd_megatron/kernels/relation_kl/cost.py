"""What the launches of `relation_kl` take: scores of student and teacher in both passes, once more the product with X.

Shapes: B sequences, L length, R relation heads, D = R * d, n relations.
"""

from collections.abc import Mapping
from typing import Any

from kd_megatron.kernels.launch_cost import CostOfLaunch, LaunchCost, bytes_of


def _forward(arguments: Mapping[str, Any]) -> LaunchCost:
    """Of every entry of a relation two scores, and two exponentials."""
    entries, student_size, teacher_size = _sizes(arguments)
    tensors = (arguments[name] for name in ("students", "teachers", "valid", "statistics", "divergences"))
    return LaunchCost(2.0 * entries * (student_size + teacher_size), 2.0 * entries, bytes_of(*tensors))


def _backward(arguments: Mapping[str, Any]) -> LaunchCost:
    """Of every entry both scores again, four exponentials, and its part of ``(G + G^T) X_s``."""
    entries, student_size, teacher_size = _sizes(arguments)
    tensors = (arguments[name] for name in ("students", "teachers", "valid", "statistics", "gradients"))
    return LaunchCost(2.0 * entries * (2 * student_size + teacher_size), 4.0 * entries, bytes_of(*tensors))


def _whole(arguments: Mapping[str, Any]) -> LaunchCost:
    """Of every entry two scores and two exponentials; where a gradient is wanted, both products of G with X."""
    entries, student_size, teacher_size = _sizes(arguments)
    products = student_size + teacher_size + (0.0 if arguments["gradients"] is None else 2.0 * student_size)
    tensors = (arguments[name] for name in ("students", "teachers", "valid", "divergences", "gradients"))
    return LaunchCost(2.0 * entries * products, 2.0 * entries, bytes_of(*tensors))


def _sizes(arguments: Mapping[str, Any]) -> tuple[float, float, float]:
    """Entries n B R L^2 of all relations, and the sizes of a head of student and teacher."""
    students, teachers, num_heads = arguments["students"], arguments["teachers"], arguments["num_heads"]
    batch, length, width = students[0].shape
    return float(len(students) * batch * num_heads * length**2), width / num_heads, teachers[0].shape[2] / num_heads


COSTS: dict[str, CostOfLaunch] = {
    "relation_kl_forward": _forward,
    "relation_kl_backward": _backward,
    "relation_kl_whole": _whole,
}
