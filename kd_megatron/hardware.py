"""What hardware computes well: this machine, and so what ``precision: auto`` means, and GPUs by their data sheets."""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import BaseModel

from kd_megatron import dist
from kd_megatron.errors import RecipeError, nearest

Recipe = TypeVar("Recipe", bound=BaseModel)


@dataclass(frozen=True)
class Gpu:
    """A GPU's peak rates by its data sheet: matrix products without sparsity, accumulated in float32."""

    name: str
    half_flops: float  # per second in 16 bits: float16, and bfloat16 where ``has_bf16``
    float32_flops: float  # per second outside the tensor cores, which is what PyTorch does with float32
    bytes_per_second: float
    memory_gb: float
    source: str
    has_bf16: bool = True

    def flops(self, precision: str) -> float:
        """The peak rate of ``"bf16"`` or ``"fp32"``, per second."""
        return self.half_flops if precision == "bf16" else self.float32_flops


_HOPPER = "989.4 TFLOPS dense (the sheet's 1,979 are with sparsity)"
GPUS = {
    "a100": Gpu("A100 SXM 80 GB", 312e12, 19.5e12, 2.039e12, 80, "NVIDIA A100 80GB data sheet"),
    "h100": Gpu("H100 SXM", 989.4e12, 66.9e12, 3.35e12, 80, f"NVIDIA H100 data sheet: {_HOPPER}"),
    "h200": Gpu("H200 SXM", 989.4e12, 66.9e12, 4.8e12, 141, f"NVIDIA H200 data sheet: {_HOPPER}"),
    "v100": Gpu("V100 SXM2 32 GB", 125e12, 15.7e12, 0.9e12, 32, "NVIDIA V100 data sheet; no bfloat16", has_bf16=False),
    "l4": Gpu("L4", 121e12, 30.3e12, 0.3e12, 24, "NVIDIA L4 data sheet: 242 TFLOPS with sparsity, half without"),
    "rtx4090": Gpu(
        "GeForce RTX 4090", 165.2e12, 82.6e12, 1.008e12, 24, "NVIDIA Ada architecture white paper, appendix A"
    ),
}


def named_gpu(name: str) -> Gpu:
    """The GPU of that name, such as ``"h100"``. Raises `RecipeError` naming those there are."""
    key = name.lower().replace(" ", "").replace("-", "")
    if key == "cpu":
        raise RecipeError(
            given="--hardware cpu: no data sheet says what a processor does in training",
            expected=f"one of {', '.join(GPUS)}",
            fix="measure this machine (command calibrate) and give its file with --calibration",
        )
    if key not in GPUS:
        raise RecipeError(
            given=f"--hardware {name}: not in the table of kd_megatron/hardware.py; {nearest(key, GPUS)}",
            expected=f"one of {', '.join(GPUS)}",
            fix="name one of them, add yours to the table, or measure it (command calibrate, then --calibration FILE)",
        )
    return GPUS[key]


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
