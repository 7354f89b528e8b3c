"""What GPUs do in a second, for a model: data sheets, and the shares of them that programs reach, which are assumed."""

from dataclasses import dataclass

from kd_megatron.errors import RecipeError, nearest
from kd_megatron.machine.gpus import GPUS, Gpu


@dataclass(frozen=True)
class ModelledGpu:
    """A GPU as the model sees it.

    ``memory_share`` and ``product_share`` are what large kernels reach of the data sheet. Those of the H200 stand for
    all: 4.3 of 4.8 TB/s, and 650 of 989 TFLOP/s in 16 bits at the sizes of these models.
    """

    gpu: Gpu
    num_multiprocessors: int
    clock: float  # per second, under load
    memory_share: float = 4.3 / 4.8
    product_share: float = 650.0 / 989.4
    launch_seconds: float = 2.5e-6  # the least that a kernel takes, with the gap to the next

    @property
    def bytes_per_second(self) -> float:
        """Reached from memory."""
        return self.memory_share * self.gpu.bytes_per_second

    @property
    def exponentials_per_second(self) -> float:
        """16 results per clock and multiprocessor (CUDA C++ programming guide, arithmetic throughput)."""
        return 16.0 * self.num_multiprocessors * self.clock

    def product_rate(self, width: int) -> float:
        """FLOPs per second reached by products of numbers of so many bytes; float8 is twice as fast as 16 bits."""
        peaks = {1: 2.0 * self.gpu.half_flops, 2: self.gpu.half_flops}
        return self.product_share * peaks.get(width, self.gpu.float32_flops)


_B200 = Gpu(
    "B200 SXM", 2250e12, 75e12, 8.0e12, 180, "NVIDIA DGX B200 data sheet, an eighth of it; 2,250 TFLOPS are dense"
)
MODELLED = {
    "h200": ModelledGpu(GPUS["h200"], 132, 1.83e9),
    "h100": ModelledGpu(GPUS["h100"], 132, 1.83e9),
    "a100": ModelledGpu(GPUS["a100"], 108, 1.41e9),
    "b200": ModelledGpu(_B200, 148, 1.85e9),
}


def modelled_gpu(name: str) -> ModelledGpu:
    """The GPU of that name. Raises `RecipeError` naming those there are."""
    if name not in MODELLED:
        raise RecipeError(given=f"--device {name}: {nearest(name, MODELLED)}", expected=f"one of {', '.join(MODELLED)}")
    return MODELLED[name]
