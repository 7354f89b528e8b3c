"""A frozen teacher whose layers multiply in float8 (e4m3), on GPUs of the Hopper generation and later.

Weights get one scale per output feature, once; activations one per token, as they come: a product of rows is
s_x s_y (x / s_x) . (y / s_y), both quotients rounded to float8 and the products summed in float32. Embeddings, layer
norms and the MLM head stay bfloat16. On a CPU the same arithmetic runs slowly; tests use that.

Hopper's tensor cores sum float8 products in fewer bits than float32 holds. ``fast`` accumulation leaves it at that;
otherwise partial sums go to float32 registers on the way, which takes some of the gain (DeepSeek-V3 2024, arXiv
2412.19437, section 3.3.2, on both). `convert` measures what each does to the taps, and takes the fast one unless it
costs.
"""

from dataclasses import dataclass

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
LARGEST_COST_OF_SPEED = 0.01  # of fast accumulation: what it may add to the error of a tap
FIRST_CAPABILITY = (8, 9)  # of a GPU with float8 products


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
    """A frozen linear layer in float8: bfloat16 [..., D_in] -> bfloat16 [..., D_out]; ``fast``: see above."""

    weight: Tensor  # [D_out, D_in] float8
    scales: Tensor  # [D_out, 1] float32
    bias: Tensor | None  # [D_out] bfloat16

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.fast = True
        weight, scales = quantise(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().to(torch.bfloat16))

    def forward(self, inputs: Tensor) -> Tensor:
        """The layer's output."""
        return self.of_quantised(*self.quantised(inputs))

    def quantised(self, inputs: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
        """What `of_quantised` takes: layers of one input share it."""
        return *quantise(inputs.flatten(0, -2)), inputs.shape[:-1]

    def of_quantised(self, rows: Tensor, scales: Tensor, leading: torch.Size) -> Tensor:
        """The output for an input that `quantised` has rounded."""
        outputs: Tensor = _product(rows, scales, self.weight, self.scales, self.bias, self.fast)
        return outputs.unflatten(0, leading)


@dataclass(frozen=True)
class Errors:
    """The largest relative error of a tap by either accumulation, and which of them the teacher now has."""

    fast: float
    exact: float
    is_fast: bool

    @property
    def largest(self) -> float:
        """Of the teacher as it now is."""
        return self.fast if self.is_fast else self.exact

    @property
    def in_words(self) -> str:
        """Both, and the choice."""
        chosen = "fast" if self.is_fast else "float32"
        return (
            f"its taps differ from the bfloat16 teacher's by {self.fast:.1%} at most with fast accumulation, by "
            f"{self.exact:.1%} with float32's; {chosen} it is"
        )


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # nothing is compiled for the two batches here
def convert(teacher: TappedEncoder, batch: Batch) -> Errors:
    """Replace every linear layer in the teacher's layers, in place; returns the largest relative errors of a tap.

    Accumulation is fast where that adds no more than `LARGEST_COST_OF_SPEED` to the error.

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
    by_float32, by_fast = (_error(teacher, batch, exact, fast) for fast in (False, True))
    errors = Errors(by_fast, by_float32, is_fast=by_fast <= by_float32 + LARGEST_COST_OF_SPEED)
    accumulate(teacher, errors.is_fast)
    if not errors.largest <= LARGEST_ERROR:
        given = f"a tap that differs from the bf16 teacher's by {errors.largest:.1%}"
        raise _refused(given, f"at most {LARGEST_ERROR:.0%}")
    return errors


def accumulate(teacher: TappedEncoder, fast: bool) -> None:
    """Let every float8 layer of ``teacher`` sum its products so."""
    for module in teacher.modules():
        if isinstance(module, Float8Linear):
            module.fast = fast


def _error(teacher: TappedEncoder, batch: Batch, exact: Taps, fast: bool) -> float:
    accumulate(teacher, fast)
    return largest_error(teacher(batch), exact)


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
