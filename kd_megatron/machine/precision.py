"""What the hardware computes well, and so what ``auto`` means of precision and, without a GPU, of compilation."""

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

    By rank 0's hardware, or by what ``gpu`` would do. Without a GPU ``compile: auto`` is decided as well: not compiled.
    With one that takes a trial (`kd_megatron.study.compiling`).
    """
    has_bf16 = multiplies_bf16() if gpu is None else gpu.has_bf16
    decided: dict[str, Any] = {"precision": "bf16" if has_bf16 else "fp32"}
    if gpu is None and not torch.cuda.is_available():
        decided["compile"] = False
    return _resolved(recipe, dist.from_main(decided))


def _resolved(recipe: Recipe, decided: dict[str, Any]) -> Recipe:
    changed: dict[str, Any] = {}
    for name in type(recipe).model_fields:
        value = getattr(recipe, name)
        if name in decided and value == "auto":
            changed[name] = decided[name]
        elif isinstance(value, BaseModel):
            changed[name] = _resolved(value, decided)
    return recipe.model_copy(update=changed)
