"""What a step on the fake GPU consists of: one record for each operation, with its bytes, FLOPs and launches."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from kd_megatron.kernels.launch_cost import all_costs, bytes_of

# Operations that make a view or memory, and start no kernel, beside those that say so themselves (`is_view`).
FREE = {
    "_unsafe_view", "alias", "detach", "device", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty",
    "new_empty_strided", "resize_", "set_", "_reshape_alias", "record_stream", "is_pinned",
}  # fmt: skip
# What they write they do not read.
ONLY_WRITE = {"copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "_foreach_copy_", "_foreach_zero_"}
CHOOSE_ROWS = {"embedding", "gather", "index_select", "index", "scatter", "scatter_", "scatter_add", "scatter_add_"}
PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "float8_product", "_scaled_mm", "dot"}
ATTENTION = {"_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"}
ATTENTION |= {f"{name}_backward" for name in ATTENTION}
EMBEDDINGS = {"embedding", "embedding_dense_backward"}
FUSED_ADAM = "_fused_adamw_"
TENSORS_A_LAUNCH, NUMBERS_A_LAUNCH = 36, 320 * 65_536  # of an operation on a list of tensors, as PyTorch cuts them

# The innermost of these files on the stack says whose an operation is; of a backward pass, on the stack of its forward.
PLACES = (
    ("kernels/vocab_kl", "vocabulary loss"),
    ("kernels/relation_kl", "relation loss"),
    ("kernels/score_mse", "score loss"),
    ("/objectives/", "rest of the loss"),
    ("engine/optimizer.py", "optimiser"),
    ("torch/optim/", "optimiser"),
    ("deepspeed/runtime/zero", "optimiser"),
    ("engine/build.py", "optimiser"),  # norm of the gradient, clipping
    ("training/step.py", "bookkeeping"),
)
LAYER = ("models/layers.py", "run_layer")
MODEL = ("models/layers.py", "models/taps.py")
TEACHER = ("training/teacher.py", "training/cached_teacher.py")
OF_A_MODEL = ""


@dataclass(frozen=True)
class Place:
    """Where in the code an operation was asked for."""

    part: str | None  # of `PLACES`; None: of a model
    is_teacher: bool
    layer: int | None  # which layer: what `training.compile` compiles as one; None outside of them


@dataclass
class Operation:
    """One kernel, or a few of one kind, that the device is given."""

    name: str
    kind: str  # "products", "attention", "embeddings", "copies", "kernel" or "elementwise"
    place: Place
    shape: str  # of what it reads
    num_bytes: float
    flops: float
    exponentials: float
    launches: int
    width: int  # bytes of a number that a product reads: 1 is float8, 2 is half precision, 4 is float32
    reads: list[tuple[int, float]] = field(default_factory=list)  # (storage, bytes)
    writes: list[tuple[int, float]] = field(default_factory=list)

    @property
    def part(self) -> str:
        """Of the step: what a row of the table of milliseconds adds up."""
        if self.place.part is not None:
            return self.place.part
        return "norms and elementwise" if self.kind == "elementwise" else self.kind


class Recorder:
    """An observer of the fake device that writes an `Operation` for whatever would start a kernel."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.undeclared: set[str] = set()  # kernels that declare no cost: modelled by their bytes alone
        self._places: dict[int, Place] = {}  # of the forward, by the sequence number of its node
        self._kept: list[Any] = []  # storages, so that no address is used twice

    def observe(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], results: Any) -> None:
        """One operation of PyTorch."""
        name = func.overloadpacket.__name__
        place = self._place()
        if name in FREE or getattr(func, "is_view", False) or func.namespace == "prim":
            return
        written = [*_written(func, args, kwargs), *tree_leaves(results)]
        writes = self._accesses(written)
        reads = self._accesses(tree_leaves((args, {key: one for key, one in kwargs.items() if key != "out"})))
        if name in ONLY_WRITE:
            reads = [access for access in reads if access[0] not in {storage for storage, _ in writes}]
        reads, writes = _only_rows(name, reads, writes)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._add(
            name=name,
            kind=_kind(name, tensors),
            place=place,
            tensors=tensors,
            reads=reads,
            writes=writes,
            flops=_flops(func, args, kwargs, results),
            launches=_launches(name, tensors),
        )

    def observe_launch(self, name: str, arguments: dict[str, Any]) -> None:
        """One launch of a Triton kernel."""
        tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        declared = all_costs().get(name)
        if declared is None:
            self.undeclared.add(name)
        flops, exponentials, moved = declared(arguments) if declared else (0.0, 0.0, bytes_of(tensors))
        accesses = self._accesses(tensors)
        self._add(name, "kernel", self._place(), tensors, accesses, [], flops, 1, exponentials)
        self.operations[-1].num_bytes = moved

    def _add(
        self,
        name: str,
        kind: str,
        place: Place,
        tensors: Sequence[Tensor],
        reads: list[tuple[int, float]],
        writes: list[tuple[int, float]],
        flops: float,
        launches: int,
        exponentials: float = 0.0,
    ) -> None:
        moved = sum(size for _, size in (*reads, *writes))
        if name == FUSED_ADAM:  # its schema says that it writes gradients: it does so where it scales them alone
            moved = 7 / 4 * sum(size for _, size in self._accesses(tensors))  # 4 read, 3 written
        width = min((one.element_size() for one in tensors if one.is_floating_point()), default=4)
        shape = " ".join("x".join(map(str, one.shape)) or "1" for one in tensors[:3])
        operation = Operation(name, kind, place, shape, moved, flops, exponentials, launches, width, reads, writes)
        self.operations.append(operation)

    def _accesses(self, leaves: Sequence[Any]) -> list[tuple[int, float]]:
        """The storages among ``leaves`` and the bytes of each that are touched, each once."""
        found: dict[tuple[int, int], float] = {}
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or not leaf.is_cuda:
                continue
            storage = leaf.untyped_storage()
            self._kept.append(storage)
            size = float(leaf.numel() * leaf.element_size())
            found[storage._cdata, int(leaf.storage_offset())] = min(size, float(storage.nbytes()))
        return [(storage, size) for (storage, _), size in found.items()]

    def _place(self) -> Place:
        """Of an operation of a backward pass, the place of the forward that it belongs to."""
        node = torch._C._current_autograd_node()
        if node is not None and (known := self._places.get(node._sequence_nr())) is not None:
            return known
        place = _place_on_stack()
        if node is None:
            self._places.setdefault(torch._C._autograd._get_sequence_nr() - 1, place)
        return place


