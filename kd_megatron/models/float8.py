"""A frozen teacher whose layers multiply in float8 (e4m3), on GPUs of the Hopper generation and later.

Weights get one scale per output feature, once; activations one per token, as they come: a product of rows is
s_x s_y (x / s_x) . (y / s_y), both quotients rounded to float8 and the products summed in float32. Embeddings, layer
norms and the MLM head stay bfloat16. On a CPU the same arithmetic runs slowly; tests use that.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import ScalingType, scaled_mm

from kd_megatron.errors import ModelError
from kd_megatron.models.layers import layers_of
from kd_megatron.models.taps import TappedEncoder
from kd_megatron.tensors import OF_LAYERS, Batch, Taps

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
# The largest relative error of a tap at which a teacher is still used. A rounding to float8 has 2^-4 / sqrt(3) = 3.6 %
# at most, a product of two 5 %, and a deep teacher adds some of it up: 6.5 % at the top of a real one of 6 layers.
LARGEST_ERROR = 0.15
FIRST_CAPABILITY = (8, 9)  # of a GPU with float8 products


def quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[N, D] -> (float8 [N, D], float32 scales [N, 1]) whose product is ``rows`` up to rounding."""
    scales = rows.abs().amax(1, keepdim=True).float().clamp_min(torch.finfo(torch.float32).tiny) / LARGEST
    return (rows.float() / scales).to(FLOAT8), scales


# An operator of our own, as torch.compile of some versions stops at scaled_mm: the layer would fall to pieces.
@torch.library.custom_op("kd_megatron::float8_product", mutates_args=())
def _product(rows: Tensor, row_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None) -> Tensor:
    """Float8 [N, D_in] and [D_out, D_in], scales [N, 1] and [D_out, 1] -> bfloat16 [N, D_out]."""
    scaling = ScalingType.RowWise
    return scaled_mm(rows, weight.t(), row_scales, scaling, weight_scales.t(), scaling, bias=bias)


@_product.register_fake
def _(rows: Tensor, row_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[0], dtype=torch.bfloat16)


class Float8Linear(nn.Module):
    """A frozen linear layer in float8: bfloat16 [..., D_in] -> bfloat16 [..., D_out]."""

    weight: Tensor  # [D_out, D_in] float8
    scales: Tensor  # [D_out, 1] float32
    bias: Tensor | None  # [D_out] bfloat16

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scales = quantise(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().to(torch.bfloat16))

    def forward(self, inputs: Tensor) -> Tensor:
        """The layer's output."""
        rows, scales = quantise(inputs.flatten(0, -2))
        outputs: Tensor = _product(rows, scales, self.weight, self.scales, self.bias)
        return outputs.unflatten(0, inputs.shape[:-1])


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # nothing is compiled for the two batches here
def convert(teacher: TappedEncoder, batch: Batch) -> float:
    """Replace every linear layer in the teacher's layers, in place; returns the largest relative error of a tap.

    Args:
        teacher: bfloat16, frozen.
        batch: a small one, on the teacher's device, to compare the two on.

    Raises:
        ModelError: the GPU has no float8 products, a size is not a multiple of 16, or the error is over
            `LARGEST_ERROR`.
    """
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < FIRST_CAPABILITY:
        raise _refused(torch.cuda.get_device_name(), "a GPU with float8 matrix products (Hopper or newer)")
    exact = teacher(batch)
    for layer in layers_of(teacher.model.base_model):
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                layer.set_submodule(name, _float8(module))
    error = largest_error(teacher(batch), exact)
    if not error <= LARGEST_ERROR:
        raise _refused(f"a tap that differs from the bf16 teacher's by {error:.1%}", f"at most {LARGEST_ERROR:.0%}")
    return error


def _float8(linear: nn.Linear) -> Float8Linear:
    if linear.in_features % 16 or linear.out_features % 16:
        raise _refused(f"a linear layer of {linear.in_features} x {linear.out_features}", "multiples of 16")
    return Float8Linear(linear).eval()


def _refused(given: str, expected: str) -> ModelError:
    return ModelError(f"teacher.precision fp8: {given}", expected, "set teacher.precision to bf16")


def largest_error(taps: Taps, exact: Taps) -> float:
    """The largest, over all taps, of ||tap - exact|| / ||exact||."""
    pairs = [(getattr(taps, name)[layer], tap) for name in OF_LAYERS for layer, tap in getattr(exact, name).items()]
    heads = ((taps.logits, exact.logits), (taps.all_logits, exact.all_logits))
    pairs += [(ours.dense(), theirs.dense()) for ours, theirs in heads if ours and theirs]
    return max(float((ours - theirs).float().norm() / theirs.float().norm()) for ours, theirs in pairs)
