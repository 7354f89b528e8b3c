"""What the launches of `hidden_mse` take: they read both hidden states, and no product is made.

Shapes: B batch, L length, D features.
"""

from collections.abc import Mapping
from typing import Any

from kd_megatron.kernels.launch_cost import CostOfLaunch, LaunchCost, bytes_of


def _forward(arguments: Mapping[str, Any]) -> LaunchCost:
    return LaunchCost(0.0, 0.0, bytes_of(*(arguments[name] for name in ("student", "teacher", "valid", "losses"))))


def _backward(arguments: Mapping[str, Any]) -> LaunchCost:
    return LaunchCost(0.0, 0.0, bytes_of(*(arguments[name] for name in ("student", "teacher", "valid", "gradient"))))


COSTS: dict[str, CostOfLaunch] = {"hidden_mse_forward": _forward, "hidden_mse_backward": _backward}