def _place_on_stack() -> Place:
    part: str | None = None
    is_teacher, layer = False, None
    frame: FrameType | None = sys._getframe(3)
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        if function == LAYER[1] and file.endswith(LAYER[0]):
            layer = id(frame.f_locals["layer"])
        is_teacher = is_teacher or file.endswith(TEACHER)
        if part is None:
            part = OF_A_MODEL if file.endswith(MODEL) else next((name for piece, name in PLACES if piece in file), None)
        frame = frame.f_back
    return Place(None if part == OF_A_MODEL else part, is_teacher, layer)


def _kind(name: str, tensors: Sequence[Tensor]) -> str:
    if name in PRODUCTS:
        return "products"
    if name in ATTENTION:
        return "attention"
    if name in EMBEDDINGS:
        return "embeddings"
    if name in ("_to_copy", "copy_") and not all(one.is_cuda for one in tensors):
        return "copies from the host"
    return "elementwise"


def _flops(func: Any, args: Sequence[Any], kwargs: dict[str, Any], results: Any) -> float:
    """Of matrix products, by PyTorch's own formulas; every other operation counts none, its bytes take longer."""
    name, packet = func.overloadpacket.__name__, func.overloadpacket
    if name == "float8_product":
        return 2.0 * args[0].numel() * args[2].shape[0]
    if name in ("addmm_", "baddbmm_"):
        return 2.0 * args[1].numel() * args[2].shape[-1]
    if packet in flop_registry:
        kept = {key: value for key, value in kwargs.items() if key not in ("out", "out_dtype")}
        positional = [one for one in args if not isinstance(one, torch.dtype)]
        return float(flop_registry[packet](*positional, **kept, out_val=results))
    return 0.0


def _launches(name: str, tensors: Sequence[Tensor]) -> int:
    """One, but for lists of tensors, of which a launch takes so many, and the sort of an embedding's gradient."""
    if name == FUSED_ADAM or name.startswith("_foreach"):
        numbers = sum(one.numel() for one in tensors)
        return max(1, -(-len(tensors) // TENSORS_A_LAUNCH), -(-numbers // NUMBERS_A_LAUNCH))
    return 6 if name == "embedding_dense_backward" else 1


def _only_rows(name: str, reads: list[Any], writes: list[Any]) -> tuple[list[Any], list[Any]]:
    """Operations that choose rows of a large tensor read, or change in place, no more of it than they choose."""
    if name not in CHOOSE_ROWS or not reads:
        return reads, writes
    if name in ("scatter_", "scatter_add_"):
        small = min(size for _, size in reads)
        return [(storage, min(size, small)) for storage, size in reads], [(storage, small) for storage, _ in writes]
    if name in ("scatter", "scatter_add"):
        return reads, writes
    most = max((size for _, size in writes), default=0.0)
    return [(storage, min(size, most)) for storage, size in reads], writes


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operation changes in place, by its schema."""
    found: list[Any] = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            found += tree_leaves(value)
    return found
