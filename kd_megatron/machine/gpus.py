"""GPUs by their data sheets."""

from dataclasses import dataclass

from kd_megatron.errors import RecipeError, nearest


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
            given=f"--hardware {name}: not in the table of kd_megatron/machine/gpus.py; {nearest(key, GPUS)}",
            expected=f"one of {', '.join(GPUS)}",
            fix="name one of them, add yours to the table, or measure it (command calibrate, then --calibration FILE)",
        )
    return GPUS[key]
