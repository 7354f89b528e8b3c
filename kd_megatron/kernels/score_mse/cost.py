"""What a launch of `score_mse`'s tiles takes: scores of student and teacher, and the gradient where one is wanted.

Shapes: B batch, L length, H heads, D = H * d.
"""

from collections.abc import Mapping
from typing import Any

from kd_megatron.kernels.launch_cost import CostOfLaunch, LaunchCost, bytes_of


def _tiles(arguments: Mapping[str, Any]) -> LaunchCost:
    """Of every entry of the scores two products of a head, and a third for the gradient of its row."""
    student, teacher, gradient = (arguments[name] for name in ("student_rows", "teacher_rows", "gradient"))
    batch, length, width = student.shape
    per_pair = width + teacher.shape[2] + (0 if gradient is None else width)  # over all heads
    tensors = [arguments[name] for name in ("student_rows", "student_columns", "teacher_rows", "teacher_columns")]
    moved = bytes_of(*tensors, arguments["valid"], gradient, arguments["losses"] if arguments["WITH_LOSS"] else None)
    return LaunchCost(2.0 * batch * length**2 * per_pair, 0.0, moved)


COSTS: dict[str, CostOfLaunch] = {"score_tiles": _tiles}
