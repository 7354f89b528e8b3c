"""What the hardware computes well, and so what ``precision: auto`` means."""

import functools
import math
import time
from typing import Any, TypeVar

import torch
from pydantic import BaseModel

from kd_megatron.machine.gpus import Gpu
from kd_megatron.ranks import dist

Recipe = TypeVar("Recipe", bound=BaseModel)


PRODUCT = (1024, 256, 512)  # rows, inner size and columns of the product that is timed: a layer's, in a small student
WORTHWHILE = 1.5  # bfloat16 as many times as fast as float32: the rest of a step is slower in it


def multiplies_bf16() -> bool:
    """Whether matrix products in bfloat16 run in hardware: Ampere or newer GPUs, and CPUs by a measured product.

    Elsewhere they are emulated and several times slower than in float32.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bf16_speedup() >= WORTHWHILE


@functools.cache
def bf16_speedup() -> float:
    """How many times as fast this CPU multiplies in bfloat16 as in float32, by the best of several turns of each.

    It is about 5 with AVX-512 BF16 instructions, more with AMX and far below 1 without either, so that what else runs
    on the machine does not change the decision.
    """
    rows, inner, columns = PRODUCT
    factors = {
        dtype: (torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    best = dict.fromkeys(factors, math.inf)
    for _ in range(8):
        for dtype, (left, right) in factors.items():
            start = time.perf_counter()
            torch.nn.functional.linear(left, right)
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[torch.float32] / best[torch.bfloat16]


def resolve_precision(recipe: Recipe, gpu: Gpu | None = None) -> Recipe:
    """``recipe`` with every ``precision: auto`` in it decided: one precision for all arms.

    By rank 0's hardware, or by what ``gpu`` would do.
    """
    has_bf16 = multiplies_bf16() if gpu is None else gpu.has_bf16
    return _resolved(recipe, dist.from_main("bf16" if has_bf16 else "fp32"))


def _resolved(recipe: Recipe, precision: str) -> Recipe:
    changed: dict[str, Any] = {}
    for name in type(recipe).model_fields:
        value = getattr(recipe, name)
        if name == "precision" and value == "auto":
            changed[name] = precision
        elif isinstance(value, BaseModel):
            changed[name] = _resolved(value, precision)
    return recipe.model_copy(update=changed)
