"""From the operations of a step to modelled time: each takes the longest of its bytes, FLOPs, exponentials, launches.

Fusion, where a recipe compiles its layers, is a model too: operations of one layer that hand each other their results
become one kernel, as long as no product, attention or kernel of ours has read those before. It reads once what comes
from outside, and writes what others read, be it in the backward pass. So nothing is computed again to save a write, as
a compiler may; and a sum for a bias that follows the products stays a kernel of its own.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from benchmarks.model.operations import Operation
from benchmarks.model.rates import ModelledGpu

ACCUMULATION = "optimiser"  # of a weight's gradient: compiled code hands them over when a layer's backward is done


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


@dataclass
class _Chain:
    """Operations that become one kernel, where the last of them stands."""

    members: list[int] = field(default_factory=list)
    is_open: bool = True  # until something else reads what it writes


def fused(operations: Sequence[Operation]) -> list[Operation]:
    """The operations with those of each layer fused, each kernel where the last of its operations was."""
    kernels: dict[int, Operation] = {}
    for chain in _chains(operations):
        members = sorted(chain.members)
        one = operations[members[0]]
        if len(members) > 1:
            outside_reads = _read_outside(operations, set(members))
            one = _one_kernel([operations[index] for index in members], outside_reads)
        kernels[members[-1]] = one
    return [kernels[index] for index in sorted(kernels)]


def _chains(operations: Sequence[Operation]) -> list[_Chain]:
    """An operation joins the chains of its layer that made what it reads, unless something else has read it before."""
    chains: list[_Chain] = []
    written_by: dict[int, _Chain] = {}
    for index, operation in enumerate(operations):
        made = {id(chain): chain for storage, _ in operation.reads if (chain := written_by.get(storage))}
        joined = _Chain([index])
        for chain in made.values():
            if chain.is_open and _fit(operations[chain.members[0]], operation):
                joined.members += chain.members
                chains.remove(chain)
                written_by |= {storage: joined for storage, writer in written_by.items() if writer is chain}
            elif operation.part != ACCUMULATION:
                chain.is_open = False
        chains.append(joined)
        written_by |= {storage: joined for storage, _ in operation.writes}
    return chains


def _fit(first: Operation, second: Operation) -> bool:
    """Whether a compiler may make one kernel of both."""
    both = (first, second)
    return first.place == second.place and all(
        one.place.layer is not None and one.kind == "elementwise" for one in both
    )


def _read_outside(operations: Sequence[Operation], members: set[int]) -> set[int]:
    """Storages that others than ``members`` read after the first of them."""
    later = range(min(members), len(operations))
    return {storage for index in later if index not in members for storage, _ in operations[index].reads}


def _one_kernel(chain: Sequence[Operation], read_outside: set[int]) -> Operation:
    """What a chain reads that it does not make itself, and writes of what others read."""
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
    kept = {s: size for s, size in inside.items() if s in read_outside or s not in own}
    name = f"fused: {', '.join(dict.fromkeys(operation.name for operation in chain))}"
    return replace(
        chain[0],
        name=name,
        num_bytes=sum(outside.values()) + sum(kept.values()),
        launches=1,
        reads=list(outside.items()),
        writes=list(kept.items()),
    )
