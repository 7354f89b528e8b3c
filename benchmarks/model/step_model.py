"""From the operations of a step to modelled time: each takes the longest of its bytes, FLOPs, exponentials, launches.

Fusion, where a recipe compiles its layers, is a model too: of operations of a layer that follow each other without a
product, an attention or a kernel of ours between them, one kernel is made. It reads once what comes from outside, and
writes what is read after it, be it by the backward pass. So nothing is computed again to save a write, as a compiler
may.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.model.operations import Operation
from benchmarks.model.rates import ModelledGpu


@dataclass(frozen=True)
class OperationTime:
    """An operation and its modelled seconds."""

    operation: Operation
    seconds: float
    limit: str  # "bytes", "FLOPs", "exponentials" or "launches"


def time_of(operation: Operation, gpu: ModelledGpu) -> OperationTime:
    """The modelled time of ``operation`` on ``gpu``."""
    times = {
        "bytes": operation.num_bytes / gpu.bytes_per_second,
        "FLOPs": operation.flops / gpu.product_rate(operation.width),
        "exponentials": operation.exponentials / gpu.exponentials_per_second,
        "launches": operation.launches * gpu.launch_seconds,
    }
    limit = max(times, key=times.__getitem__)
    return OperationTime(operation, times[limit], limit)


def fused(operations: Sequence[Operation]) -> list[Operation]:
    """The operations with those of layers fused, in their order."""
    last_read: dict[int, int] = {}
    for index, operation in enumerate(operations):
        last_read |= {storage: index for storage, _ in operation.reads}
    found: list[Operation] = []
    for first, chain in _chains(operations):
        found.append(chain[0] if len(chain) == 1 else _one_kernel(chain, first + len(chain), last_read))
    return found


def _chains(operations: Sequence[Operation]) -> Iterator[tuple[int, list[Operation]]]:
    """Runs of what can be fused, with the index of the first; anything else by itself."""
    chain: list[Operation] = []
    for index, operation in enumerate(operations):
        fits = operation.place.in_layer and operation.kind == "elementwise"
        if chain and not (fits and chain[-1].place == operation.place):
            yield index - len(chain), chain
            chain = []
        if fits:
            chain.append(operation)
        else:
            yield index, [operation]
    if chain:
        yield len(operations) - len(chain), chain


def _one_kernel(chain: Sequence[Operation], end: int, last_read: dict[int, int]) -> Operation:
    """What a chain reads from outside, and writes for what comes from ``end`` on."""
    outside: dict[int, float] = defaultdict(float)
    inside: dict[int, float] = {}
    for operation in chain:
        for storage, size in operation.reads:
            if storage not in inside:
                outside[storage] = max(outside[storage], size)
        for storage, size in operation.writes:
            inside[storage] = max(inside.get(storage, 0.0), size)
    # What nobody reads any more in this step is kept for later, unless the chain itself has read it.
    own = {storage for operation in chain for storage, _ in operation.reads}
    kept = {s: size for s, size in inside.items() if last_read.get(s, -1) >= end or s not in own}
    name = f"fused: {', '.join(dict.fromkeys(operation.name for operation in chain))}"
    return replace(
        chain[0],
        name=name,
        num_bytes=sum(outside.values()) + sum(kept.values()),
        launches=1,
        reads=list(outside.items()),
        writes=list(kept.items()),
    )
