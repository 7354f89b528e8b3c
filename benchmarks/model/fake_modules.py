"""How modules move to the fake device, what attention does on it, and how numbers of the host come to it."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import scaled_dot_product_attention

aten = torch.ops.aten


class Moves:
    """`Module._apply` for fake tensors, which cannot be put into a real tensor's place: the module gets new parameters.

    Two modules that share a weight share the new one too.
    """

    def __init__(self) -> None:
        self._moved: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # by the old one's id, which keeps it alive

    def __get__(self, module: nn.Module, _: type) -> Callable[..., nn.Module]:
        return functools.partial(self._apply, module)

    def _apply(self, module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for child in module.children() if recurse else ():
            child._apply(fn)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = self._of(parameter, fn)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fn(buffer)
        return module

    def _of(self, parameter: nn.Parameter, fn: Callable[[Tensor], Tensor]) -> nn.Parameter:
        if id(parameter) not in self._moved:
            with torch.no_grad():
                moved = fn(parameter)
            both_are = isinstance(moved, FakeTensor) == isinstance(parameter, FakeTensor)
            if both_are and torch._has_compatible_shallow_copy_type(parameter, moved):
                parameter.data = moved
                return parameter
            self._moved[id(parameter)] = parameter, nn.Parameter(moved, parameter.requires_grad)
        return self._moved[id(parameter)][1]


def fused_attention(
    queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """By a GPU's kernels: FlashAttention in 16 bits without a mask, else the memory-efficient one, as PyTorch chooses.

    The CPU build would take products and a softmax, as it has none of the two.
    """
    if not queries.is_cuda:
        return scaled_dot_product_attention(queries, keys, values, attn_mask, dropout_p)
    if attn_mask is None and queries.element_size() == 2:
        return cast(Tensor, aten._scaled_dot_product_flash_attention(queries, keys, values, dropout_p)[0])
    bias = None
    if attn_mask is not None:
        shape = (*queries.shape[:3], keys.shape[2])
        bias = torch.zeros_like(attn_mask, dtype=queries.dtype).masked_fill(~attn_mask, -torch.inf).expand(shape)
    with_gradient = torch.is_grad_enabled()
    arguments = (queries, keys, values, bias, with_gradient, dropout_p)
    return cast(Tensor, aten._scaled_dot_product_efficient_attention(*arguments)[0])


@contextlib.contextmanager
def made_on_the_host() -> Iterator[None]:
    """`torch.tensor` makes its numbers on the CPU and copies them, as it does on a GPU, where the copy blocks."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
