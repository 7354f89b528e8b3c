"""What `bench model` says of arms: figures as plain data, with every assumption beside them."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.model.modelled_arms import ModelledArm
from benchmarks.model.rates import ModelledGpu
from kd_megatron.engine.batch_split import split
from kd_megatron.machine import facts
from kd_megatron.recipe import StudyRecipe

PACKAGES = ("torch", "triton", "deepspeed", "transformers")


def assumptions(gpu: ModelledGpu, recipe: StudyRecipe, arms: Sequence[ModelledArm]) -> list[str]:
    """What the figures rest on, in words."""
    sheet = gpu.gpu
    said = [
        "Everything here is modelled: the code ran on fake tensors, no kernel ran, and nothing was timed.",
        f"{sheet.name}: {sheet.half_flops / 1e12:,.0f} TFLOP/s in 16 bits, {sheet.float32_flops / 1e12:,.0f} in "
        f"float32, {sheet.bytes_per_second / 1e12:.2f} TB/s ({sheet.source}).",
        f"Reached of that, assumed: products {gpu.product_rate(2) / 1e12:,.0f} TFLOP/s in 16 bits, memory "
        f"{gpu.bytes_per_second / 1e12:.1f} TB/s (the shares {gpu.product_share:.0%} and {gpu.memory_share:.0%} are "
        "those of an H200 for every GPU).",
        f"An operation takes the longest of its bytes, its products, its exponentials (declared by our kernels alone, "
        f"{gpu.exponentials_per_second / 1e12:.1f}e12 a second) and {gpu.launch_seconds * 1e6:g} us a launch. "
        "Operations do not overlap.",
        "Every operation reads its inputs from memory and writes its outputs to it, once: no cache is modelled, which "
        "makes chunks that fit into one look slower than they are.",
        "Our kernels take their bound by count: register pressure, occupancy and instruction issue are not modelled.",
        "The host is never too slow, data is there in time, and there is one GPU: no exchange between GPUs.",
        "MFU and the FLOP bound are of the matrix products of student and teacher (kd_megatron/engine/flops.py) at the "
        "data sheet's rate.",
    ]
    if recipe.training.compile:
        said.append(
            "training.compile is modelled, not run: operations of one layer that hand each other their results, before "
            "a product reads them, are one kernel; it reads once what comes from outside and writes what others read."
        )
    else:
        said.append("training.compile is off: every operation is its own kernel.")
    schedules = [arm.arm for arm in arms if recipe.arms[arm.arm]["objective"] == "schedule"]
    if schedules:
        said.append(f"Of a schedule the first phase is modelled: {', '.join(schedules)}.")
    undeclared = sorted({name for arm in arms for name in arm.undeclared})
    if undeclared:
        said.append(f"Kernels that declare no cost (cost.py), by their bytes alone: {', '.join(undeclared)}.")
    return said


def as_record(
    arms: Sequence[ModelledArm], reference: str, gpu: ModelledGpu, recipe: StudyRecipe, num_top: int
) -> dict[str, Any]:
    """All of it; ``arms`` and not ``rows``, so that nobody takes the figures for measured ones."""
    scratch = next(arm for arm in arms if arm.arm == reference)
    versions = facts.versions(PACKAGES)
    training = recipe.training
    return {
        "modelled": True,
        "date": time.strftime("%Y-%m-%d"),
        "commit": facts.commit(),
        "uncommitted_changes": facts.uncommitted_changes(),
        "versions": versions,
        "recipe": recipe.name,
        "device": gpu.gpu.name,
        "assumptions": assumptions(gpu, recipe, arms),
        "batch": {
            "sequences": training.global_batch_size,
            "micro_batch_size": split(training, 1).size,
            "length": recipe.data.sequence_length,
            "precision": arms[0].precision,
            "compile": training.compile,
        },
        "spread_of_mfu": _digits(spread(arms)),
        "arms": [_arm(arm, scratch, num_top) for arm in arms],
    }


def spread(arms: Sequence[ModelledArm]) -> float:
    """The largest modelled MFU less the smallest: 0 where no arm's code is better than another's."""
    shares = [arm.mfu for arm in arms]
    return max(shares) - min(shares)


def _arm(arm: ModelledArm, scratch: ModelledArm, num_top: int) -> dict[str, Any]:
    return {
        "arm": arm.arm,
        "modelled_ms": _ms(arm.seconds),
        "mfu": _digits(arm.mfu),
        "flop_bound_ms": _ms(arm.bound_seconds),
        "times_bound": _digits(arm.seconds / arm.bound_seconds),
        "speed": _digits(scratch.seconds / arm.seconds),  # tokens per second relative to the reference
        "speed_at_equal_mfu": _digits(scratch.flops / arm.flops),
        "teacher_ms": _ms(arm.teacher_seconds),
        "launches": arm.num_launches,
        "tokens_per_second": round(arm.num_tokens / arm.seconds),
        "parts_ms": {part: _ms(seconds) for part, seconds in arm.by_part().most_common()},
        "top": top_operations(arm, num_top),
    }


def top_operations(arm: ModelledArm, number: int) -> list[dict[str, Any]]:
    """The operations that take most, those of one name, part and shape together."""
    seconds: Counter[tuple[str, str, str, str]] = Counter()
    times: Counter[tuple[str, str, str, str]] = Counter()
    for one in arm.times:
        key = (one.operation.part, one.operation.name, one.operation.shape, one.limit)
        seconds[key] += one.seconds  # type: ignore[assignment]
        times[key] += 1
    names = ("part", "operation", "shape", "limit")
    return [
        dict(zip(names, key, strict=True)) | {"times": times[key], "modelled_ms": _ms(taken)}
        for key, taken in seconds.most_common(number)
    ]


def _ms(seconds: float) -> float:
    return _digits(1000 * seconds)


def _digits(value: float) -> float:
    """Four: more than any model holds."""
    return float(f"{value:.4g}")
