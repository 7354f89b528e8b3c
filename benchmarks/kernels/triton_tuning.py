"""Block sizes of the Triton kernels, tried one after the other: which of them a GPU would choose."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch

from benchmarks import timing
from benchmarks.kernels import correctness, steps
from benchmarks.kernels.attention_cases import RelationKl, ScoreMse
from benchmarks.kernels.case import Case, Inputs
from benchmarks.rows import percentile
from kd_megatron.kernels.relation_kl import triton_launch as relation_kl
from kd_megatron.kernels.relation_kl import triton_whole_launch
from kd_megatron.kernels.score_mse import triton_launch as score_mse

WRONG = "wrong result"


@dataclass(frozen=True)
class TuningTrial:
    """One choice of blocks at one shape; ``p50_ms`` is None where it cannot run, and ``fault`` says why."""

    name: str
    shape: str
    dtype: str
    launch: str  # which of the kernel's launches is varied; the others are as they are shipped
    rows: int
    columns: int  # 0: all of them
    num_warps: int
    num_stages: int
    p50_ms: float | None  # of forward and backward
    fault: str = ""
    most_registers: int | None = None  # None: what the compiler takes


@dataclass(frozen=True)
class Choices:
    """The values tried, each with each; the most promising first, as time may end."""

    tiles: tuple[tuple[int, int], ...] = ((128, 64), (64, 64), (64, 128), (128, 32), (64, 32), (32, 64))
    num_warps: tuple[int, ...] = (8, 4)
    num_stages: tuple[int, ...] = (2, 3)
    wholes: tuple[triton_whole_launch.Whole, ...] = (  # of relations of short sequences
        *(triton_whole_launch.Whole(64, 4, registers) for registers in (240, None, 168)),
        triton_whole_launch.Whole(128, 8),
        triton_whole_launch.Whole(64, 8),
    )

    def __iter__(self) -> Iterator[dict[str, int]]:
        for (rows, columns), warps, stages in itertools.product(self.tiles, self.num_warps, self.num_stages):
            yield {"rows": rows, "columns": columns, "num_warps": warps, "num_stages": stages}


def tune(case: Case, dtype: torch.dtype, device: torch.device, choices: Choices) -> Iterator[TuningTrial]:
    """Time ``case`` for every choice, one launch varied at a time. An iterator: the caller stops when time is up."""
    inputs = case.inputs(dtype, device)
    step = steps.step_of(case, "triton", inputs)
    shipped = step()
    dtype_name = correctness.dtype_name(dtype)
    for whole in choices.wholes if _is_whole(case, inputs) else ():
        with _replaced(triton_whole_launch, "default_whole", lambda *_, whole=whole: whole):
            p50_ms, fault = _attempt(case, inputs, step, shipped, device)
        yield TuningTrial(
            case.name, case.shape, dtype_name, "whole", whole.rows, 0, whole.num_warps, 1, p50_ms, fault,
            whole.most_registers,
        )  # fmt: skip
    for choice in choices:
        for launch, with_choice in _launches(case, choice).items():
            with with_choice:
                p50_ms, fault = _attempt(case, inputs, step, shipped, device)
            yield TuningTrial(case.name, case.shape, dtype_name, launch, **choice, p50_ms=p50_ms, fault=fault)


def _is_whole(case: Case, inputs: Inputs) -> bool:
    """Whether ``case`` goes to the kernel of short sequences."""
    if not isinstance(case, RelationKl):
        return False
    student, teacher = (case.taps(inputs, side)[0].flatten(2) for side in ("student", "teacher"))
    return triton_whole_launch.default_whole(student, teacher, case.num_relation_heads) is not None


def _launches(case: Case, choice: dict[str, int]) -> dict[str, AbstractContextManager[None]]:
    """For each launch of the kernel: a context in which it takes this choice instead of the shipped one."""
    if isinstance(case, RelationKl):
        shipped = relation_kl.default_tiling
        blocks = relation_kl.Blocks(**choice)
        return {
            launch: _replaced(
                relation_kl, "chosen", lambda *taps, launch=launch: replace(shipped(*taps), **{launch: blocks})
            )
            for launch in ("forward", "backward")
        }
    if isinstance(case, ScoreMse):
        return {"tiles": _replaced(score_mse, "default_blocks", lambda *taps: score_mse.Blocks(**choice))}
    raise TypeError(f"{case.name} has no Triton kernel")


@contextmanager
def _replaced(module: ModuleType, name: str, chooser: Callable[..., Any]) -> Iterator[None]:
    """``module.name``, which chooses the blocks of a launch, is ``chooser``."""
    shipped = getattr(module, name)
    setattr(module, name, chooser)
    try:
        yield
    finally:
        setattr(module, name, shipped)


def _attempt(
    case: Case, inputs: Inputs, step: steps.Step, shipped: steps.Result, device: torch.device
) -> tuple[float | None, str]:
    try:
        checks = correctness.agreement(case, "triton", inputs, step(), shipped)
    except Exception as error:  # such as more shared memory than there is
        return None, f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    if not all(check.passed for check in checks):
        return None, WRONG
    rounds = timing.time_in_turn({"triton": step}, device, budget_seconds=0.0)
    return 1000 * percentile([seconds["triton"] for seconds in rounds], 0.5), ""
