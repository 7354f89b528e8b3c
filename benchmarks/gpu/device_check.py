"""Check, time and tune the kernels on a device, within a time: what `benchmarks/gpu_check.sh` runs.

1. every backend of every kernel against float64, in fp32 and bf16
2. time and peak memory of every backend in bf16, beside eager, torch.compile and the bound (bounds.py)
3. length 8192: it runs, it is right, and memory is linear in length
4. block sizes of the Triton kernels
"""

import time
from collections import defaultdict
from dataclasses import asdict

import torch

from benchmarks import timing
from benchmarks.gpu.device_sizes import Sizes
from benchmarks.gpu.report import Report
from benchmarks.kernels import bounds, correctness, memory, steps, suite, triton_tuning
from benchmarks.kernels.case import Case
from benchmarks.kernels.correctness import Check
from benchmarks.rows import cells, percentile

MOST_GROWTH = 2.1  # of peak memory when the length doubles; 4 where anything of L x L is stored
FOR_CPU = {("relation_kl", "chunked"), ("score_mse", "tiled")}  # thousands of small launches at length 8192


class DeviceCheck:
    """The kernels on one device. A fault in one backend ends no part.

    Args:
        sizes: what is checked and timed.
        report: takes what is found.
        end: of the time for all parts, as of `time.perf_counter`; the last one uses what the others leave.
    """

    def __init__(self, sizes: Sizes, report: Report, end: float) -> None:
        self.sizes, self.report, self.end = sizes, report, end

    def run(self) -> None:
        """All parts."""
        self.report.run({"check": self.check, "speed": self.speed, "long": self.long, "tune": self.tune})

    def check(self) -> None:
        """Part 1."""
        cases = [(case, dtype) for dtype in correctness.DTYPES.values() for case in self.sizes.checked]
        for case, dtype in self.report.while_time_lasts("check", cases, self.end):
            self.examine(case, dtype)
        groups: dict[tuple[str, str, str], list[Check]] = defaultdict(list)
        for check in self.report.checks:
            groups[check.name, check.backend, check.dtype].append(check)
        for (name, backend, dtype_name), checks in groups.items():
            worst = max(checks, key=lambda check: check.error / check.allowed)
            self.report.say(
                f"{name:20} {backend:12} {dtype_name}  {len(checks):3} tensors, the worst {worst.error:.1e} "
                f"of {worst.allowed:.1e} allowed ({worst.shape}, {worst.tensor})"
            )

    def examine(self, case: Case, dtype: torch.dtype) -> None:
        """Every backend but torch.compile against float64, each by itself."""
        examiner = correctness.Examiner(case, dtype, self.sizes.device)
        for backend in steps.backends_of(case):
            if backend == steps.COMPILED or steps.obstacle(case, backend, self.sizes.device):
                continue
            name = f"{case.name} {backend} {case.shape} {correctness.dtype_name(dtype)}"
            for check in self.report.guarded(name, examiner.check, backend) or ():
                self.report.checks.append(check)
                if not check.passed:
                    self.report.red.append(
                        f"{name}: {check.tensor} is off by {check.error:.1e}, allowed {check.allowed:.1e}"
                    )

    def speed(self) -> None:
        """Part 2, of the kernels without a red check: no figure on a red test."""
        sizes = self.sizes
        plan = suite.SuitePlan(torch.bfloat16, sizes.device, sizes.seconds_per_case, sizes.compiler)
        green = [case for case in sizes.timed if not any(line.startswith(f"{case.name} ") for line in self.report.red)]
        self.report.found["not_timed"] += [f"{case.name} {case.shape}" for case in sizes.timed if case not in green]
        for case in self.report.while_time_lasts("speed", green, self.end):
            done = len(self.report.rows)
            self.report.guarded(
                f"{case.name} {case.shape}", suite.measure, case, plan, self.report.rows, self.report.left_out
            )
            bound, limit = bounds.cost(case).seconds(bounds.H200)
            self.report.say(f"{case.name} {case.shape}: bound {1000 * bound:.3g} ms by {limit} ({bounds.H200.name})")
            for row in self.report.rows[done:]:
                times = row.p50_ms / (1000 * bound)
                self.report.found["bounds"].append(
                    {"name": row.name, "shape": row.shape, "backend": row.backend, "dtype": row.dtype}
                    | {"bound_ms": 1000 * bound, "limited_by": limit, "times_bound": round(times, 3)}
                )
                self.report.say(
                    "  "
                    + "  ".join(f"{cell:>14}" for cell in cells(row, self.report.rows)[3:])
                    + f"  {times:.2f}x bound"
                )
        for reason in self.report.left_out:
            self.report.say(str(reason))

    def long(self) -> None:
        """Part 3."""
        for case in self.report.while_time_lasts("long, checked", self.sizes.long_checked, self.end):
            self.examine(case, torch.bfloat16)
        pairs = [
            (half, whole, backend)
            for half, whole in self.sizes.long
            for backend in whole.backends()
            if backend != steps.REFERENCE and (whole.name, backend) not in FOR_CPU
        ]
        for half, whole, backend in self.report.while_time_lasts("long", pairs, self.end):
            if steps.obstacle(whole, backend, self.sizes.device) is None:
                self.report.guarded(f"{whole.name} {backend} {whole.shape}", self.lengthen, half, whole, backend)

    def lengthen(self, half: Case, whole: Case, backend: str) -> None:
        """Time and peak memory of ``whole``, and that memory beside that of ``half``."""
        peaks, seconds = [], 0.0
        for case in (half, whole):
            step = steps.step_of(case, backend, case.inputs(torch.bfloat16, self.sizes.device))
            step()
            peaks.append(memory.peak_bytes(step, self.sizes.device))
            rounds = timing.time_in_turn({backend: step}, self.sizes.device, budget_seconds=0.0)
            seconds = percentile([each[backend] for each in rounds], 0.5)
        growth = peaks[1] / peaks[0]
        line = f"{whole.name} {backend} {whole.shape}: {1000 * seconds:.4g} ms, {peaks[1] / 2**20:.4g} MiB"
        self.report.say(f"{line}, {growth:.2f} times that of half the length")
        self.report.found["long"].append(
            {"name": whole.name, "backend": backend, "shape": whole.shape, "p50_ms": 1000 * seconds}
            | {"peak_mib": peaks[1] / 2**20, "growth_when_length_doubles": growth}
        )
        if growth > MOST_GROWTH:
            self.report.red.append(
                f"{line}: memory grows {growth:.2f} times when the length doubles, allowed {MOST_GROWTH}"
            )

    def tune(self) -> None:
        """Part 4; the cases share what time is left."""
        for place, case in enumerate(self.sizes.tuned):
            now = time.perf_counter()
            end = now + (self.end - now) / (len(self.sizes.tuned) - place)
            trials: list[triton_tuning.TuningTrial] = []
            self.report.guarded(f"tuning {case.name} {case.shape}", self.try_choices, case, end, trials)
            self.report.say(f"{case.name} {case.shape}: {len(trials)} trials")
            best: dict[str, triton_tuning.TuningTrial] = {}
            for trial in sorted((trial for trial in trials if trial.p50_ms), key=lambda trial: trial.p50_ms or 0.0):
                best.setdefault(trial.launch, trial)
            for launch, trial in best.items():
                limit = f", at most {trial.most_registers} registers" if trial.most_registers else ""
                blocks = f"{trial.rows} x {trial.columns}, {trial.num_warps} warps, {trial.num_stages} stages{limit}"
                self.report.say(f"  {launch:9} best: {blocks}: {trial.p50_ms:.4g} ms")

    def try_choices(self, case: Case, end: float, trials: list[triton_tuning.TuningTrial]) -> None:
        """Append the trials of ``case`` that the time until ``end`` allows; a wrong result is red."""
        tuning = triton_tuning.tune(case, torch.bfloat16, self.sizes.device, self.sizes.choices)
        for trial in self.report.while_time_lasts(f"tuning {case.name} {case.shape}", tuning, end):
            trials.append(trial)
            self.report.found["tuning"].append(asdict(trial))
            if trial.fault == triton_tuning.WRONG:
                self.report.red.append(str(trial))
