"""What the hardware computes well, and so what ``precision: auto`` means."""

from typing import Any, TypeVar

import torch
from pydantic import BaseModel

from kd_megatron.machine.gpus import Gpu
from kd_megatron.ranks import dist

Recipe = TypeVar("Recipe", bound=BaseModel)


def multiplies_bf16() -> bool:
    """Whether matrix products in bfloat16 run in hardware: Ampere or newer GPUs, CPUs with AMX or AVX-512 BF16.

    Elsewhere they are emulated and several times slower than in float32.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16"))


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
