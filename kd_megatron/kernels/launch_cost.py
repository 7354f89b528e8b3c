"""What one launch of a Triton kernel takes of a GPU, by count: for models of a step, which run no kernel.

A kernel's package has ``cost.py`` with ``COSTS``: the name of each kernel -> a function of the launch's arguments, by
the names that the kernel gives them. What a kernel computes again counts; what it reads again from a cache does not.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_leaves


class LaunchCost(NamedTuple):
    """Counts of one launch."""

    flops: float  # of matrix products
    exponentials: float
    bytes: float  # read from and written to the device's memory


CostOfLaunch = Callable[[Mapping[str, Any]], LaunchCost]


def bytes_of(*tensors: Any) -> float:
    """Of every tensor in ``tensors`` (which may be sequences of tensors, or None), once."""
    return float(sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor)))


@cache
def all_costs() -> dict[str, CostOfLaunch]:
    """The costs that the packages beside this file declare, by the kernels' names."""
    import kd_megatron.kernels as here

    found: dict[str, CostOfLaunch] = {}
    for package in pkgutil.iter_modules(here.__path__, f"{here.__name__}."):
        if package.ispkg and importlib.util.find_spec(f"{package.name}.cost"):
            found |= importlib.import_module(f"{package.name}.cost").COSTS
    return found
