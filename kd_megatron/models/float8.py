"""A frozen teacher whose layers multiply in float8 (`float8_linear`), on GPUs of the Hopper generation and later.

Embeddings, layer norms and the MLM head stay bfloat16. Products are summed with fast accumulation, in all arms alike: a
choice by what each arm's taps bear would give arms teachers of different speed. What that costs in accuracy is measured
beside sums in float32, and recorded.
"""

from dataclasses import dataclass

import torch
from torch import nn

from kd_megatron.errors import ModelError
from kd_megatron.models.float8_linear import Float8Linear
from kd_megatron.models.layers import layers_of
from kd_megatron.models.taps import TappedEncoder
from kd_megatron.tensors import OF_LAYERS, Batch, Taps

# The largest relative error of a tap at which a teacher is still used. A rounding to float8 has 2^-4 / sqrt(3) = 3.6 %
# at most, a product of two 5 %, and a deep teacher adds some of it up: 6.5 % at the top of a real one of 6 layers.
LARGEST_ERROR = 0.15
FIRST_CAPABILITY = (8, 9)  # of a GPU with float8 products


@dataclass(frozen=True)
class Float8Errors:
    """The largest relative errors of a tap, beside a bfloat16 teacher's: ||tap - exact|| / ||exact||."""

    used: float  # with fast accumulation, as the run computes
    sums_in_float32: float


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # nothing is compiled for the two batches here
def convert(teacher: TappedEncoder, batch: Batch) -> Float8Errors:
    """Replace every linear layer in the teacher's layers, in place; returns the error of its taps, both ways.

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
    converted: list[Float8Linear] = []
    for layer in layers_of(teacher.model.base_model):
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                converted.append(_float8(module))
                layer.set_submodule(name, converted[-1])
    found = []
    for fast in (False, True):
        for linear in converted:
            linear.fast = fast
        found.append(largest_error(teacher(batch), exact))
    errors = Float8Errors(used=found[1], sums_in_float32=found[0])
    if not errors.used <= LARGEST_ERROR:
        given = f"a tap that differs from the bf16 teacher's by {errors.used:.1%} ({found[0]:.1%} with sums in float32)"
        raise _refused(given, f"at most {LARGEST_ERROR:.0%}")
    return errors


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
