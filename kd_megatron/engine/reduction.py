"""Sums gradients over processes while the backward pass still runs, where every process holds all weights (stage 0).

DeepSpeed reduces there when the whole backward pass is done, so that nothing hides the traffic. Here gradients are put
into buckets, the last weights first, as the backward pass comes to those first; a bucket is sent as soon as its
gradients and those of the buckets before it are there. So every process sends the same buckets in the same order,
whatever order its gradients came in. The numbers are those of a reduction afterwards, but for the order in which more
than two processes are added.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

BUCKET_BYTES = 2**25  # of what is sent: large enough for the links, small enough that there are some to overlap


@dataclass
class Bucket:
    """Gradients that are sent together."""

    parameters: list[nn.Parameter]
    missing: int = 0  # gradients that are not there yet
    sent: Tensor | None = None  # all of them in one row, while it is under way
    work: torch_dist.Work | None = field(default=None, repr=False)


class OverlappedReduction:
    """The mean of ``parameters``' gradients over processes, in place.

    Between `expect` and `finish` there is one backward pass: that of a step's last micro-batch, which the others'
    gradients are already in. Collective, alike on all processes.

    Args:
        parameters: all that are trained, in the order of the model.
        dtype: in which gradients are sent and added.
        world_size: the number of processes.
        bucket_bytes: of a bucket at most, if it holds more than one gradient.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], dtype: torch.dtype, world_size: int, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self.dtype, self.world_size = dtype, world_size
        self.buckets = _buckets(parameters, bucket_bytes // dtype.itemsize)
        self._next: int | None = None  # the bucket to be sent next; None outside a step's last backward pass
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._arrived, bucket))
            for bucket in self.buckets
            for parameter in bucket.parameters
        ]

    def expect(self) -> None:
        """The next backward pass is a step's last one: gradients are sent as they come."""
        self._next = 0
        for bucket in self.buckets:
            bucket.missing = len(bucket.parameters)

    def finish(self) -> None:
        """After that backward pass: send what is left, wait (the device does, not the host), and write the means."""
        for bucket in self.buckets:
            bucket.missing = 0  # a gradient that did not come is zero, on the other processes too or not
        self._send_ready()
        self._next = None
        for bucket in self.buckets:
            assert bucket.sent is not None
            assert bucket.work is not None
            bucket.work.wait()
            _write(bucket.sent.mul_(1.0 / self.world_size), bucket.parameters)
            bucket.sent = bucket.work = None

    def close(self) -> None:
        """Leave the parameters alone."""
        for hook in self._hooks:
            hook.remove()

    def _arrived(self, bucket: Bucket, _: Tensor) -> None:
        if self._next is not None:
            bucket.missing -= 1
            self._send_ready()

    def _send_ready(self) -> None:
        assert self._next is not None
        while self._next < len(self.buckets) and self.buckets[self._next].missing == 0:
            bucket = self.buckets[self._next]
            rows = [p.grad if p.grad is not None else torch.zeros_like(p) for p in bucket.parameters]
            bucket.sent = torch.cat([row.detach().flatten().to(self.dtype) for row in rows])
            bucket.work = torch_dist.all_reduce(bucket.sent, async_op=True)
            self._next += 1


def _buckets(parameters: Sequence[nn.Parameter], most_elements: int) -> list[Bucket]:
    """All of them, from the last to the first."""
    buckets: list[Bucket] = []
    room = 0
    for parameter in reversed(parameters):
        if not buckets or parameter.numel() > room:
            buckets.append(Bucket([]))
            room = most_elements
        buckets[-1].parameters.append(parameter)
        room -= parameter.numel()
    return buckets


def _write(row: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Copy one row of gradients to where they belong."""
    parts = row.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.copy_(part.view_as(parameter))
