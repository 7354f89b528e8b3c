"""The benchmark itself: all checks first, then the figures of one case after the other."""

from dataclasses import dataclass

import torch

from benchmarks import timing
from benchmarks.kernels import correctness, memory, steps
from benchmarks.kernels.case import Case, Inputs
from benchmarks.rows import Row, timing_figures


@dataclass(frozen=True)
class LeftOut:
    """A backend that has no row, and why."""

    name: str
    shape: str
    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} {self.shape}: {self.backend} is left out: {self.reason}"


@dataclass(frozen=True)
class SuitePlan:
    """How to measure: ``seconds`` is the time for the rounds of one case, ``compiler`` is torch.compile's backend."""

    dtype: torch.dtype
    device: torch.device
    seconds: float
    compiler: str = "inductor"


def check_case(case: Case, plan: SuitePlan) -> list[correctness.Check]:
    """Check every backend that can run against float64. torch.compile is checked where it is timed."""
    examiner = correctness.Examiner(case, plan.dtype, plan.device)
    backends = [name for name in steps.backends_of(case) if name != steps.COMPILED]
    runnable = [name for name in backends if steps.obstacle(case, name, plan.device) is None]
    return [check for backend in runnable for check in examiner.check(backend)]


def measure(case: Case, plan: SuitePlan, rows: list[Row], left_out: list[LeftOut]) -> None:
    """Append the rows of every backend that can run ``case``, relative to eager, or to the first where it cannot.

    Raises:
        KdError: a backend does not agree with eager on these very inputs.
    """
    inputs = case.inputs(plan.dtype, plan.device)
    prepared = _prepare(case, inputs, plan, left_out)
    peaks = {backend: memory.peak_bytes(step, plan.device) for backend, step in prepared.items()}
    rounds = timing.time_in_turn(prepared, plan.device, plan.seconds)
    rows.extend(_rows(case, plan, rounds, peaks))
    if plan.device.type == "cuda":
        torch.cuda.empty_cache()  # blocks of this case's sizes fit the next one badly


def _prepare(case: Case, inputs: Inputs, plan: SuitePlan, left_out: list[LeftOut]) -> dict[str, steps.Step]:
    """The steps that run, each called once and compared with eager."""
    prepared: dict[str, steps.Step] = {}
    eager: steps.Result | None = None
    for backend in steps.backends_of(case):
        step = steps.step_of(case, backend, inputs, plan.compiler)
        found = steps.obstacle(case, backend, plan.device) or _first_run(step, backend)
        if isinstance(found, str):
            left_out.append(LeftOut(case.name, case.shape, backend, reason=found))
            continue
        eager = eager or found
        correctness.refuse_red(correctness.agreement(case, backend, inputs, found, eager))
        prepared[backend] = step
    return prepared


def _first_run(step: steps.Step, backend: str) -> steps.Result | str:
    """The result, or why there is none: no memory, or torch.compile fails (without a C++ compiler, say)."""
    try:
        return step()
    except torch.OutOfMemoryError:
        return "out of memory"
    except Exception as error:
        if backend != steps.COMPILED:
            raise
        return f"{type(error).__name__}: {' '.join(str(error).splitlines()[:2])}"  # the second line names the cause


def _rows(case: Case, plan: SuitePlan, rounds: list[dict[str, float]], peaks: dict[str, int]) -> list[Row]:
    if not peaks:
        return []
    reference = next(iter(peaks))
    return [
        Row(
            name=case.name,
            backend=backend,
            shape=case.shape,
            dtype=correctness.dtype_name(plan.dtype),
            device=plan.device.type,
            peak_mib=round(peak / 2**20, 3),
            ratio_to=reference,
            **timing_figures(
                [seconds[backend] for seconds in rounds], [seconds[reference] for seconds in rounds], case.num_tokens
            ),
        )
        for backend, peak in peaks.items()
    ]
