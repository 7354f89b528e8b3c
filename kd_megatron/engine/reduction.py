"""Gradients are summed over the processes while the backward pass still runs (ZeRO stage 0).

DeepSpeed reduces at that stage when the whole backward pass is over, and waits for it. Here gradients go out in
buckets: a bucket is sent when its last gradient is there, from a hook of autograd, and the backward pass continues
meanwhile. The result is waited for once, at the end of the backward pass; on a GPU that is a wait of one stream for
another, and the host continues.

All processes send the same buckets in the same order, whatever order their gradients come in: collectives that are
called in different orders would be mixed up. Sums of two processes are the same to the last bit as DeepSpeed's; of
more, a sum over processes is taken in another order where its bucket ends elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from kd_megatron.ranks import dist

BUCKET_ELEMENTS = 12_500_000  # sent at once: 25 MB in bfloat16, 50 MB in float32


@dataclass
class _Bucket:
    """Parameters whose gradients are sent together, in one flat tensor."""

    parameters: list[nn.Parameter]
    missing: set[nn.Parameter] = field(default_factory=set)  # whose gradients are not there yet
    sent: Tensor | None = None  # flat: this process's gradients, then the sum
    work: torch_dist.Work | None = None


class OverlappedReduction:
    """Averages the gradients of ``parameters`` over all processes.

    Args:
        parameters: the trained ones, in the module's order. The backward pass reaches the last ones first.
        dtype: of what is sent: float32, or bfloat16, which halves the bytes and rounds at every process.
        bucket_elements: the most in one bucket, unless one parameter alone has more.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], dtype: torch.dtype, bucket_elements: int = BUCKET_ELEMENTS
    ) -> None:
        self.dtype, self._parameters = dtype, list(parameters)
        self._alone = dist.world_size() == 1
        self._buckets = [_Bucket(each) for each in _in_buckets(list(reversed(parameters)), bucket_elements)]
        self._bucket_of = {parameter: bucket for bucket in self._buckets for parameter in bucket.parameters}
        self._next: int | None = None  # the bucket whose turn it is to be sent; None: gradients only add up
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._arrived) for parameter in parameters]

    @property
    def num_buckets(self) -> int:
        """How many collectives a step takes."""
        return len(self._buckets)

    def begin(self) -> None:
        """Before the backward pass of the last micro-batch: from now on gradients that come are whole."""
        if self._alone:
            return
        self._next = 0
        for bucket in self._buckets:
            bucket.missing = set(bucket.parameters)

    @torch.no_grad()
    def finish(self) -> None:
        """After it: send what is left, wait for all, and put the averages into the gradients. Collective.

        A parameter that the loss did not reach on this process counts with a gradient of zero.
        """
        if self._alone:
            for parameter in self._parameters:
                _gradient(parameter)
            return
        while self._next is not None and self._next < len(self._buckets):
            self._send(self._buckets[self._next])
            self._next += 1
        self._next = None
        for bucket in self._buckets:
            assert bucket.work is not None
            assert bucket.sent is not None
            bucket.work.wait()
            averages = bucket.sent.div_(dist.world_size()).split([p.numel() for p in bucket.parameters])
            gradients = [_gradient(parameter).view(-1) for parameter in bucket.parameters]
            torch._foreach_copy_(gradients, list(averages))
            bucket.work = bucket.sent = None

    def close(self) -> None:
        """Leave the parameters alone from here on."""
        for hook in self._hooks:
            hook.remove()

    def _arrived(self, parameter: nn.Parameter) -> None:
        """The gradient of ``parameter`` is there: send the buckets that are whole, each in its turn."""
        if self._next is None:
            return
        self._bucket_of[parameter].missing.discard(parameter)
        while self._next < len(self._buckets) and not self._buckets[self._next].missing:
            self._send(self._buckets[self._next])
            self._next += 1

    @torch.no_grad()
    def _send(self, bucket: _Bucket) -> None:
        gradients = [_gradient(parameter).view(-1) for parameter in bucket.parameters]
        sent = torch.empty(sum(one.numel() for one in gradients), dtype=self.dtype, device=gradients[0].device)
        torch._foreach_copy_(list(sent.split([one.numel() for one in gradients])), gradients)
        bucket.sent, bucket.work = sent, torch_dist.all_reduce(sent, async_op=True)


def _gradient(parameter: nn.Parameter) -> Tensor:
    """The gradient, of zeros where there is none; contiguous, so that its elements can be seen in a row."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    if not parameter.grad.is_contiguous():
        parameter.grad = parameter.grad.contiguous()
    return parameter.grad


def _in_buckets(parameters: list[nn.Parameter], most_elements: int) -> list[list[nn.Parameter]]:
    """Neighbours together, none more than ``most_elements`` but a parameter that is larger by itself."""
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        if not buckets or size + parameter.numel() > most_elements:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel()
    return buckets
