"""A linear layer whose products are of float8 numbers (e4m3).

Weights get one scale per output feature, once; activations one per token, as they come: a product of rows is
s_x s_y (x / s_x) . (y / s_y), both quotients rounded to float8 and the products summed in float32, or, with fast
accumulation, in what the tensor cores hold. On a CPU the same arithmetic runs slowly; tests use that.

Shapes: N rows, D_in and D_out features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import ScalingType, scaled_mm

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max


def quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[N, D] -> (float8 [N, D], float32 scales [N, 1]) whose product is ``rows`` up to rounding."""
    scales = rows.abs().amax(1, keepdim=True).float().clamp_min(torch.finfo(torch.float32).tiny) / LARGEST
    return (rows.float() / scales).to(FLOAT8), scales


# An operator of our own, as torch.compile of some versions stops at scaled_mm: the layer would fall to pieces.
@torch.library.custom_op("kd_megatron::float8_product", mutates_args=())
def _product(
    rows: Tensor, row_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None, fast: bool
) -> Tensor:
    """Float8 [N, D_in] and [D_out, D_in], scales [N, 1] and [D_out, 1] -> bfloat16 [N, D_out]."""
    scaling = ScalingType.RowWise
    return scaled_mm(rows, weight.t(), row_scales, scaling, weight_scales.t(), scaling, bias=bias, use_fast_accum=fast)


@_product.register_fake
def _(
    rows: Tensor, row_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None, fast: bool
) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[0], dtype=torch.bfloat16)


class Float8Linear(nn.Module):
    """A frozen linear layer in float8: bfloat16 [..., D_in] -> bfloat16 [..., D_out].

    Attributes:
        fast: whether the tensor cores add products up in their own registers, with fewer bits than float32, instead of
            handing partial sums on every few products. Faster on Hopper; a processor knows no difference.
    """

    weight: Tensor  # [D_out, D_in] float8
    scales: Tensor  # [D_out, 1] float32
    bias: Tensor | None  # [D_out] bfloat16

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scales = quantise(linear.weight.detach())
        self.fast = True
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().to(torch.bfloat16))

    def forward(self, inputs: Tensor) -> Tensor:
        """The layer's output."""
        return self.of_rows(*quantise(inputs.flatten(0, -2)), inputs.shape[:-1])

    def of_rows(self, rows: Tensor, scales: Tensor, shape: Sequence[int]) -> Tensor:
        """The output [*shape, D_out] of an input that `quantise` made ``rows`` and ``scales`` of."""
        outputs: Tensor = _product(rows, scales, self.weight, self.scales, self.bias, self.fast)
        return outputs.unflatten(0, shape)


def outputs_of(layers: Sequence[nn.Module], inputs: Tensor) -> list[Tensor]:
    """What several linear layers make of one input [..., D_in]; where all are float8 it is rounded once."""
    if len(layers) > 1 and all(isinstance(layer, Float8Linear) for layer in layers):
        rows, scales = quantise(inputs.flatten(0, -2))
        in_float8 = [layer for layer in layers if isinstance(layer, Float8Linear)]
        return [layer.of_rows(rows, scales, inputs.shape[:-1]) for layer in in_float8]
    return [layer(inputs) for layer in layers]
