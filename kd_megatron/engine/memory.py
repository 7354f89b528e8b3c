"""The most bytes of tensors that a process of a run holds in a training step, predicted.

Weights, optimizer and what a micro-batch keeps follow from the recipe (`simulate.py`). What DeepSpeed adds at each
stage was measured, and the formulas are held to measurements (`tests/training/test_memory.py`). In them W is all the
student's parameters, T the trained ones, n the processes; "bucket" is what DeepSpeed reduces at once.
"""

from dataclasses import dataclass

from kd_megatron.engine.batch_split import split
from kd_megatron.engine.build import read_ds_config
from kd_megatron.engine.partition import WHOLE_ELEMENTS
from kd_megatron.engine.simulate import Held
from kd_megatron.recipe import StudyRecipe

FLOAT32 = 4
BYTES = {"fp32": 4, "bf16": 2}
TEACHER_BYTES = {"fp32": 4, "bf16": 2, "fp8": 1}
ADAM = 2 * FLOAT32  # both moments of a parameter
PERSISTENT_ELEMENTS = 100_000  # parameters of up to this size are never partitioned: DeepSpeed's default


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. ``host_bytes`` of the total lie in the host's memory when the models are on a GPU."""

    weights: float
    optimizer: float  # Adam's moments and float32 masters
    teacher: float
    engine: float  # gradients kept for the update, and DeepSpeed's buffers
    step: float  # at the height of a step: activations and the loss, gradients on their way, or the update
    host_bytes: float = 0.0

    @property
    def total(self) -> float:
        """All of it, host memory included."""
        return self.weights + self.optimizer + self.teacher + self.engine + self.step


def predict(study: StudyRecipe, held: Held, ds_config: str, num_processes: int) -> Memory:
    """Of one process of ``num_processes``, at the height of a step.

    Args:
        study: with ``precision`` decided.
    """
    zero = read_ds_config(ds_config)["zero_optimization"]
    sizes = _Sizes(study, held, zero, num_processes)
    stage = zero["stage"]
    offloads = "offload_optimizer" in zero
    count = _stage_0 if stage == 0 else _stage_3 if stage == 3 else _stages_1_and_2
    weights, optimizer, engine, step = count(sizes, stage, offloads)
    host = 0.0
    if offloads:  # optimizer, and gradients on their way to it
        host = optimizer + engine - sizes.bucket + (weights if "offload_param" in zero else 0.0)
    return Memory(weights, optimizer, _teacher_bytes(study, held, num_processes), engine, step, host)


class _Sizes:
    """Bytes, unless said otherwise."""

    def __init__(self, study: StudyRecipe, held: Held, zero: dict[str, int], num_processes: int) -> None:
        training = study.training
        size, everything = BYTES[training.precision], [*held.trained, *held.untrained]
        self.held = held  # what a micro-batch adds
        self.trained = sum(held.trained)  # T, elements
        self.bucket_elements = min(zero.get("reduce_bucket_size", 0), self.trained)
        self.weights: float = size * sum(everything)  # W as it computes
        self.gradients: float = size * self.trained  # T as it computes
        self.widened: float = FLOAT32 * self.trained  # T in float32
        self.sent: float = BYTES[training.gradient_reduction] * self.trained  # T on its way between processes
        self.sent_in_other_type = training.gradient_reduction != training.precision
        self.bucket: float = size * self.bucket_elements
        self.persistent: float = size * sum(
            elements for elements in everything if elements <= PERSISTENT_ELEMENTS
        )  # of W
        self.num_processes = num_processes
        self.accumulates = split(training, num_processes).count > 1  # more than one micro-batch in a step
        self.has_masters = training.precision == "bf16"


_Counted = tuple[float, float, float, float]  # weights, optimizer, engine, step


def _stage_0(sizes: _Sizes, stage: int, offloads: bool) -> _Counted:
    """W, masters, 2 T; gradients come and go with the step, are sent as flat copies, then widened for the update."""
    optimizer = (ADAM + FLOAT32 * sizes.has_masters) * sizes.trained
    micro_batch = max(sizes.held.with_gradients, sizes.accumulates * (sizes.gradients + sizes.held.alone))
    sent = sizes.sent * (sizes.num_processes > 1)
    return (
        sizes.weights,
        optimizer,
        0.0,
        max(micro_batch, sizes.gradients + max(sent, sizes.widened * sizes.has_masters)),
    )


def _stages_1_and_2(sizes: _Sizes, stage: int, offloads: bool) -> _Counted:
    """W, 3 T / n; gradients go through a bucket into this process's part of them, which is cast for the update."""
    part = 1 / sizes.num_processes
    optimizer = part * (ADAM + FLOAT32) * sizes.trained
    kept = part * sizes.gradients
    if offloads:  # the part of the gradients in host memory, three times
        engine = part * 3 * sizes.widened
        reducing = sizes.bucket + max(sizes.held.backward, sizes.bucket * (sizes.num_processes > 1))
        return sizes.weights, optimizer, engine, max(sizes.held.forward, reducing, part * sizes.widened)
    several = sizes.num_processes > 1
    sent = (4 - stage) * sizes.sent * (several and sizes.sent_in_other_type)  # while it is reduced
    if stage == 1 and sizes.accumulates:  # until the last micro-batch nothing is let go of
        reducing = sizes.gradients + sizes.bucket + sizes.held.alone
    else:
        is_more_than_one = sizes.trained > sizes.bucket_elements  # then one is filled while the other is sent
        num_buckets = 1 + (stage == 2 and several and is_more_than_one)
        accumulated = kept * sizes.accumulates
        reducing = accumulated + max(
            sizes.held.forward, num_buckets * sizes.bucket + max(sizes.held.backward, sizes.bucket)
        )
    reducing = max(reducing, sent)
    return sizes.weights, optimizer, 0.0, max(reducing, kept + part * sizes.widened)


def _stage_3(sizes: _Sizes, stage: int, offloads: bool) -> _Counted:
    """W / n and what is too small to be cut, 3 T / n, gradients / n, a bucket; a step gathers all of W."""
    part = 1 / sizes.num_processes
    gathers = sizes.num_processes > 1
    weights = part * sizes.weights + sizes.persistent * gathers
    optimizer = part * (ADAM + FLOAT32) * sizes.trained
    bucket = sizes.bucket_elements * FLOAT32  # of the type that is sent
    engine = part * (2 * sizes.widened if offloads else sizes.gradients) + bucket
    gathered = (sizes.weights - sizes.persistent) * gathers
    micro_batch = gathered + max(sizes.held.forward, bucket * gathers + sizes.held.backward)
    return weights, optimizer, engine, max(micro_batch, 2 * bucket, part * (sizes.widened + sizes.gradients))


def _teacher_bytes(study: StudyRecipe, held: Held, num_processes: int) -> float:
    if study.teacher is None:
        return 0.0
    size = TEACHER_BYTES[study.teacher.precision]
    if not study.teacher.partition:
        return float(size * sum(held.teacher))
    small = sum(elements for elements in held.teacher if elements <= WHOLE_ELEMENTS)
    return size * (sum(held.teacher) / num_processes + small * (num_processes > 1))
