"""One forward and backward of a case through a backend, and whether a machine can run it."""

import importlib.util
import os
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.kernels import memory
from benchmarks.kernels.case import Case, Inputs
from kd_megatron.kernels.arithmetic import accumulation_dtype

REFERENCE = "reference"  # the doors' name of what the rows call eager
EAGER = "eager"
COMPILED = "torch.compile"
LARGEST_SHARE_OF_MEMORY = 0.7  # a backend expected to need more than this share of the free memory is left out

Terms = Callable[[Mapping[str, Tensor]], Tensor]
Result = tuple[Tensor, tuple[Tensor, ...]]  # the terms, and the gradient of every trained input
Step = Callable[[], Result]


def backends_of(case: Case) -> list[str]:
    """Eager, torch.compile of it, then the kernel's own."""
    return [EAGER, COMPILED, *(name for name in case.backends() if name != REFERENCE)]


def terms_of(case: Case, backend: str, compiler: str = "inductor") -> Terms:
    """The function from inputs to terms that ``backend`` stands for."""

    def terms(inputs: Mapping[str, Tensor]) -> Tensor:
        return case.terms(inputs, REFERENCE if backend in (EAGER, COMPILED) else backend)

    return torch.compile(terms, dynamic=False, backend=compiler) if backend == COMPILED else terms


def step_of(case: Case, backend: str, inputs: Inputs, compiler: str = "inductor") -> Step:
    """`forward_backward` of ``inputs`` through ``backend``, ready to be repeated.

    With bfloat16 inputs on a GPU, eager and torch.compile may use TF32: products of such numbers lose nothing in it,
    and without it the anchors would do without matrix instructions.
    """
    step = partial(forward_backward, inputs, terms_of(case, backend, compiler), loss_weights(case, inputs))
    narrow = all(tensor.dtype == torch.bfloat16 and tensor.is_cuda for tensor in trained(inputs).values())
    return partial(_with_tf32, step) if narrow and backend in (EAGER, COMPILED) else step


def _with_tf32(step: Step) -> Result:
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return step()
    finally:
        torch.set_float32_matmul_precision(precision)


def loss_weights(case: Case, inputs: Inputs) -> Tensor:
    """The weights of the terms, in their dtype and place."""
    tensor = next(iter(trained(inputs).values()))
    return torch.tensor(case.weights, dtype=accumulation_dtype(tensor), device=tensor.device)


def forward_backward(inputs: Inputs, terms: Terms, weights: Tensor) -> Result:
    """The terms, and the gradients of their weighted sum in the order of the trained inputs."""
    values = terms(inputs)
    return values.detach(), torch.autograd.grad(values, list(trained(inputs).values()), weights)


def trained(inputs: Inputs) -> Inputs:
    """The inputs that require a gradient."""
    return {name: tensor for name, tensor in inputs.items() if tensor.requires_grad}


def obstacle(case: Case, backend: str, device: torch.device) -> str | None:
    """Why ``backend`` cannot run ``case`` on ``device``; None when it should."""
    if backend == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "needs a GPU"
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if backend == "liger" and importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    if backend == "liger" and device.type != "cuda":
        return "needs a GPU"
    free_bytes = memory.free_bytes(device)
    if backend in (EAGER, COMPILED) and case.eager_bytes > LARGEST_SHARE_OF_MEMORY * free_bytes:
        allowed = LARGEST_SHARE_OF_MEMORY * free_bytes / 2**30
        return f"needs about {case.eager_bytes / 2**30:.0f} GiB, of which {allowed:.0f} may be used"
    return None
